"""Evaluates a run's checkpoint or a Hugging Face directory: mean@k, pass@k, maj@k with 95 % intervals over problems.

    python -m experiments.evaluate --workdir=runs/quickstart --step=best --num_samples=16
    python -m experiments.evaluate --workdir=runs/mine --benchmarks=gsm8k,math500,aime24 --num_samples=32
    python -m experiments.evaluate --model=/models/Qwen3-4B --benchmarks=math500 --num_samples=4 --out=scores

Without --benchmarks it is the run's own held-out problems, as during training: greedy accuracy, mean@k and pass@k,
added to WORKDIR/evaluations.jsonl. With them it is published sets by name (entropy_rl/data/math_sets.py):
OUT/NAME.jsonl keeps every response, OUT/results.json the scores and the decoding settings; a command that was killed
goes on where it stopped and ends with the same numbers. OUT is WORKDIR/benchmarks/STEP where it is not given.
"""

import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from configs.sizes import own_model
from entropy_rl.checkpoint import Checkpointer
from entropy_rl.data.math_sets import MATH_SETS
from entropy_rl.data.math_task import MathTask
from entropy_rl.data.tasks import Chains, Problem
from entropy_rl.data.templates import prompt_template
from entropy_rl.model import is_hf_directory
from entropy_rl.parallel import multihost
from entropy_rl.parallel.multihost import is_main
from entropy_rl.verify.extraction import EXTRACTORS
from entropy_rl.verify.grader import Grader
from experiments.benchmarking import add_result, check_settings, fingerprint, sample_benchmark, score, table
from experiments.building import (
    Parts,
    build,
    config_hash,
    load_config,
    make_run_optimizer,
    make_run_recipe,
    one_sentence,
    random_params,
    sharded_state,
)
from experiments.evaluation import make_evaluator
from experiments.flags import keep_compiled
from experiments.pretrain import base_params

_ONLY_WITH_BENCHMARKS = (
    "model", "out", "data", "top_p", "top_k", "min_p", "batch", "max_response", "slots", "seed", "system", "chat",
    "template",
)  # fmt: skip
TEXT_TASKS = {"math": "boxed", "gsm8k": "{problem}\n", "files": "{problem}\n"}  # and their own templates


def test_sets() -> list[str]:
    """Names of the sets with a test split."""
    return [name for name, own in MATH_SETS.items() if "test" in own.splits]


def _step(checkpointer: Checkpointer, wanted: str) -> int:
    steps = checkpointer.steps()
    if not steps:
        raise ValueError("the workdir has no checkpoint yet; --step=base evaluates the policy before training")
    if wanted == "latest":
        return steps[-1]
    if wanted == "best":
        best = checkpointer.best_step()
        return steps[-1] if best is None else best
    if not wanted.isdigit() or int(wanted) not in steps:
        raise ValueError(f"--step={wanted} is not base, best, latest or one of the kept checkpoints {steps}")
    return int(wanted)


def step_number(workdir: str, step: str) -> int:
    """The checkpoint that "best", "latest" or a step's number means; 0 for "base"."""
    if step == "base":
        return 0
    checkpointer = Checkpointer(os.path.join(workdir, "checkpoints"))
    number = _step(checkpointer, step)
    checkpointer.close()
    return number


def policy_at(parts: Parts, workdir: str, step: str) -> tuple[Any, int, Any]:
    """(parameters, step, statistics to erase by or None) of a run at "base", "best", "latest" or a step's number."""
    recipe = make_run_recipe(parts.config, parts.tokenizer)
    if step == "base":
        return base_params(parts, workdir), 0, None
    checkpointer = Checkpointer(os.path.join(workdir, "checkpoints"))
    number = _step(checkpointer, step)
    template = sharded_state(parts, random_params(parts), make_run_optimizer(parts.config)[0])
    params = checkpointer.restore(template, number)[0].params
    running = None
    if recipe.erasing is not None:
        running = checkpointer.restore_stages(recipe.init_states(), number)["erasing"]
    checkpointer.close()
    return params, number, running


