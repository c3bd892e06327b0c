"""From a config to the parts of a run: task, tokenizer, model, mesh, parameters. Wrong input ends here."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from entropy_rl.data.batching import shorter_than
from entropy_rl.data.tasks import Chains, Countdown, Problem, Task
from entropy_rl.learner import init_state, make_optimizer
from entropy_rl.methods.r3 import reflection_text
from entropy_rl.model.hf_tokenizer import load_tokenizer
from entropy_rl.model.tokenizer import CharTokenizer, SentencePieceTokenizer, Tokenizer, train_sentencepiece
from entropy_rl.model.transformer import RopeScaling, Transformer, TransformerConfig, decoding_params
from entropy_rl.objectives.methods import METHODS, add_methods
from entropy_rl.objectives.recipe import Recipe, RunFacts
from entropy_rl.objectives.recipes import make_recipe
from entropy_rl.parallel import MeshKernels
from entropy_rl.parallel import mesh as mesh_lib
from entropy_rl.parallel.multihost import is_main
from entropy_rl.schedules import learning_rate_schedule
from entropy_rl.types import TrainState
from entropy_rl.verify.extraction import EXTRACTORS
from entropy_rl.verify.grader import Grader

Reward = Callable[[Problem, str], float]


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """What pretraining, training and evaluation share."""

    config: ConfigDict
    task: Task
    reward: Reward
    tokenizer: Tokenizer
    model: Transformer
    mesh: Any
    param_shardings: Any
    for_sampling: Callable[[Any], Any]  # parameters -> what the sampler takes, split over ``tensor`` alone

    @functools.cache  # noqa: B019  (one Parts a run; encoding every prompt takes a while)
    def problems(self, split: str) -> Sequence[Problem]:
        """Problems of a split whose prompts fit ``sampling.max_prompt``."""
        problems = self.task.problems(split)
        if self.task.alphabet is not None:
            return problems  # generated: length is bounded by the task's options, and checked when encoded
        kept = shorter_than(problems, self.tokenizer, self.config.sampling.max_prompt)
        if not kept:
            raise ValueError(
                f"no {split} problem fits {self.config.sampling.max_prompt} tokens; raise config.sampling.max_prompt"
            )
        if len(kept) < len(problems) and is_main():
            dropped = len(problems) - len(kept)
            print(
                f"{split}: {dropped} of {len(problems)} problems have prompts of more than "
                f"{self.config.sampling.max_prompt} tokens (config.sampling.max_prompt) and are left out",
                file=sys.stderr,
            )
        return [problems[i] for i in kept]


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Turns a ValueError about the user's input into one sentence on standard error and exit status 2."""
    try:
        yield
    except (ValueError, TypeError, KeyError, OSError) as error:
        if os.environ.get("ENTROPY_RL_TRACEBACK"):
            raise
        text = error if isinstance(error, OSError) or not error.args else error.args[0]
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)


def load_object(path: str) -> Any:
    """The object at "module:name"; ValueError says what is missing."""
    module, colon, name = path.partition(":")
    if not colon:
        raise ValueError(f"{path!r} is not of the form module:name")
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(f"cannot import {module!r} for {path!r}: {error}") from None
    except AttributeError:
        raise ValueError(f"module {module!r} has no {name!r}") from None
    finally:
        sys.path.pop(0)


def _gsm8k(*, directory: str = "", **options: Any) -> Task:
    if directory and not os.path.isdir(directory):
        raise ValueError(f"config.task.options.directory={directory} is no directory; '' downloads the published files")
    own = {"template": "{problem}\n", "direct": True, **options}  # one set: its files may lie in the directory itself
    return _math(train="gsm8k", test="gsm8k", directory=directory, **own)


def _math(*, train: str, test: str, extract: Sequence[str] = EXTRACTORS, allow_unboxed: bool = False, **options: Any):
    from entropy_rl.data.math_task import MathTask

    if not train:
        raise ValueError("config.task.options.train names no set to train on")
    return MathTask(train=train, test=test, grader=_grader(extract, allow_unboxed), **options)


