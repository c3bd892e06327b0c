"""The GPU forward pass: a Mosaic GPU kernel for Hopper (sm_90a), rows by splits of the vocabulary.

Each block of three warpgroups owns a tile of rows and a split of the vocabulary. The third warpgroup loads tiles of
hidden states and weights by TMA; the other two, each with half of the rows, multiply them by WGMMA into registers and
merge every finished tile of logits into their rows' state (m, s, t, q, z_y), which never leaves registers. The splits'
states are merged by XLA. Splits are the faster axis of the grid: blocks that run together then share few enough rows
to find them in L2.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.linear_token_stats import tiles
from pallas_kernels.linear_token_stats.types import LOWEST, RowState, Settings

COMPUTE = 2  # warpgroups that multiply
DEPTH = 64  # of the width, loaded and multiplied at once


def _scaled(settings: Settings, a: jax.Array) -> jax.Array:
    """``settings.scaled``, with a tanh made of exp2: the hardware's own is wrong in the fourth digit."""
    if (cap := settings.soft_cap) is not None:
        a = cap - 2 * cap / (1 + jnp.exp2(a * (2 * math.log2(math.e) / cap)))
    return a * (1 / settings.temperature)


def _merge(settings: Settings, state, z, is_target):
    """The state of some rows, after a tile of their logits; kernels.md section 2."""
    m, s, t, z_target, *q = state
    by_row = functools.partial(lax.broadcast_in_dim, shape=z.shape, broadcast_dimensions=(0,))
    new = jnp.maximum(m, jnp.max(z, axis=1))
    delta = jnp.maximum(m - new, -200.0)
    alpha = jnp.exp2(delta * math.log2(math.e))
    x = z - by_row(new)
    e = jnp.exp2(x * math.log2(math.e))
    xe = x * e
    if settings.with_varentropy:
        q = [alpha * (q[0] + 2 * delta * t + delta * delta * s) + jnp.sum(xe * x, axis=1)]
    t = alpha * (t + delta * s) + jnp.sum(xe, axis=1)
    s = alpha * s + jnp.sum(e, axis=1)
    z_target += jnp.sum(jnp.where(is_target, z, 0.0), axis=1)
    return new, s, t, z_target, *q


def _kernel(
    targets, hidden, weight, states, hidden_smem, weight_smem, targets_smem, states_smem, loaded, consumed, arrived,
    *, settings: Settings, layout: str, vocab: int, split_tiles: int,
):  # fmt: skip
    """One (row tile, split); ``states`` is [splits, 4 or 5, rows]: m, s, t, z_y (and q)."""
    stages, block_rows, _ = hidden_smem.shape
    block_vocab = weight_smem.shape[1 + layout.index("V")]
    rows = block_rows // COMPUTE
    steps = hidden.shape[1] // DEPTH
    row_tile, split, group = lax.axis_index("row_tile"), lax.axis_index("split"), lax.axis_index("group")
    start = split * split_tiles

    @pl.when(group == COMPUTE)
    def _load():
        plgpu.set_max_registers(40, action="decrease")

        @pl.loop(0, split_tiles * steps)
        def _step(i):
            slot = lax.rem(i, stages)

            @pl.when(i >= stages)
            def _wait():
                plgpu.barrier_wait(consumed.at[slot])

            depth = pl.ds(lax.rem(i, steps) * DEPTH, DEPTH)
            columns = pl.ds((start + lax.div(i, steps)) * block_vocab, block_vocab)
            plgpu.copy_gmem_to_smem(
                hidden.at[pl.ds(row_tile * block_rows, block_rows), depth], hidden_smem.at[slot], loaded.at[slot]
            )
            plgpu.copy_gmem_to_smem(
                weight.at[(depth, columns) if layout == "DV" else (columns, depth)],
                weight_smem.at[slot],
                loaded.at[slot],
            )

        @pl.loop(max(0, split_tiles * steps - stages), split_tiles * steps)
        def _drain(i):
            plgpu.barrier_wait(consumed.at[lax.rem(i, stages)])

    @pl.when(group < COMPUTE)
    def _compute():
        plgpu.set_max_registers(232, action="increase")
        own_rows = pl.ds(row_tile * block_rows + group * rows, rows)
        plgpu.copy_gmem_to_smem(targets.at[own_rows], targets_smem.at[group], arrived.at[group])
        plgpu.barrier_wait(arrived.at[group])
        y = targets_smem[group]

        def tile(j, state):
            def multiply(accumulator):
                def step(k, carry):
                    i = j * steps + k
                    slot = lax.rem(i, stages)
                    plgpu.barrier_wait(loaded.at[slot])
                    w = weight_smem.at[slot]
                    plgpu.wgmma(
                        accumulator,
                        hidden_smem.at[slot, pl.ds(group * rows, rows)],
                        w if layout == "DV" else w.T,
                    )
                    plgpu.wgmma_wait(1)  # the one before this is done

                    @pl.when(k > 0)
                    def _release():
                        plgpu.barrier_arrive(consumed.at[lax.rem(i - 1, stages)])

                    return carry

                lax.fori_loop(0, steps, step, None)
                return accumulator[...]

            a = pl.run_scoped(multiply, plgpu.ACC((rows, block_vocab), jnp.float32))
            plgpu.barrier_arrive(consumed.at[lax.rem(j * steps + steps - 1, stages)])
            first = (start + j) * block_vocab
            z = _scaled(settings, a)
            columns = lax.broadcasted_iota(jnp.int32, z.shape, 1)
            if vocab % (block_vocab * split_tiles):
                # LOWEST is finite, and every split has a column: e and x e of these columns are 0.
                z = lax.cond(
                    first + block_vocab > vocab,
                    lambda z: jnp.where(columns < vocab - first, z, LOWEST),
                    lambda z: z,
                    z,
                )
            is_target = columns == lax.broadcast_in_dim(y - first, z.shape, (0,))
            return _merge(settings, state, z, is_target)

        zeros = jnp.zeros((rows,), jnp.float32)
        count = states.shape[1]
        state = lax.fori_loop(0, split_tiles, tile, (zeros + LOWEST, *[zeros] * (count - 1)))
        for i, value in enumerate(state):
            states_smem[group, i] = value
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(states_smem.at[group], states.at[split, :, own_rows])
        plgpu.wait_smem_to_gmem(0)