def evaluate(workdir: str, *, step: str, samples: int | None, problems: int | None, temperature: float | None) -> dict:
    """Evaluates a run on its held-out problems, prints a table and adds the numbers to WORKDIR/evaluations.jsonl."""
    with one_sentence():
        config = load_config(workdir).copy_and_resolve_references()
        with config.unlocked():
            config.eval.samples = samples or config.eval.samples
            config.eval.problems = problems or config.eval.problems
            if temperature is not None:
                config.eval.temperature = temperature
            if not math.isfinite(config.eval.temperature):
                raise ValueError(f"--temperature={temperature} is no temperature")
        parts = build(config, workdir)
        recipe = make_run_recipe(config, parts.tokenizer)
        params, number, running = policy_at(parts, workdir, step)
        held_out = parts.problems("test")[: config.eval.problems]
    estimates = make_evaluator(parts, held_out, recipe.erasing)(params, running)
    record = {
        "step": number,
        "problems": len(held_out),
        "samples": config.eval.samples,
        "temperature": config.eval.temperature,
    }
    record |= {name: [e.mean, e.low, e.high] for name, e in estimates.items()}
    if jax.process_index() == 0:
        name = "base policy" if step == "base" else f"step {number}"
        print(f"{name}, {len(held_out)} held-out problems, T={config.eval.temperature:g}, 95 % intervals:")
        for name, value in estimates.items():
            print(f"{name:<{16 if running is not None else 10}}{value}")
        with open(os.path.join(workdir, "evaluations.jsonl"), "a") as file:
            file.write(json.dumps(record) + "\n")
    return record


def _config_and_model(workdir: str, model: str, changes: dict[str, Any]) -> ConfigDict:
    """The config to evaluate with: a run's, or one made for a directory; ``changes`` are dotted keys, None is none."""
    if bool(workdir) == bool(model):
        raise ValueError("name what to evaluate: either --workdir=RUN or --model=DIRECTORY")
    if workdir:
        config = load_config(workdir).copy_and_resolve_references()
    elif is_hf_directory(model):
        config = own_model(os.path.abspath(model))
        config.model.param_dtype = config.model.dtype  # nothing is trained
    else:
        raise ValueError(f"--model={model} is no Hugging Face directory: there is no config.json in it")
    with config.unlocked():
        config.update_from_flattened_dict({name: value for name, value in changes.items() if value is not None})
    if not math.isfinite(config.eval.temperature):
        raise ValueError(f"--temperature={config.eval.temperature:g} is no temperature")
    if config.eval.temperature == 0 and config.eval.samples > 1:
        raise ValueError("--temperature=0 draws the same response again and again: use --num_samples=1")
    return config


def _template(config: ConfigDict, template: str | None) -> str:
    """Of prompts: the one asked for, else the run's own where its task reads text."""
    return template or config.task.options.get("template", TEXT_TASKS.get(config.task.name, "boxed"))


def _grading(config: ConfigDict) -> dict[str, Any]:
    """The grader's options of the run, where its task reads text."""
    own = config.task.options if config.task.name in TEXT_TASKS else {}
    return {"extract": tuple(own.get("extract", EXTRACTORS)), "allow_unboxed": own.get("allow_unboxed", False)}


def _math_tasks(names: Sequence[str], config: ConfigDict, *, data: str, template: str | None) -> dict[str, MathTask]:
    """A task per set, with the prompts and the grading the config's own task has where it reads text."""
    own = config.task.options if config.task.name in TEXT_TASKS else {}
    options = _grading(config)
    directory = data or (own.get("directory", "") if config.task.name in ("math", "gsm8k") else "")
    text = _template(config, template)
    if "boxed" in prompt_template(text) and "boxed" not in options["extract"]:
        marks = ", ".join(options["extract"])
        raise ValueError(f"the prompt asks for \\boxed{{}}, but the run looks for {marks}; choose another --template")
    for name in names:
        if name not in test_sets():
            what = "is a set to train on" if name in MATH_SETS else "is no set"
            raise ValueError(f"{name!r} {what}; benchmarks are {', '.join(test_sets())}")
    return {
        name: MathTask(
            train="",
            test=name,
            directory=directory,
            template=text,
            grader=Grader(**options),
            data_dir=own.get("data_dir"),
            direct=config.task.name == "gsm8k" and name == "gsm8k" and not data,
        )
        for name in names
    }


