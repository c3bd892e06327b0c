"""The sizes a recipe's config comes in: the embedded task on a CPU, and the papers' own settings."""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs.common import base_config

_QWEN3 = dict(qk_norm=True, num_heads=32, num_kv_heads=8, head_dim=128, rope_theta=1e6, num_layers=36)
MODELS = {
    "qwen3_4b": dict(_QWEN3, embed_dim=2560, mlp_dim=9728, tied_embeddings=True),
    "qwen3_8b": dict(_QWEN3, embed_dim=4096, mlp_dim=12288),
    "r1_distill_1_5b": dict(num_layers=28, embed_dim=1536, mlp_dim=8960, num_heads=12, num_kv_heads=2, head_dim=128,
                            rope_theta=1e4, qkv_bias=True, qk_norm=False),
}  # fmt: skip


def embedded(size: str = "") -> ConfigDict:
    """Chains of arithmetic on a CPU: 120 steps in about two minutes, or ("tiny") a few steps in seconds, for tests."""
    config = base_config()
    config.task.options = dict(min_steps=3, max_steps=6, modulus=10, operators="+-*", noise=0.15, seed=0, size=1 << 20)
    config.log.rollouts_every = 40
    config.eval.every = 40
    config.curriculum.problems = 2048
    if size == "tiny":
        config.steps = 3
        config.optimizer.warmup_steps = 1
        config.pretrain.steps = 5
        config.pretrain.batch_size = 16
        config.pretrain.warmup_steps = 1
        config.batch.prompts, config.batch.samples = 8, 4
        config.sampling.slots_per_device = 16
        config.eval.problems, config.eval.samples, config.eval.batch, config.eval.every = 16, 2, 16, 2
        config.checkpoint.every = 1
        config.log.rollouts_every = 3
        config.curriculum.problems, config.curriculum.samples = 32, 4
    return config


def paper(model: str, *, data: str, prompts: int, minibatch: int, samples: int, response: int) -> ConfigDict:
    """A published model on a published data set, from files: ``data``.parquet of (problem, answer), test.parquet.

    ``config.base`` and ``config.tokenizer.path`` name where the model's weights and tokenizer are. Learning rate 1e-6,
    bf16 compute with f32 parameters, everything recomputed in the backward pass.
    """
    config = base_config()
    config.model.update(MODELS[model])
    config.model.dtype, config.model.remat = "bfloat16", "full"
    config.base, config.pretrain.steps = f"weights/{model}", 0
    config.tokenizer.path = f"weights/{model}/tokenizer.model"
    config.task.name = "files"
    config.task.options = dict(train=f"{data}.parquet", test="test.parquet",
                               template="{problem}\nPut the final answer in \\boxed{}.\n")  # fmt: skip
    config.sampling.max_prompt, config.sampling.max_response = 1024, response
    config.sampling.slots_per_device = 64
    config.batch.prompts, config.batch.samples = prompts, samples
    config.batch.minibatches = prompts // minibatch
    config.batch.microbatches = minibatch * samples // 32
    config.optimizer.learning_rate, config.optimizer.weight_decay = 1e-6, 0.01
    config.mesh.fsdp = 8
    config.steps = 400
    config.eval.every, config.eval.samples, config.eval.problems = 50, 32, 512
    config.eval.temperature, config.eval.top_p, config.eval.top_k = 0.6, 0.95, 20
    config.checkpoint.every = 50
    return config


def sized(arg: str, papers: dict[str, Callable[[], ConfigDict]] | None = None) -> ConfigDict:
    """The config of size ``arg``: "" or "tiny" (embedded), or one of ``papers``; ValueError names those there are."""
    if arg in ("", "tiny"):
        return embedded(arg)
    if arg not in (papers or {}):
        raise ValueError(f"there is no size {arg!r}; there are {', '.join(['tiny', *(papers or {})])}, or none")
    return (papers or {})[arg]()
