"""The TPU kernel: one row per program, all its kv heads, a block of slots at a time.

Decoding is bound by the cache's bytes: every slot is read once and used for the N // K queries of its kv head only. So
a block takes all kv heads, [1, K, H, block] of the keys and [1, K, block, H] of the values: one transfer of about a
MiB (``tiles``), where a block per head would be K small ones; rows stay apart, for their lengths differ. The grid is
(rows, parallel; blocks of the longest row, in order). A row that is at its end reads no dead block: it asks for the
next row's first block instead, which so is there when that row begins. The caches are held in HBM: XLA would else copy
a small one whole into VMEM. Where H is not a multiple of 128, XLA keeps values with the slots minor, for the minor axis
is padded to 128; the kernel reads them so, without a copy. Not timed on a TPU.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.decode_attention.reference import LOWEST
from pallas_kernels.decode_attention.tiles import VMEM_LIMIT


def _product(left, right, axis: int):
    """[K, Q, .] by a [K, ., .] over its ``axis``, f32; bf16 goes through the MXU once, f32 as often as it needs."""
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else lax.Precision.DEFAULT
    axes = (((2,), (axis,)), ((0,), (0,)))
    return lax.dot_general(left, right, axes, precision=precision, preferred_element_type=jnp.float32)


def _kernel(length, query, keys, values, output, logsumexp, maximum, total, mixed, *, block: int, slot_axis: int):
    """One (row, block of slots), slots in ``slot_axis`` of values[0]; scratch [K, Q, 1], [K, Q, 1], [K, Q, H]."""
    step = pl.program_id(1)
    live = length[pl.program_id(0)] - step * block

    @pl.when(step == 0)
    def _start():
        maximum[...] = jnp.full_like(maximum, LOWEST)
        total[...] = jnp.zeros_like(total)
        mixed[...] = jnp.zeros_like(mixed)

    def add(is_whole: bool):
        scores = _product(query[0], keys[0], 1) * query.shape[-1] ** -0.5
        v = values[0]
        if not is_whole:
            scores = jnp.where(lax.broadcasted_iota(jnp.int32, scores.shape, 2) < live, scores, LOWEST)
            v = jnp.where(lax.broadcasted_iota(jnp.int32, v.shape, slot_axis) < live, v, 0)  # 0 * NaN would be NaN
        new = jnp.maximum(maximum[...], jnp.max(scores, axis=2, keepdims=True))
        decay = jnp.exp(maximum[...] - new)
        weights = jnp.exp(scores - new)
        maximum[...] = new
        total[...] = total[...] * decay + jnp.sum(weights, axis=2, keepdims=True)
        mixed[...] = mixed[...] * decay + _product(weights.astype(v.dtype), v, slot_axis)

    pl.when(live >= block)(lambda: add(is_whole=True))
    pl.when((live > 0) & (live < block))(lambda: add(is_whole=False))

    @pl.when(step == pl.num_programs(1) - 1)
    def _finish():
        safe = jnp.where(total[...] > 0, total[...], 1.0)
        output[0] = mixed[...] / safe
        logsumexp[0] = maximum[...] + jnp.log(safe)


@functools.partial(jax.jit, static_argnames=("block", "interpret"))
def decode_attention(
    query: Float[Array, "B N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    length: Int[Array, "B"],
    *,
    block: int,
    interpret: Any,
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    """See the public ``decode_attention``; ``block`` is a multiple of 128."""
    rows, heads, size = query.shape
    kv_heads, slots = keys.shape[1], keys.shape[3]
    group = heads // kv_heads
    block = min(block, slots)
    length = jnp.clip(length, 0, slots)

    # The axis of slots within a row's values, see above.
    slot_axis = 1 if size % 128 == 0 else 2
    if slot_axis == 2:
        values = jnp.swapaxes(values, 2, 3)
    keys, values = (pltpu.with_memory_space_constraint(cache, pltpu.HBM) for cache in (keys, values))

    def by_slots(axis):
        def index(row, step, length):
            is_dead = step * block >= length[row]
            step = jnp.where(is_dead, 0, step)
            row = jnp.where(is_dead, jnp.minimum(row + 1, rows - 1), row)
            return (row, 0, 0, step) if axis == 2 else (row, 0, step, 0)

        return pl.BlockSpec((1, kv_heads, size, block) if axis == 2 else (1, kv_heads, block, size), index)

    def by_row(minor):
        return pl.BlockSpec((1, kv_heads, group, minor), lambda row, step, length: (row, 0, 0, 0))

    output, logsumexp = pl.pallas_call(
        functools.partial(_kernel, block=block, slot_axis=slot_axis),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(rows, jnp.maximum(pl.cdiv(jnp.max(length), block), 1)),
            in_specs=[by_row(size), by_slots(2), by_slots(slot_axis)],
            out_specs=[by_row(size), by_row(1)],
            scratch_shapes=[pltpu.VMEM((kv_heads, group, minor), jnp.float32) for minor in (1, 1, size)],
        ),
        out_shape=[jax.ShapeDtypeStruct((rows, kv_heads, group, minor), jnp.float32) for minor in (size, 1)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=interpret,
        name="decode_attention",
    )(length, query.reshape(rows, kv_heads, group, size), keys, values)
    return output.reshape(rows, heads, size), logsumexp.reshape(rows, heads)
