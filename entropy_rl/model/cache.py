"""The rewindable key/value cache: plain arrays with a length per row, and attention over them.

Rewinding a row is a smaller ``length``: nothing is copied, nothing recomputed, and it works inside jit. Slots at or
past a row's length are never read, whatever they hold. The order of the inner axes is this file's own business.
Attention runs over blocks of slots with an online softmax, as many blocks as the longest live row needs: a block in
which a row has nothing live leaves that row's result bit for bit as it was, so no row depends on its neighbours.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

_LOWEST = -1e30
BLOCK = 128


class PrefixStore(struct.PyTreeNode):
    """Prompts, stored once and read by every row that continues them.

    Attributes:
        keys: [L, P, K, S_p, H].
        values: [L, P, K, S_p, H].
        length: int32 [P], slots in use.
    """

    keys: Any
    values: Any
    length: Any


class KVCache(struct.PyTreeNode):
    """Keys and values of B rows, right-padded from slot 0.

    Attributes:
        keys: [L, B, K, S, H].
        values: [L, B, K, S, H].
        length: int32 [B], slots in use. The next token goes to slot ``length``.
        prefix: the stored prompts that come before slot 0, or None.
        prefix_index: int32 [B], which stored prompt each row continues, or None.
    """

    keys: Any
    values: Any
    length: Any
    prefix: PrefixStore | None = None
    prefix_index: Any = None


def init_cache(
    *, num_layers: int, batch: int, num_kv_heads: int, slots: int, head_dim: int, dtype=jnp.float32
) -> KVCache:
    """An empty cache of ``batch`` rows with ``slots`` slots each."""
    shape = (num_layers, batch, num_kv_heads, slots, head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(batch, jnp.int32))


def rewind(cache: KVCache, length: Int[Array, "B"]) -> KVCache:
    """The cache as it was when each row held ``length`` slots; a longer length than a row has changes nothing."""
    return cache.replace(length=jnp.minimum(cache.length, length))


def append(cache: KVCache, keys: Float[Array, "L B T K H"], values: Float[Array, "L B T K H"]) -> KVCache:
    """Writes T new slots per row behind its length and advances it; slots past the end are dropped."""
    batch, steps = keys.shape[1:3]
    slot = cache.length[:, None] + jnp.arange(steps)[None]
    row = jnp.arange(batch)[:, None]

    def write(array, new):
        new = jnp.einsum("LBTKH->BTLKH", new).astype(array.dtype)
        return array.at[:, row, :, slot].set(new, mode="drop", unique_indices=True)

    return cache.replace(keys=write(cache.keys, keys), values=write(cache.values, values), length=cache.length + steps)


def as_prefix(cache: KVCache) -> PrefixStore:
    """The rows of ``cache`` as stored prompts."""
    return PrefixStore(cache.keys, cache.values, cache.length)


class _Softmax(NamedTuple):
    """Running maximum and sum [B, K, Q, T, 1] and values [B, K, Q, T, H] of an online softmax, f32 or wider."""

    maximum: Array
    total: Array
    values: Array


def _attend(state: _Softmax, query, keys, values, valid) -> _Softmax:
    """Adds slots to the softmax: query [B,T,K,Q,H], keys and values [B,K,S,H], valid [B,T or 1,S]."""
    live = jnp.any(valid, axis=1)[:, None, :, None]
    values = jnp.where(live, values, 0).astype(values.dtype)  # 0 * NaN would be NaN
    scores = jnp.einsum("BTKQH,BKSH->BKQTS", query, keys, preferred_element_type=state.total.dtype)
    mask = valid[:, None, None]
    scores = jnp.where(mask, scores, _LOWEST)
    maximum = jnp.maximum(state.maximum, jnp.max(scores, axis=-1, keepdims=True))
    decay = jnp.exp(state.maximum - maximum)
    weights = jnp.where(mask, jnp.exp(scores - maximum), 0.0)
    added = jnp.einsum(
        "BKQTS,BKSH->BKQTH", weights.astype(values.dtype), values, preferred_element_type=state.total.dtype
    )
    total = state.total * decay + jnp.sum(weights, axis=-1, keepdims=True)
    return _Softmax(maximum, total, state.values * decay + added)


def _attend_blocks(state, query, read, num_slots, length):
    """Adds the first ``length`` [B] of ``num_slots`` slots by blocks; ``read(start, size)`` gives keys, values."""
    if num_slots == 0:
        return state
    block = min(BLOCK, num_slots)

    def body(i, state):
        start = jnp.minimum(i * block, num_slots - block)
        keys, values = read(start, block)
        slot = start + jnp.arange(block)
        valid = (slot[None] >= i * block) & (slot[None] < length[:, None])
        return _attend(state, query, keys, values, valid[:, None])

    if block == num_slots:
        return body(jnp.int32(0), state)
    live_blocks = (jnp.max(length) + block - 1) // block
    return lax.fori_loop(0, jnp.minimum(live_blocks, -(-num_slots // block)), body, state)


def cached_attention(
    query: Float[Array, "B T N H"],
    new_keys: Float[Array, "B T K H"],
    new_values: Float[Array, "B T K H"],
    cache: KVCache,
    layer: Int[Array, ""],
) -> Float[Array, "B T N H"]:
    """Attention of T new tokens to the row's stored prompt, its live slots, and causally to each other.

    Args:
        query: scaled inside by 1/sqrt(H); N is a multiple of K (grouped-query attention).
        new_keys: keys of the new tokens, not yet in the cache.
        new_values: values of the new tokens.
        cache: read only; ``append`` writes the new slots for all layers at once, after the last layer.
        layer: which layer of the cache to read.
    """
    batch, steps, heads, size = query.shape
    kv_heads = new_keys.shape[2]
    query = (query * size**-0.5).astype(query.dtype).reshape(batch, steps, kv_heads, heads // kv_heads, size)
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    zeros = jnp.zeros((batch, kv_heads, heads // kv_heads, steps, 1), dtype)
    state = _Softmax(zeros + _LOWEST, zeros, jnp.zeros((*zeros.shape[:-1], size), dtype))

    def layer_block(array, start, block):
        rows, _, _, h = array.shape[1:]
        zero = jnp.zeros_like(start)
        starts = (layer.astype(start.dtype), zero, zero, start, zero)
        return lax.dynamic_slice(array, starts, (1, rows, kv_heads, block, h))[0]

    prefix = cache.prefix
    if prefix is not None:

        def read_prefix(start, block):
            return tuple(
                jnp.take(layer_block(array, start, block), cache.prefix_index, axis=0)
                for array in (prefix.keys, prefix.values)
            )

        length = jnp.take(prefix.length, cache.prefix_index)
        state = _attend_blocks(state, query, read_prefix, prefix.keys.shape[3], length)

    def read_own(start, block):
        return layer_block(cache.keys, start, block), layer_block(cache.values, start, block)

    state = _attend_blocks(state, query, read_own, cache.keys.shape[3], cache.length)
    causal = jnp.tril(jnp.ones((steps, steps), bool))[None]
    own_keys, own_values = (jnp.einsum("BTKH->BKTH", x) for x in (new_keys, new_values))
    state = _attend(state, query, own_keys, own_values, jnp.broadcast_to(causal, (batch, steps, steps)))
    output = jnp.einsum("BKQTH->BTKQH", state.values / state.total)
    return output.reshape(batch, steps, heads, size).astype(new_values.dtype)