def _files(
    *,
    train: str,
    test: str,
    problem_field: str = "problem",
    answer_field: str = "answer",
    solution_field: str = "",
    template: str = "{problem}\n",
    data_dir: str | None = None,
    extract: Sequence[str] = EXTRACTORS,
    allow_unboxed: bool = False,
) -> Task:
    from entropy_rl.data.datasets import FileTask, ProblemFiles

    fields = dict(problem_field=problem_field, answer_field=answer_field, solution_field=solution_field)
    builder = ProblemFiles(paths=dict(train=train, test=test), data_dir=data_dir, **fields)
    return FileTask(builder, template=template, grader=_grader(extract, allow_unboxed))


def _grader(extract: Sequence[str], allow_unboxed: bool) -> Grader:
    if isinstance(extract, str):
        raise ValueError(f"config.task.options.extract={extract!r} is one text; write ({extract!r},)")
    return Grader(extract=tuple(extract), allow_unboxed=allow_unboxed)


TASKS: dict[str, Callable[..., Task]] = {
    "chains": Chains, "countdown": Countdown, "gsm8k": _gsm8k, "math": _math, "files": _files,
}  # fmt: skip


def make_task(config: ConfigDict) -> Task:
    """The task that ``config.task`` names."""
    name = config.task.name
    if name not in TASKS and ":" not in name:
        raise ValueError(f"task {name!r} is not one of {', '.join(TASKS)}, nor of the form module:factory")
    factory = TASKS[name] if name in TASKS else load_object(name)
    try:
        return factory(**config.task.options.to_dict())
    except TypeError as error:
        what = str(error).partition("() ")[2] or str(error)
        raise ValueError(
            f"task {name!r} does not take these config.task.options: {what}; "
            "a config file of your own may replace them (docs/extending.md)"
        ) from None


def make_tokenizer(config: ConfigDict, task: Task, workdir: str) -> Tokenizer:
    """Characters for generated tasks; else the SentencePiece model named, or one trained once into the workdir."""
    if config.tokenizer.system and not config.tokenizer.chat:
        raise ValueError("config.tokenizer.system has an effect only with config.tokenizer.chat")
    if config.tokenizer.path:
        return load_tokenizer(config.tokenizer.path, chat=config.tokenizer.chat, system=config.tokenizer.system)
    if config.tokenizer.chat or config.tokenizer.system:
        raise ValueError("config.tokenizer.chat and .system need a config.tokenizer.path with a chat template")
    if task.alphabet is not None:
        return CharTokenizer(task.alphabet)
    path = os.path.join(workdir, "tokenizer.model")
    if not os.path.exists(path):
        texts = (problem.prompt + problem.solution for problem in task.problems("train"))
        train_sentencepiece(texts, path, vocab_size=config.tokenizer.vocab_size)
    return SentencePieceTokenizer(path)