def _settings(config: ConfigDict, **own: Any) -> dict[str, Any]:
    """What determines the responses: kept with the scores, and against mixing two evaluations in one directory."""
    options, sampling = config.eval, config.sampling
    return own | {
        "num_samples": options.samples, "temperature": options.temperature, "top_p": options.top_p,
        "top_k": options.top_k, "min_p": options.min_p, "max_response": sampling.max_response,
        "chat": config.tokenizer.chat, "system": config.tokenizer.system, "seed": config.seed, "batch": options.batch,
        "slots_per_device": sampling.slots_per_device, "dtype": config.model.dtype,
    }  # fmt: skip


def benchmark(
    names: Sequence[str], *, workdir: str = "", model: str = "", step: str = "latest", out: str = "", data: str = "",
    changes: dict[str, Any] | None = None, template: str | None = None, problems: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Samples and scores published sets, prints a table and writes OUT/results.json.

    Args:
        names: of the sets.
        workdir, model: a run, or a Hugging Face directory; one of them is "".
        step: of the run.
        out: where everything goes; "": WORKDIR/benchmarks/STEP.
        data: a directory with a folder per set; "": as in training.
        changes: config keys to set, dotted.
        template: of prompts; None: the run's own, or "boxed".
        problems: at most so many of each set, the first ones.
    """
    with one_sentence():
        if not names:
            raise ValueError(f"--benchmarks names no set; there are {', '.join(test_sets())}")
        if model and not out:
            raise ValueError("--model needs --out=DIRECTORY for the responses and scores")
        config = _config_and_model(workdir, model, changes or {})
        tasks = _math_tasks(names, config, data=data, template=template)
        chosen = {name: task.problems("test")[: problems or None] for name, task in tasks.items()}
        # A tokenizer of its own is all the model needs to know of the run's task, whose data may not be here.
        parts = build(config, workdir or out, task=Chains() if config.tokenizer.path else None)
        configs = {name: _for_prompts(config, parts, own) for name, own in chosen.items()}
        number = 0
        if workdir:
            number = step_number(workdir, step)
        out = out or os.path.join(workdir, "benchmarks", step if step == "base" else str(number))
        grading = _grading(config)
        settings = _settings(
            config, model=_description(workdir, model, step, number), template=_template(config, template),
            problems=problems, extract=list(grading["extract"]), allow_unboxed=grading["allow_unboxed"],
        )  # fmt: skip
        check_settings(settings, {name: fingerprint(own) for name, own in chosen.items()}, out)
        params = policy_at(parts, workdir, step)[0] if workdir else base_params(parts, out)
    params = parts.for_sampling(params)
    results: dict[str, Any] = {}
    for name, task in tasks.items():
        with one_sentence(), task.grader:
            own, path = dataclasses.replace(parts, config=configs[name]), os.path.join(out, f"{name}.jsonl")
            sample_benchmark(
                own, task, params, chosen[name], path, name=name, samples=config.eval.samples, seed=config.seed
            )
            results[name] = {"problems": len(chosen[name])} | score(path, config.eval.samples)
            _tell_failures(name, task.grader.counts)
            if is_main():
                add_result(settings, name, results[name], out)
    if is_main():
        print(table(settings, results))
        print(f"responses and results.json are in {out}")
    return results


def _description(workdir: str, model: str, step: str, number: int) -> str:
    """Which policy: its place, step and a fingerprint that changes when it is written anew."""
    if model:
        path = os.path.abspath(model)
        files = sorted(name for name in os.listdir(path) if name.endswith((".safetensors", ".json")))
        what = [[name, os.path.getsize(os.path.join(path, name))] for name in files]
        times = [int(os.path.getmtime(os.path.join(path, name))) for name in files]
        return f"{path} ({hashlib.sha256(json.dumps([what, times]).encode()).hexdigest()[:8]})"
    run = f"{os.path.abspath(workdir)}, {'base policy' if step == 'base' else f'step {number}'}"
    return f"{run} (config {config_hash(load_config(workdir))[:8]})"


def _tell_failures(name: str, counts: dict[str, int]) -> None:
    failed = {why: count for why, count in counts.items() if why not in ("quick", "algebra", "no_answer")}
    if failed:
        what = ", ".join(f"{count} {why}" for why, count in failed.items())
        print(f"{name}: answers graded 0 without being compared in full: {what} (docs/grader.md)", file=sys.stderr)


def _for_prompts(config: ConfigDict, parts: Parts, problems: Sequence[Problem]) -> ConfigDict:
    """The config with room for the longest prompt, up to a multiple of 64: no problem of a benchmark is left out."""
    longest = max(len(parts.tokenizer.prompt_ids(problem.prompt)) for problem in problems)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.sampling.max_prompt = -(-longest // 64) * 64
    return config


def _flag_changes(f: flags.FlagValues) -> dict[str, Any]:
    """Config keys the flags of a benchmark set."""
    return {
        "eval.samples": f.num_samples, "eval.temperature": f.temperature, "eval.top_p": f.top_p, "eval.top_k": f.top_k,
        "eval.min_p": f.min_p, "eval.batch": f.batch, "sampling.max_response": f.max_response,
        "sampling.slots_per_device": f.slots, "seed": f.seed, "tokenizer.system": f.system, "tokenizer.chat": f.chat,
    }  # fmt: skip


def main(argv) -> None:
    """Runs the module."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    keep_compiled()
    f = flags.FLAGS
    if f.multihost:
        multihost.initialize()
    if f["benchmarks"].present:
        with one_sentence():
            if f.model and f["step"].present:
                raise ValueError("--step is a run's; a --model has none")
        names = list(dict.fromkeys(name.strip() for name in f.benchmarks if name.strip()))
        benchmark(
            names, workdir=f.workdir, model=f.model, step=f.step, out=f.out, data=f.data, changes=_flag_changes(f),
            template=f.template, problems=f.problems,
        )  # fmt: skip
        return
    with one_sentence():
        for name in _ONLY_WITH_BENCHMARKS:
            if f[name].present:
                raise ValueError(f"--{name} has an effect only with --benchmarks")
        if not f.workdir:
            raise ValueError("name a run with --workdir, or a model with --model and --benchmarks")
    evaluate(f.workdir, step=f.step, samples=f.num_samples, problems=f.problems, temperature=f.temperature)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "", "A run.")
    flags.DEFINE_string("step", "latest", "Of the run: a checkpoint's step, latest, best, or base (before training).")
    flags.DEFINE_string("model", "", "A Hugging Face directory, in place of a run.")
    flags.DEFINE_list("benchmarks", [], f"Published sets, by commas: {', '.join(test_sets())}.")
    flags.DEFINE_string("out", "", "Where responses and scores of benchmarks go.")
    flags.DEFINE_string("data", "", "A directory with a folder per set; else $ENTROPY_RL_DATA, else downloads.")
    flags.DEFINE_integer("num_samples", None, "Responses per problem; default the run's, or 4.", lower_bound=1)
    flags.DEFINE_integer("problems", None, "At most so many problems of each set, the first ones.", lower_bound=1)
    flags.DEFINE_float("temperature", None, "Sampling temperature; 0 is greedy. Default the run's.", lower_bound=0.0)
    flags.DEFINE_float("top_p", None, "Nucleus mass.", lower_bound=0.0, upper_bound=1.0)
    flags.DEFINE_integer("top_k", None, "Most probable tokens to draw from.", lower_bound=1)
    flags.DEFINE_float("min_p", None, "Least probability, relative to the largest.", lower_bound=0.0, upper_bound=1.0)
    flags.DEFINE_integer("max_response", None, "Tokens of a response; default the run's, or 1024.", lower_bound=1)
    flags.DEFINE_integer("batch", None, "Prompts sampled at once.", lower_bound=1)
    flags.DEFINE_integer("slots", None, "Rows decoded at once on each device.", lower_bound=1)
    flags.DEFINE_integer("seed", None, "Of the noise.", lower_bound=0, upper_bound=2**32 - 1)
    flags.DEFINE_bool("multihost", False, "Join the other processes of this evaluation (jax.distributed).")
    flags.DEFINE_bool("chat", None, "Whether prompts go into the chat template; default where there is one.")
    flags.DEFINE_string("system", None, "System message of the chat.")
    flags.DEFINE_string("template", None, "Text around a problem: plain, boxed, r1, or one with {problem}.")
    app.run(main)
