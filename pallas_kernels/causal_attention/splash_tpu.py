"""JAX's splash attention on a TPU, with a mask for continuations of a shared prompt."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float

from pallas_kernels.causal_attention.types import SharedPrompt

BLOCKS = (512, 256, 128)  # places read at once: the largest that pads a row by no more than an eighth


class _Continued(masks.Mask):
    """The static part of the mask of a ``SharedPrompt``; which prompt places are in use is told by segment ids."""

    def __init__(self, padded: int, size: int, each: int):
        self._key = (padded, size, each)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._key[0], self._key[0]

    def __getitem__(self, index) -> np.ndarray:
        padded, size, each = self._key
        query, key = (np.arange(*part.indices(padded)) for part in index)
        part = lambda place: np.where(place < size, -1, (place - size) // each)  # noqa: E731
        own = part(query)[:, None] == part(key)[None]
        return (query[:, None] >= key[None]) & (own | (key < size)[None])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Continued) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _block(size: int) -> int:
    return next((b for b in BLOCKS if -size % b <= size // 8), BLOCKS[-1])


def causal_attention(
    query: Float[Array, "B S N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    prompt: SharedPrompt | None,
    *,
    interpret: bool,
) -> Float[Array, "B S N H"]:
    """See the public ``causal_attention``."""
    batch, size, heads, width = query.shape
    kv_heads = keys.shape[2]
    block = _block(size)
    padding = -size % block  # behind every row, where nothing before it looks
    padded, group = size + padding, heads // kv_heads
    mask: masks.Mask = masks.CausalMask((padded, padded))
    segments = None
    if prompt is not None:
        mask = _Continued(padded, prompt.size, (size - prompt.size) // prompt.count)
        place = jnp.arange(padded)[None]
        unused = (place >= prompt.length[:, None]) & (place < prompt.size)
        segments = splash.SegmentIds(unused.astype(jnp.int32), unused.astype(jnp.int32))
    kernel = splash.make_splash_mqa_single_device(
        masks.MultiHeadMask([mask] * group),
        block_sizes=splash.BlockSizes(block, block, block, block, block, block, block, block),
        interpret=interpret,
    )

    def by_head(x, *axes):
        x = jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0)))
        return jnp.moveaxis(x.reshape(batch, padded, *axes, width), 1, -2)

    scaled = (query.astype(jnp.float32) * width**-0.5).astype(query.dtype)
    over_heads = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=ids), in_axes=(0, 0, 0, None))
    over_rows = jax.vmap(over_heads, in_axes=(0, 0, 0, None if segments is None else 0))
    output = over_rows(by_head(scaled, kv_heads, group), by_head(keys, kv_heads), by_head(values, kv_heads), segments)
    return jnp.moveaxis(output, -2, 1)[:, :size].reshape(query.shape).astype(values.dtype)