def check_sizes(config: ConfigDict, mesh: Any) -> None:
    """Raises ValueError where sizes are out of range or do not divide."""
    batch, sampling, evaluation = config.batch, config.sampling, config.eval
    positive = {
        "batch.prompts": batch.prompts,
        "batch.samples": batch.samples,
        "batch.minibatches": batch.minibatches,
        "batch.epochs": batch.epochs,
        "batch.microbatches": batch.microbatches,
        "batch.length_buckets": batch.length_buckets,
        "sampling.max_prompt": sampling.max_prompt,
        "sampling.max_response": sampling.max_response,
        "sampling.slots_per_device": sampling.slots_per_device,
        "pretrain.batch_size": config.pretrain.batch_size,
        "pretrain.microbatches": config.pretrain.microbatches,
        "eval.problems": evaluation.problems,
        "eval.samples": evaluation.samples,
        "eval.batch": evaluation.batch,
        "checkpoint.every": config.checkpoint.every,
        "log.every": config.log.every,
        "head_chunk": config.head_chunk,
        "steps": config.steps,
        "optimizer.max_skipped_in_a_row": config.optimizer.max_skipped_in_a_row,
        "pretrain.checkpoint_every": config.pretrain.checkpoint_every,
        "log.rollouts_prompts": config.log.rollouts_prompts,
        "curriculum.problems": config.curriculum.problems,
        "curriculum.samples": config.curriculum.samples,
    }
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"config.{name}={value} must be at least 1")
    not_negative = {
        "pretrain.steps": config.pretrain.steps,
        "eval.every": evaluation.every,
        "log.rollouts_every": config.log.rollouts_every,
        "checkpoint.keep_best": config.checkpoint.keep_best,
        "stop_at_tokens": config.stop_at_tokens,
    }
    for name, value in not_negative.items():
        if value < 0:
            raise ValueError(f"config.{name}={value} must not be negative")
    if config.pretrain.max_length < 2:
        raise ValueError("config.pretrain.max_length must be at least 2 tokens")
    if config.sampling.temperature <= 0:
        raise ValueError("config.sampling.temperature must be positive: greedy responses carry no gradient signal")
    shards = mesh_lib.row_shards(mesh)
    if batch.prompts % shards:
        raise ValueError(f"config.batch.prompts={batch.prompts} does not divide over {shards} data shards")
    if config.pretrain.batch_size % (config.pretrain.microbatches * shards):
        raise ValueError(
            f"config.pretrain.batch_size={config.pretrain.batch_size} does not divide into "
            f"{config.pretrain.microbatches} microbatches over {shards} data shards"
        )
    if evaluation.batch % shards:
        raise ValueError(f"config.eval.batch={evaluation.batch} does not divide over {shards} data shards")


def model_config(config: ConfigDict, tokenizer: Tokenizer) -> TransformerConfig:
    """The model of ``config.model``, with the tokenizer's vocabulary where none is stated."""
    options = config.model.to_dict()
    scaling = options.pop("rope_scaling")
    options["rope_scaling"] = None if scaling["kind"] == "none" else RopeScaling(**scaling)
    if options["vocab_size"] is None:
        options["vocab_size"] = tokenizer.vocab_size
    if options["vocab_size"] < tokenizer.vocab_size:
        raise ValueError(
            f"config.model.vocab_size={options['vocab_size']} is below the tokenizer's {tokenizer.vocab_size} ids"
        )
    return TransformerConfig(**options)


def build(config: ConfigDict, workdir: str, *, task: Task | None = None) -> Parts:
    """All parts of a run; nothing is sampled or trained yet.

    Args:
        config: of the run.
        workdir: where a tokenizer trained for the run is.
        task: in place of the config's.

    Raises:
        ValueError: with one sentence, for any config that cannot run.
    """
    jax.config.update("jax_debug_nans", config.debug_nans)
    if config.log.wandb_project and importlib.util.find_spec("wandb") is None:
        raise ValueError("config.log.wandb_project is set, but wandb is not installed: pip install -e '.[wandb]'")
    mesh = mesh_lib.make_mesh(**config.mesh.to_dict())
    check_sizes(config, mesh)
    os.makedirs(workdir, exist_ok=True)
    task = make_task(config) if task is None else task
    tokenizer = make_tokenizer(config, task, workdir)
    model = Transformer(model_config(config, tokenizer), MeshKernels(mesh))
    axes, shapes = model.logical_axes(), jax.eval_shape(model.init_params, jax.random.key(0))
    return Parts(
        config=config,
        task=task,
        reward=load_object(config.reward) if config.reward else task.reward,
        tokenizer=tokenizer,
        model=model,
        mesh=mesh,
        param_shardings=mesh_lib.param_shardings(mesh, axes, shapes),
        for_sampling=_make_for_sampling(model, mesh, shapes),
    )


def _make_for_sampling(model: Transformer, mesh: Any, shapes: Any) -> Callable[[Any], Any]:
    convert = functools.partial(decoding_params, model.config)
    shardings = mesh_lib.sampling_shardings(mesh, model.decoding_axes(), jax.eval_shape(convert, shapes))
    return jax.jit(convert, out_shardings=shardings)


