"""The entry point: ``causal_attention``, of whole rows to themselves, for prefill and training."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.causal_attention import reference, splash_tpu, xla
from pallas_kernels.causal_attention.types import SharedPrompt

IMPLEMENTATIONS = ("auto", "xla", "splash_tpu", "cudnn", "reference")


def causal_attention(
    query: Float[Array, "B S N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    *,
    prompt: SharedPrompt | None = None,
    implementation: str = "auto",
    platform: str | None = None,
    interpret: bool = False,
) -> Float[Array, "B S N H"]:
    """Attention of every token to itself and what is before it in its row; rows are right-padded.

    Query head n reads kv head n // (N // K); scores are scaled by 1/sqrt(H), softmax is in f32. Differentiable.

    Args:
        query, keys, values: N is a multiple of K.
        prompt: None, or that rows are prompts with several continuations; see ``SharedPrompt``. Prompt places that
            are not in use are seen by no others; what they attend to themselves is left open.
        implementation: "reference" and "xla" for any device; "splash_tpu", JAX's kernel; "cudnn", on a GPU, in bf16 or
            f16 and without ``prompt``; or "auto": "splash_tpu" on a TPU where heads are a multiple of 128 wide, "cudnn"
            where it can be, else "xla". Not chosen by measurement yet: these two hold no scores, which long rows need.
        platform: "cpu", "gpu" or "tpu", what "auto" chooses for; None: the default backend.
        interpret: of ``pallas_call``, to run "splash_tpu" without a TPU.

    Returns:
        The attended values, in their dtype.

    Raises:
        ValueError: for an unknown implementation or shapes that do not fit; for "cudnn" with ``prompt``.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    if keys.shape != values.shape or keys.shape[:2] != query.shape[:2] or keys.shape[3] != query.shape[3]:
        raise ValueError(f"query {query.shape}, keys {keys.shape}, values {values.shape} are not [B,S,N|K,H]")
    if query.shape[2] % keys.shape[2]:
        raise ValueError(f"{query.shape[2]} query heads do not share {keys.shape[2]} kv heads evenly")
    if prompt is not None:
        rest = query.shape[1] - prompt.size
        if prompt.size < 1 or prompt.count < 1 or rest < prompt.count or rest % prompt.count:
            raise ValueError(
                f"{query.shape[1]} places do not hold a prompt of {prompt.size} and {prompt.count} equal continuations"
            )
    if implementation == "auto":
        implementation = _fastest(platform or jax.default_backend(), query, prompt)
    if implementation == "splash_tpu":
        return splash_tpu.causal_attention(query, keys, values, prompt, interpret=interpret)
    if implementation == "cudnn":
        if prompt is not None:
            raise ValueError("cuDNN has no mask for rows with a shared prompt; use 'xla'")
        return jax.nn.dot_product_attention(query, keys, values, is_causal=True, implementation="cudnn")
    chosen = reference if implementation == "reference" else xla
    return chosen.causal_attention(query, keys, values, prompt)


def _fastest(platform: str, query: Any, prompt: SharedPrompt | None) -> str:
    """The fused kernel that takes these arrays, if there is one."""
    width, is_half = query.shape[3], query.dtype in (jnp.bfloat16, jnp.float16)
    if platform == "tpu" and width % 128 == 0:
        return "splash_tpu"
    if platform in ("gpu", "cuda") and is_half and width % 8 == 0 and width <= 128 and prompt is None:
        return "cudnn"
    return "xla"
