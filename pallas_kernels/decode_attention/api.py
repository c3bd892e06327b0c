"""The entry point: ``decode_attention``, one query per row over the row's live slots."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.chips import chip_name
from pallas_kernels.decode_attention import pallas_tpu, reference, tiles, xla

IMPLEMENTATIONS = ("auto", "xla", "pallas_tpu", "reference")


def decode_attention(
    query: Float[Array, "B N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    length: Int[Array, "B"],
    *,
    implementation: str = "auto",
    chip: str | None = None,
    interpret: Any = False,
    block: int | None = None,
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    """Attention of one token per row to the first ``length`` slots of the row's cache.

    z_s = q k_s / sqrt(H) for s < length;  logsumexp = log sum exp z;  output = sum exp(z - logsumexp) v. Query head n
    reads kv head n // (N // K). Results over disjoint sets of slots merge: with l = logaddexp(l_1, l_2) the output is
    exp(l_1 - l) o_1 + exp(l_2 - l) o_2. For sampling: "pallas_tpu" has no gradient.

    Args:
        query: the new token's, not yet scaled; N is a multiple of K.
        keys: slots in the minor axis.
        values: slots before the head's width.
        length: slots in use, clipped to [0, S]. What other slots hold changes nothing, be it NaN or inf.
        implementation: "reference", "xla" (the whole window, masked), "pallas_tpu" (a Mosaic kernel that reads live
            blocks only), or "auto": what was measured to be fastest on the chip, "xla" where nothing was. Give
            "pallas_tpu" whole arrays with S a multiple of 128: XLA copies a slice of a stack of layers before the
            kernel runs, and keys of another S into another layout.
        chip: the tile table's name of the TPU ("v5e", "v5p", "v6e"); None: of the first device, if that is a TPU.
        interpret: of ``pallas_call``, to run "pallas_tpu" without a TPU.
        block: slots that "pallas_tpu" reads at once, a multiple of 128; None: the tile table's.

    Returns:
        output and logsumexp (nats), f32, or f64 where an input is. Rows of length 0: output 0, logsumexp -1e30.

    Raises:
        ValueError: for an unknown implementation, shapes that do not fit, a window of no slots, a block that is not a
            positive multiple of 128; with "pallas_tpu" also unless query, keys and values are all f32 or all bf16.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    rows, heads, size = query.shape
    _, kv_heads, _, slots = keys.shape
    if keys.shape != (rows, kv_heads, size, slots) or values.shape != (rows, kv_heads, slots, size):
        raise ValueError(
            f"query {query.shape}, keys {keys.shape}, values {values.shape} are not [B,N,H], [B,K,H,S], [B,K,S,H]"
        )
    if length.shape != (rows,):
        raise ValueError(f"length {length.shape} does not give one length for each of {rows} rows")
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not share {kv_heads} kv heads evenly")
    if slots == 0:
        raise ValueError("the cache's window has no slots")
    if block is not None and (block <= 0 or block % 128):
        raise ValueError(f"block must be a positive multiple of 128, got {block}")
    if implementation == "reference":
        return reference.decode_attention(query, keys, values, length)
    if chip is None:
        chip = chip_name(jax.devices()[0].device_kind)
    dtype = keys.dtype.name
    if implementation == "auto":
        implementation = tiles.measured_implementation(chip, kv_heads, heads // kv_heads, size, dtype)
    if implementation == "xla":
        return xla.decode_attention(query, keys, values, length)
    if {query.dtype, keys.dtype, values.dtype} not in ({jnp.dtype(jnp.float32)}, {jnp.dtype(jnp.bfloat16)}):
        raise ValueError(f"pallas_tpu takes f32 or bf16, got {query.dtype}, {keys.dtype} and {values.dtype}")
    block = block or tiles.tpu_block(chip, kv_heads, size, dtype)
    return pallas_tpu.decode_attention(query, keys, values, length, block=block, interpret=interpret)