def make_run_recipe(config: ConfigDict, tokenizer: Tokenizer) -> Recipe:
    """The recipe with the methods the config names.

    Raises:
        ValueError: for an unknown recipe, method or option, or one out of range.
    """
    base = make_recipe(config.recipe.name, **config.recipe.options.to_dict())
    named = [name.strip() for name in config.methods.split(",") if name.strip()]
    for name in named:
        if name not in METHODS:
            raise ValueError(f"method {name!r} of config.methods is not one of {', '.join(METHODS)}")
    options = {name: config[name].to_dict() for name in named}
    if "entrocraft" in options and ":" in str(options["entrocraft"]["band"]):
        options["entrocraft"]["band"] = load_object(options["entrocraft"]["band"])
    limit = config.sampling.max_response
    if (buffer := config.recipe.options.get("overlong_buffer", 0)) > limit:
        raise ValueError(f"config.recipe.options.overlong_buffer={buffer} is above max_response={limit}")
    facts = RunFacts(num_steps=config.steps, max_response=config.sampling.max_response, encode=tokenizer.encode)
    recipe = add_methods(base, facts, options)
    layers = config.model.num_layers
    if recipe.readout is not None and not -layers <= recipe.readout.layer < layers:
        raise ValueError(f"config.e3rl.credit_layer={recipe.readout.layer} is not one of the model's {layers} layers")
    if recipe.replay is not None and recipe.replay.reflections:
        size = len(tokenizer.encode(reflection_text(recipe.replay.template, "", "")))  # raises for what it cannot write
        if size + 2 >= config.sampling.max_prompt:
            raise ValueError(
                f"config.r3.reflection_template alone has {size} tokens, config.sampling.max_prompt is "
                f"{config.sampling.max_prompt}"
            )
    return recipe


def check_rows(config: ConfigDict, recipe: Recipe, mesh: Any) -> None:
    """Raises ValueError where the rows of a step do not divide into minibatches, microbatches and shards."""
    batch, shards = config.batch, mesh_lib.row_shards(mesh)
    prompts = batch.prompts + (recipe.replay.reflections * jax.process_count() if recipe.replay else 0)
    group = recipe.rows_per_group(batch.samples)
    pieces = batch.minibatches * batch.microbatches
    if batch.samples == 1 and recipe.reads_rewards and group == 1:
        raise ValueError(
            "config.batch.samples=1 leaves nothing to compare a response with: every advantage would be 0; use 2"
        )
    if prompts % shards:
        raise ValueError(
            f"{prompts} prompts (config.batch.prompts, and config.r3.reflections) do not divide over {shards} shards"
        )
    if batch.old_stats not in ("trainer", "sampler", "auto"):
        raise ValueError(f"config.batch.old_stats={batch.old_stats!r} is not one of trainer, sampler, auto")
    if batch.old_stats == "sampler" and group > batch.samples:
        raise ValueError(
            "config.batch.old_stats='sampler' has no statistics of replayed and erased rows, which this recipe adds; "
            "use 'auto' or 'trainer'"
        )
    if batch.share_prompts and group % batch.minibatches:
        places = f" ({batch.samples} samples and places for others)" if group > batch.samples else ""
        raise ValueError(
            "config.batch.share_prompts gives every minibatch an equal part of each group, and "
            f"{group} rows{places} do not divide into {batch.minibatches} minibatches; "
            "change config.batch.samples or config.batch.minibatches, or set it to False"
        )
    if batch.share_prompts and prompts % (batch.microbatches * shards):
        raise ValueError(
            f"config.batch.share_prompts keeps a prompt's rows together, and {prompts} prompts do not divide into "
            f"{batch.microbatches} microbatches over {shards} data shards; change config.batch.prompts or "
            "config.batch.microbatches, or set it to False"
        )
    if prompts * group % (pieces * shards):
        added = "" if group == batch.samples else ", with places for replayed and erased rows"
        raise ValueError(
            f"{prompts * group} rows ({prompts} prompts x {group} rows{added}) do not divide into {batch.minibatches} "
            f"minibatches of {batch.microbatches} microbatches over {shards} data shards"
        )


