"""The rewindable key/value cache: plain arrays with a length per row, and attention over them.

Rewinding a row is a smaller ``length``: nothing is copied, nothing recomputed, and it works inside jit. Slots at or
past a row's length are never read, whatever they hold. The order of the axes is this file's own business: every layer
has arrays of its own, so that a step reads and writes them in place, in segments of slots, so that attention's cost
follows the rows that reach a segment; and keys have their slots innermost, which a product with one query per row
reads at the speed of memory. A segment in which a row has nothing live leaves that row's result bit for bit as it was,
so no row depends on its neighbours.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels import decode_attention

SEGMENT_BYTES = 2**21
SEGMENT_SLOTS = 64
MAX_SEGMENTS = 5


class LayerCache(struct.PyTreeNode):
    """One layer's keys and values.

    Attributes:
        keys: a tuple of [B, K, H, S_i] over segments of slots.
        values: a tuple of [B, K, S_i, H].
    """

    keys: tuple[Any, ...]
    values: tuple[Any, ...]

    def starts(self) -> list[int]:
        """The first slot of each segment."""
        sizes = [array.shape[2] for array in self.values]
        return [sum(sizes[:i]) for i in range(len(sizes))]


class KVCache(struct.PyTreeNode):
    """Keys and values of B rows, right-padded from slot 0.

    Attributes:
        layers: a ``LayerCache`` each.
        length: int32 [B], slots in use. The next token goes to slot ``length``.
    """

    layers: tuple[LayerCache, ...]
    length: Any


def segment_sizes(slots: int, slot_bytes: int) -> list[int]:
    """Slots of each segment: five of the same size, fewer where that is below 64 slots or 2 MiB.

    ``slot_bytes`` is what one slot of all rows takes in a layer. A row reads at most a segment more than it has live;
    every segment costs some ten small operations per layer, so that reading less of little would not pay.
    """
    least = max(SEGMENT_SLOTS, -(-SEGMENT_BYTES // slot_bytes))
    size = max(-(-slots // MAX_SEGMENTS // SEGMENT_SLOTS) * SEGMENT_SLOTS, least)
    return [min(size, slots - start) for start in range(0, slots, size)]


def init_cache(
    *, num_layers: int, batch: int, num_kv_heads: int, slots: int, head_dim: int, dtype=jnp.float32
) -> KVCache:
    """An empty cache of ``batch`` rows with ``slots`` slots each."""
    sizes = segment_sizes(slots, 2 * batch * num_kv_heads * head_dim * jnp.dtype(dtype).itemsize)

    def layer():
        keys = tuple(jnp.zeros((batch, num_kv_heads, head_dim, size), dtype) for size in sizes)
        return LayerCache(keys, tuple(jnp.zeros((batch, num_kv_heads, size, head_dim), dtype) for size in sizes))

    return KVCache(tuple(layer() for _ in range(num_layers)), jnp.zeros(batch, jnp.int32))


def rewind(cache: KVCache, length: Int[Array, "B"]) -> KVCache:
    """The cache as it was when each row held ``length`` slots; a longer length than a row has changes nothing."""
    return cache.replace(length=jnp.minimum(cache.length, length))


def layer_cache(keys: Float[Array, "B T K H"], values: Float[Array, "B T K H"]) -> LayerCache:
    """A layer's cache of exactly these tokens, in one segment."""
    return LayerCache((jnp.einsum("BTKH->BKHT", keys),), (jnp.einsum("BTKH->BKTH", values),))


def copy_rows(cache: KVCache, rows: Int[Array, "C"], source: KVCache, source_rows: Int[Array, "C"]) -> KVCache:
    """``cache`` whose ``rows`` are ``source_rows`` of ``source``, which has one segment and is no wider; rows past
    the last are left out."""

    def put(array, new, start, axis):
        new = jnp.take(new, source_rows, axis=0)
        new = lax.slice_in_dim(new, start, min(start + array.shape[axis], new.shape[axis]), axis=axis)
        to = (rows, *(slice(None),) * (axis - 1), slice(new.shape[axis]))
        return array.at[to].set(new, mode="drop")

    def layer(into: LayerCache, out_of: LayerCache) -> LayerCache:
        width = out_of.values[0].shape[2]
        parts = list(zip(into.keys, into.values, into.starts(), strict=True))
        copied = [
            (put(keys, out_of.keys[0], start, 3), put(values, out_of.values[0], start, 2)) if start < width
            else (keys, values)
            for keys, values, start in parts
        ]  # fmt: skip
        return LayerCache(*(tuple(arrays) for arrays in zip(*copied, strict=True)))

    layers = tuple(layer(a, b) for a, b in zip(cache.layers, source.layers, strict=True))
    return KVCache(layers, cache.length.at[rows].set(jnp.take(source.length, source_rows), mode="drop"))