def _padded(x: jax.Array, *shape: int) -> jax.Array:
    """``x`` followed by zeros, or itself where that is its shape."""
    return x if x.shape == shape else jnp.pad(x, [(0, new - old) for new, old in zip(shape, x.shape, strict=True)])


def _aligned(layout: str, hidden: jax.Array, weight: jax.Array, block_rows: int, block_vocab: int):
    """(hidden, weight, swizzle in bytes), padded to what TMA takes: multiples of its tiles of 8 by swizzle / 2.

    What lies beyond that TMA reads as 0. A narrower swizzle spares a copy of a weight whose rows are no multiple of 64.
    """
    (rows, width), vocab = hidden.shape, weight.shape[layout.index("V")]
    unit = 16 if layout == "DV" else 8
    vocab = max(pl.cdiv(vocab, unit) * unit, block_vocab)
    width = pl.cdiv(width, DEPTH) * DEPTH
    hidden = _padded(hidden, max(pl.cdiv(rows, 8) * 8, block_rows), width)
    weight = _padded(weight, *((width, vocab) if layout == "DV" else (vocab, width)))
    return hidden, weight, plgpu.find_swizzle(16 * math.gcd(weight.shape[1], 64))


def row_state(settings: Settings, hidden: jax.Array, weight: jax.Array, targets: jax.Array) -> RowState:
    """The state of every row after the whole (local) vocabulary; see ``RowState``.

    ``weight`` is copied only where its width is not a multiple of 64, or its vocabulary one of 16 ("DV") or 8 ("VD").

    Raises:
        ValueError: for operands that are not both bfloat16 or both float16.
    """
    if hidden.dtype != weight.dtype or hidden.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            "pallas_gpu multiplies bfloat16 or float16: cast both operands, or choose implementation 'xla'; got "
            f"hidden {hidden.dtype} and weight {weight.dtype}"
        )
    layout = settings.weight_layout
    if settings.interpret and layout == "VD":  # the interpreter knows no transposed references
        weight, layout = weight.T, "DV"
    rows, vocab = hidden.shape[0], weight.shape[layout.index("V")]
    block_rows, block_vocab = settings.tiles
    block_vocab = min(block_vocab, pl.cdiv(vocab, 64) * 64)
    row_tiles = pl.cdiv(rows, block_rows)
    split_tiles = tiles.gpu_split_tiles(row_tiles, pl.cdiv(vocab, block_vocab))
    splits = pl.cdiv(pl.cdiv(vocab, block_vocab), split_tiles)

    hidden, weight, swizzle = _aligned(layout, hidden, weight, block_rows, block_vocab)
    own = (targets >= 0) & (targets < vocab)
    targets = _padded(jnp.where(own, targets, -1).astype(jnp.int32), row_tiles * block_rows)

    count = 4 + settings.with_varentropy
    stages, dtype = settings.stages, hidden.dtype
    transforms = (plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle))
    block_weight = (DEPTH, block_vocab) if layout == "DV" else (block_vocab, DEPTH)
    own_rows = block_rows // COMPUTE
    states = plgpu.kernel(
        functools.partial(_kernel, settings=settings, layout=layout, vocab=vocab, split_tiles=split_tiles),
        out_type=jax.ShapeDtypeStruct((splits, count, row_tiles * block_rows), jnp.float32),
        scratch_types=[
            plgpu.SMEM((stages, block_rows, DEPTH), dtype, transforms=transforms),
            plgpu.SMEM((stages, *block_weight), dtype, transforms=transforms),
            plgpu.SMEM((COMPUTE, own_rows), jnp.int32),
            plgpu.SMEM((COMPUTE, count, own_rows), jnp.float32),
            plgpu.Barrier(num_arrivals=2, num_barriers=stages),
            plgpu.Barrier(num_arrivals=COMPUTE, num_barriers=stages),
            plgpu.Barrier(num_barriers=COMPUTE),
        ],
        grid=(row_tiles, splits),
        grid_names=("row_tile", "split"),
        num_threads=COMPUTE + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=settings.interpret,
        kernel_name="linear_token_stats",
    )(targets, hidden, weight)
    m, s, t, z_target, *q = (states[:, i, :rows] for i in range(count))
    parts = RowState(m, s, t, q[0] if q else jnp.zeros_like(m), z_target)
    parts = parts.moved_to(jnp.max(m, axis=0, keepdims=True))
    return RowState(parts.m[0], *(jnp.sum(part, axis=0) for part in parts[1:]))
