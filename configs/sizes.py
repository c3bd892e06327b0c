"""The sizes a recipe's config comes in: the embedded task on a CPU, and the papers' own settings."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.common import base_config
from entropy_rl.model import is_hf_directory, read_hf_config
from entropy_rl.model.hf_tokenizer import load_tokenizer

_QWEN3 = dict(
    qk_norm=True, num_heads=32, num_kv_heads=8, head_dim=128, rope_theta=1e6, num_layers=36, vocab_size=151_936
)
MODELS = {
    "qwen3_4b": dict(_QWEN3, embed_dim=2560, mlp_dim=9728, tied_embeddings=True),
    "qwen3_8b": dict(_QWEN3, embed_dim=4096, mlp_dim=12288),
    "r1_distill_1_5b": dict(num_layers=28, embed_dim=1536, mlp_dim=8960, num_heads=12, num_kv_heads=2, head_dim=128,
                            rope_theta=1e4, qkv_bias=True, qk_norm=False, vocab_size=151_936),
}  # fmt: skip


def embedded(size: str = "") -> ConfigDict:
    """Chains of arithmetic on a CPU: 120 steps in about two minutes, or ("tiny") a few steps in seconds, for tests."""
    config = base_config()
    config.task.options = dict(min_steps=3, max_steps=6, modulus=10, operators="+-*", noise=0.15, seed=0, size=1 << 20)
    config.log.rollouts_every = 40
    config.eval.every = 40
    # On a CPU a small model is bound by memory: pieces of 32 rows, with nothing kept but what a layer gets, stay in its
    # caches and take 60 % of the time of a whole minibatch.
    config.model.remat = "full"
    config.batch.microbatches, config.pretrain.microbatches = 4, 4
    config.batch.share_prompts = True
    config.eval.batch = 32  # as many as a step's: the same program
    config.curriculum.problems = 2048
    if size == "tiny":
        config.steps = 3
        config.optimizer.warmup_steps = 1
        config.pretrain.steps = 5
        config.pretrain.batch_size = 16
        config.pretrain.warmup_steps = 1
        config.batch.prompts, config.batch.samples = 8, 4
        config.batch.microbatches, config.pretrain.microbatches = 1, 1
        config.sampling.slots_per_device = 16
        config.eval.problems, config.eval.samples, config.eval.batch, config.eval.every = 16, 2, 16, 2
        config.checkpoint.every = 1
        config.log.rollouts_every = 3
        config.curriculum.problems, config.curriculum.samples = 32, 4
    return config


def math_options(**changes: Any) -> dict[str, Any]:
    """The options of the task "math": published sets by name, see entropy_rl/data/math_task.py."""
    options: dict[str, Any] = dict(
        directory="",  # with a folder per set; "": $ENTROPY_RL_DATA, else downloads
        data_dir=placeholder(str),  # of what TFDS prepares; None: its own default
        template="boxed",
        exclude_overlap=False,  # leave out training problems that overlap with a test problem
        extract=("boxed", "####", "answer is"),
        allow_unboxed=False,
    )
    return options | changes


def paper(model: str, *, data: str, prompts: int, minibatch: int, samples: int, response: int) -> ConfigDict:
    """A published model on a published data set, tested on MATH-500, AIME24, AMC23 and Minerva.

    ``config.base`` and ``config.tokenizer.path`` name the model's directory as Hugging Face publishes it. Learning rate
    1e-6, bf16 compute with f32 parameters, everything recomputed in the backward pass.
    """
    config = base_config()
    config.model.update(MODELS[model])
    config.model.dtype, config.model.remat = "bfloat16", "full"
    config.base, config.pretrain.steps = f"weights/{model}", 0
    config.tokenizer.path = f"weights/{model}"
    config.tokenizer.chat = model.startswith("r1_distill")  # the others are base models
    config.task.name, config.task.options = "math", math_options(train=data, test="math500,aime24,amc23,minerva")
    config.sampling.max_prompt, config.sampling.max_response = 1024, response
    config.sampling.slots_per_device = 64
    config.batch.prompts, config.batch.samples = prompts, samples
    config.batch.minibatches = prompts // minibatch
    config.batch.microbatches = minibatch * samples // 32
    config.batch.length_buckets = 4
    config.optimizer.learning_rate, config.optimizer.weight_decay = 1e-6, 0.01
    config.mesh.fsdp = 8
    config.steps = 400
    config.eval.every, config.eval.samples, config.eval.problems = 50, 32, 842
    config.eval.temperature, config.eval.top_p, config.eval.top_k = 0.6, 0.95, 20
    config.checkpoint.every = 50
    return config


def own_model(path: str) -> ConfigDict:
    """A model of your own, from a Hugging Face directory, on GSM8K (or any published sets): sizes to begin with.

    The architecture is the directory's; parameters are kept in float32, computations are in the dtype it is stored in.
    """
    config, stored = base_config(), read_hf_config(path)
    fields: dict[str, Any] = dataclasses.asdict(stored)
    scaling = fields.pop("rope_scaling")
    config.model.update(fields | {"param_dtype": "float32"})
    if scaling is not None:
        config.model.rope_scaling.update(scaling)
    config.base, config.tokenizer.path, config.tokenizer.chat = (
        path,
        path,
        getattr(load_tokenizer(path), "has_chat", False),
    )
    config.pretrain.steps = 0
    config.task.name, config.task.options = "math", math_options(train="gsm8k", test="gsm8k")
    config.sampling.max_prompt, config.sampling.max_response = 512, 1024
    config.batch.microbatches = 8
    config.optimizer.learning_rate, config.optimizer.weight_decay = 1e-6, 0.01
    config.steps = 200
    config.eval.every, config.eval.samples, config.eval.problems = 50, 4, 256
    config.log.rollouts_every = 50
    return config


def sized(arg: str, papers: dict[str, Callable[[], ConfigDict]] | None = None) -> ConfigDict:
    """The config of size ``arg``: "" or "tiny" (embedded), one of ``papers``, or the directory of a model.

    Raises:
        ValueError: for anything else, naming what there is.
    """
    if arg in ("", "tiny"):
        return embedded(arg)
    if is_hf_directory(arg):
        return own_model(arg)
    if os.sep in arg:
        raise ValueError(f"no config.json of a model in {arg}")
    if arg not in (papers or {}):
        sizes = ", ".join(["tiny", *(papers or {})])
        raise ValueError(f"there is no size {arg!r}; there are {sizes}, or none, or a Hugging Face directory")
    return (papers or {})[arg]()