def _write(layer: LayerCache, keys, values, length) -> LayerCache:
    """T new tokens per row, keys and values [B, T, K, H], behind its length; what lies past the end is dropped."""
    batch, steps = keys.shape[:2]
    row = jnp.arange(batch)[:, None]
    slot = length[:, None] + jnp.arange(steps)[None]
    new_keys, new_values = [], []
    for old_keys, old_values, start in zip(layer.keys, layer.values, layer.starts(), strict=True):
        count = old_keys.shape[3]
        at = jnp.where((slot >= start) & (slot < start + count), slot - start, count)
        options = dict(mode="drop", unique_indices=True)
        new_keys.append(old_keys.at[row, :, :, at].set(keys.astype(old_keys.dtype), **options))
        new_values.append(old_values.at[row, :, at].set(values.astype(old_values.dtype), **options))
    return LayerCache(tuple(new_keys), tuple(new_values))


def _merged(first, second):
    """Two attentions over different slots as one: (output [.., H], log-sum-exp [..]) each."""
    (out_a, lse_a), (out_b, lse_b) = first, second
    logsumexp = jnp.logaddexp(lse_a, lse_b)
    a, b = jnp.exp(lse_a - logsumexp)[..., None], jnp.exp(lse_b - logsumexp)[..., None]
    return out_a * a + out_b * b, logsumexp


def _over_slots(query, layer: LayerCache, length, attend):
    """Attention of every query [B, N, H] of a row to the row's first ``length`` slots."""
    found = None
    for keys, values, start in zip(layer.keys, layer.values, layer.starts(), strict=True):
        part = attend(query, keys, values, jnp.clip(length - start, 0, keys.shape[3]))
        found = part if found is None else _merged(found, part)
    return found


def _causal(query, keys, values):
    """Attention of new tokens to each other: query [B, K, Q, T, H], keys and values [B, T, K, H]."""
    steps, size = query.shape[3:]
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("BKQTH,BSKH->BKQTS", query, keys, preferred_element_type=dtype) * size**-0.5
    scores = jnp.where(jnp.tril(jnp.ones((steps, steps), bool)), scores, -jnp.inf)
    logsumexp = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - logsumexp[..., None]).astype(values.dtype)
    return jnp.einsum("BKQTS,BSKH->BKQTH", weights, values, preferred_element_type=dtype), logsumexp


def cached_attention(
    query: Float[Array, "B T N H"],
    keys: Float[Array, "B T K H"],
    values: Float[Array, "B T K H"],
    layer: LayerCache,
    length: Int[Array, "B"],
    *,
    attend: Callable[..., tuple[Any, Any]] = decode_attention,
) -> tuple[Float[Array, "B T N H"], LayerCache]:
    """Attention of T new tokens to the row's live slots and causally to each other; and the layer with them written.

    Args:
        query: scaled inside by 1/sqrt(H); N is a multiple of K (grouped-query attention).
        keys, values: of the new tokens. A single one is seen only where it still fits behind its row's length.
        layer: the layer's cache.
        length: slots in use, before the new tokens.
        attend: ``decode_attention``, or the same on a mesh.
    """
    batch, steps, heads, size = query.shape
    kv_heads = keys.shape[2]
    written = _write(layer, keys, values, length)
    if steps == 1:  # what is read is what was written, so that a loop over tokens updates the cache in place
        output, _ = _over_slots(query[:, 0], written, length + 1, attend)
        return output[:, None].astype(values.dtype), written
    grouped = jnp.einsum("BTKQH->BKQTH", query.reshape(batch, steps, kv_heads, -1, size))
    own, own_lse = _causal(grouped, keys, values)
    before, before_lse = _over_slots(grouped.reshape(batch, -1, size), layer, length, attend)
    output, _ = _merged((own, own_lse), (before.reshape(own.shape), before_lse.reshape(own_lse.shape)))
    output = jnp.einsum("BKQTH->BTKQH", output)
    return output.reshape(batch, steps, heads, size).astype(values.dtype), written
