"""The TPU forward pass: one Mosaic kernel, a tile of rows resident while the vocabulary streams past.

Grid (rows / block_rows, parallel; vocabulary / block_vocab, in order). Row state (m, s, t, q, z_y) lives in VMEM; only
the last vocabulary tile is masked. Blocks of rows are [1, 1, block_rows], which needs no padding to 128 lanes and,
unlike one-dimensional blocks, no look at the machine's own chip while lowering for another one.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.linear_token_stats.types import LOWEST, RowState, Settings


def _kernel(targets, hidden, weight, *refs, settings: Settings, vocab: int, block_vocab: int):
    """One (row tile, vocabulary tile): ``refs`` are the outputs m, s, t, z_y (and q), then scratch of the same."""
    count = len(refs) // 2
    outputs, scratch = refs[:count], refs[count:]
    m, s, t, z_target = scratch[:4]
    tile, last = pl.program_id(1), pl.num_programs(1) - 1

    @pl.when(tile == 0)
    def _start():
        m[...] = jnp.full_like(m, LOWEST)
        for state in scratch[1:]:
            state[...] = jnp.zeros_like(state)

    contract = 0 if settings.weight_layout == "DV" else 1
    a = lax.dot_general(hidden[...], weight[...], (((1,), (contract,)), ((), ())), preferred_element_type=jnp.float32)
    z = settings.scaled(a)
    columns = lax.broadcasted_iota(jnp.int32, z.shape, 1)
    is_target = columns == targets[...].reshape(-1, 1) - tile * block_vocab

    def merge(z, fresh):
        largest = z if fresh is None else jnp.where(fresh, z, LOWEST)
        old = m[...]
        new = jnp.maximum(old, jnp.max(largest, axis=1, keepdims=True))
        delta = jnp.maximum(old - new, -200.0)
        alpha = jnp.exp(delta)
        x = largest - new
        e = jnp.exp(x)
        xe = x * e
        if fresh is not None:
            e, xe = jnp.where(fresh, e, 0.0), jnp.where(fresh, xe, 0.0)
        if settings.with_varentropy:
            q = scratch[4]
            squares = xe * x if fresh is None else jnp.where(fresh, xe * x, 0.0)
            q[...] = alpha * (q[...] + 2 * delta * t[...] + delta**2 * s[...]) + jnp.sum(squares, 1, keepdims=True)
        t[...] = alpha * (t[...] + delta * s[...]) + jnp.sum(xe, 1, keepdims=True)
        s[...] = alpha * s[...] + jnp.sum(e, 1, keepdims=True)
        m[...] = new
        here = is_target if fresh is None else is_target & fresh
        z_target[...] += jnp.sum(jnp.where(here, z, 0.0), 1, keepdims=True)

    tail = vocab % block_vocab
    if tail:
        pl.when(tile != last)(lambda: merge(z, None))
        pl.when(tile == last)(lambda: merge(z, columns < tail))
    else:
        merge(z, None)

    @pl.when(tile == last)
    def _finish():
        for output, state in zip(outputs, scratch, strict=True):
            output[...] = state[...].reshape(output.shape)


def row_state(settings: Settings, hidden: jax.Array, weight: jax.Array, targets: jax.Array) -> RowState:
    """The state of every row after the whole (local) vocabulary; see ``RowState``."""
    rows, width = hidden.shape
    vocab = weight.shape[settings.weight_layout.index("V")]
    block_rows, block_vocab = settings.tiles
    block_vocab = min(block_vocab, -(-vocab // 128) * 128)
    block_rows = min(block_rows, -(-rows // 128) * 128)
    tiles = pl.cdiv(rows, block_rows)
    by_rows = pl.BlockSpec((1, 1, block_rows), lambda i, j: (i, 0, 0))
    weights = pl.BlockSpec((width, block_vocab), lambda i, j: (0, j))
    if settings.weight_layout == "VD":
        weights = pl.BlockSpec((block_vocab, width), lambda i, j: (j, 0))
    count = 4 + settings.with_varentropy
    found = pl.pallas_call(
        functools.partial(_kernel, settings=settings, vocab=vocab, block_vocab=block_vocab),
        grid=(tiles, pl.cdiv(vocab, block_vocab)),
        in_specs=[by_rows, pl.BlockSpec((block_rows, width), lambda i, j: (i, 0)), weights],
        out_specs=[by_rows] * count,
        out_shape=[jax.ShapeDtypeStruct((tiles, 1, block_rows), jnp.float32)] * count,
        scratch_shapes=[pltpu.VMEM((block_rows, 1), jnp.float32)] * count,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=settings.vmem_limit_bytes
        ),
        interpret=settings.interpret,
        name="linear_token_stats",
    )(jnp.pad(targets, (0, tiles * block_rows - rows)).reshape(tiles, 1, block_rows), hidden, weight)
    m, s, t, z_target, *q = (value.reshape(-1)[:rows] for value in found)
    return RowState(m, s, t, q[0] if q else jnp.zeros_like(m), z_target)