def random_params(parts: Parts) -> Any:
    """Parameters from the config's seed, sharded for the update; the same on every mesh."""
    key = jax.random.key(parts.config.seed)
    return jax.jit(parts.model.init_params, out_shardings=parts.param_shardings)(key)


def make_run_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(optimizer, its learning rate by optimizer step) of a training run."""
    opt = config.optimizer
    for name, is_right in {
        "learning_rate": opt.learning_rate >= 0,
        "b1": 0 <= opt.b1 < 1,
        "b2": 0 <= opt.b2 < 1,
        "epsilon": opt.epsilon > 0,
        "weight_decay": opt.weight_decay >= 0,
        "max_grad_norm": opt.max_grad_norm > 0,
    }.items():
        if not (is_right and math.isfinite(opt[name])):
            raise ValueError(f"config.optimizer.{name}={opt[name]} is out of range")
    try:
        rate = learning_rate_schedule(
            opt.schedule,
            peak=opt.learning_rate,
            num_steps=config.steps * config.batch.epochs * config.batch.minibatches,
            warmup_steps=opt.warmup_steps,
        )
    except ValueError as error:
        raise ValueError(f"config.optimizer: {error}") from None
    optimizer = make_optimizer(
        rate,
        b1=opt.b1,
        b2=opt.b2,
        epsilon=opt.epsilon,
        weight_decay=opt.weight_decay,
        max_grad_norm=opt.max_grad_norm,
    )
    return optimizer, rate


def state_shardings(parts: Parts, optimizer: optax.GradientTransformation) -> TrainState:
    """Shardings of a train state; optimizer moments lie where their parameters do."""
    whole = mesh_lib.replicated(parts.mesh)
    params = jax.eval_shape(parts.model.init_params, jax.random.key(0))
    moments = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        parts.param_shardings,
        transform_non_params=lambda _: whole,
    )
    return TrainState(parts.param_shardings, moments, whole, whole, whole)


def sharded_state(parts: Parts, params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The train state of ``params`` at update 0."""
    make = jax.jit(
        lambda params: init_state(jax.tree.map(jnp.copy, params), optimizer),
        out_shardings=state_shardings(parts, optimizer),
    )
    return make(params)


def config_hash(config: ConfigDict) -> str:
    """16 hex digits of the config's canonical JSON."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:16]


def canonical_json(config: ConfigDict) -> str:
    """The config as JSON with sorted keys."""
    return json.dumps(config.to_dict(), sort_keys=True, indent=2)


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def remember_config(config: ConfigDict, workdir: str, *, allow_change: bool) -> None:
    """Writes WORKDIR/config.json; where another one is there already, says what changed and refuses.

    Raises:
        ValueError: where the workdir belongs to another config and ``allow_change`` is false.
    """
    path = os.path.join(workdir, "config.json")
    text = canonical_json(config)
    if os.path.exists(path):
        with open(path) as file:
            old, new = _flat(json.load(file)), _flat(json.loads(text))
        changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k, "(none)") != new.get(k, "(none)")]
        if changed and not allow_change:
            what = "; ".join(f"{k}: {old.get(k, '(none)')} -> {new.get(k, '(none)')}" for k in changed)
            raise ValueError(
                f"{workdir} holds a run with another config ({what}); choose another --workdir, "
                "or resume it all the same with --allow_config_change"
            )
    if is_main():
        with open(path + ".tmp", "w") as file:
            file.write(text)
        os.replace(path + ".tmp", path)


def load_config(workdir: str) -> ConfigDict:
    """The config a workdir was made with."""
    path = os.path.join(workdir, "config.json")
    if not os.path.exists(path):
        raise ValueError(f"{workdir} holds no run: there is no config.json in it")
    with open(path) as file:
        return ConfigDict(json.load(file)).lock()
