"""The two entry points: ``linear_token_stats`` from hidden states, ``token_stats`` from logits."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.chips import chip_name
from pallas_kernels.linear_token_stats import fused, reference, tiles
from pallas_kernels.linear_token_stats.types import Settings, TokenStats

__all__ = ["IMPLEMENTATIONS", "TokenStats", "linear_token_stats", "token_stats"]

IMPLEMENTATIONS = ("auto", "xla", "pallas_tpu", "pallas_gpu", "reference")


def linear_token_stats(
    hidden: Float[Array, "R D"],
    weight: Float[Array, "_ _"],
    targets: Int[Array, "R"],
    *,
    temperature: float = 1.0,
    soft_cap: float | None = None,
    weight_layout: str = "DV",
    with_varentropy: bool = False,
    chunk_size: int = 4096,
    implementation: str = "auto",
    vocab_axis: str | None = None,
    chip: str | None = None,
    interpret: Any = False,
) -> TokenStats:
    """Statistics of softmax(cap(hidden W) / temperature) without an array of [rows, vocabulary].

    z = c tanh(hW / c) / temperature;  log_probs = z_y - lse z;  entropy = lse z - sum p z;
    varentropy = sum p (log p)^2 - entropy^2. Everything is accumulated in f32. Differentiable in ``hidden`` and
    ``weight``; where inputs are bf16 so are both backward products' operands, with f32 accumulation.

    Args:
        hidden: final hidden states, f32 or bf16; for "pallas_gpu" bf16 or f16, as is ``weight``.
        weight: unembedding, [D, V] or, with ``weight_layout="VD"``, [V, D].
        targets: token ids in [0, V).
        temperature: positive; divides the (capped) logits.
        soft_cap: c of the logit soft-cap, or None.
        weight_layout: "DV" or "VD" (tied embedding).
        with_varentropy: also return ``varentropy``, else that field is None.
        chunk_size: vocabulary columns held at once by the "xla" implementation, and by every gradient.
        implementation: "reference" (holds all logits), "xla" (vocabulary chunks), "pallas_tpu" and "pallas_gpu" (a
            Mosaic kernel for the forward pass; the GPU's needs a Hopper), or "auto": what was measured to be fastest
            on the chip, which is "xla" where nothing was.
        vocab_axis: inside ``jax.shard_map(..., check_vma=False)``, the mesh axis W is sharded over by
            vocabulary; targets stay global. One all-reduce of five numbers a row merges the shards.
        chip: the tile table's name of the device ("v5e", "v5p", "v6e", "h100", "h200"); None: of the first device.
        interpret: of ``pallas_call``, to run "pallas_tpu" without a TPU; or JAX's ``InterpretGPUParams`` with
            ``out_of_bounds_reads="uninitialized"``, to run "pallas_gpu" without a GPU.

    Returns:
        TokenStats of f32 [R], in nats.

    Raises:
        ValueError: for an unknown implementation or layout, a temperature that is not positive, or shapes that
            do not fit; for ``vocab_axis`` with "reference", or "pallas_gpu" with other dtypes than its own.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    if weight_layout not in ("DV", "VD"):
        raise ValueError(f"weight_layout must be 'DV' or 'VD', got {weight_layout!r}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}; greedy choice has no log-prob gradient")
    if weight.shape[weight_layout.index("D")] != hidden.shape[1]:
        raise ValueError(f"weight {weight.shape} in layout {weight_layout} does not fit hidden {hidden.shape}")
    vocab = weight.shape[weight_layout.index("V")]
    if implementation == "reference":
        if vocab_axis is not None:
            raise ValueError("the reference holds a whole vocabulary; choose another implementation for vocab_axis")
        return reference.linear_token_stats(
            hidden, weight, targets, temperature=float(temperature), soft_cap=soft_cap, weight_layout=weight_layout,
            with_varentropy=with_varentropy,
        )  # fmt: skip
    if chip is None:
        chip = chip_name(jax.devices()[0].device_kind)
    key = (chip, hidden.shape[1], vocab, hidden.dtype.name)
    if implementation == "auto":
        implementation = tiles.measured_implementation(*key)
    stages, limit = 0, None
    if implementation == "pallas_gpu":
        block_rows, block_vocab, stages = tiles.gpu_tiles(*key)
    else:
        block_rows, block_vocab, limit = tiles.tpu_tiles(*key)
    settings = Settings(
        temperature=float(temperature), soft_cap=soft_cap, weight_layout=weight_layout, with_varentropy=with_varentropy,
        chunk_size=chunk_size, implementation=implementation, vocab_axis=vocab_axis, tiles=(block_rows, block_vocab),
        vmem_limit_bytes=limit, stages=stages, interpret=interpret,
    )  # fmt: skip
    return fused.linear_token_stats(settings, hidden, weight, targets)


def token_stats(
    logits: Float[Array, "R V"],
    targets: Int[Array, "R"],
    *,
    temperature: float = 1.0,
    soft_cap: float | None = None,
    with_varentropy: bool = False,
) -> TokenStats:
    """The same statistics from logits already at hand, [R, V]; see ``linear_token_stats``."""
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}; greedy choice has no log-prob gradient")
    z = reference.scaled_logits(logits.astype(jnp.float32), temperature, soft_cap)
    return reference.stats_from_scaled_logits(z, targets, with_varentropy=with_varentropy)
