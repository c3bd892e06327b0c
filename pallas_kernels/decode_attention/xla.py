"""The portable implementation: work follows the rows that have something live.

Where more than half of the rows do, one product over the whole window reads keys and values in place. Otherwise, and
where something dead in the window (a NaN, an infinity) spoiled that product, the live rows are gathered a few at a
time, their dead values cleared: clearing takes a pass over the values, which the common case does without. A row gets
the same bits either way.
"""

import jax.numpy as jnp
from jax import lax

from pallas_kernels.decode_attention.types import LOWEST, accumulator

GATHERED_ROWS = 16


def _attend(query, keys, values, length, *, cleared: bool):
    """(output [B, K, Q, H], log-sum-exp [B, K, Q]) over the whole window; ``cleared`` makes dead values 0 first."""
    dtype = accumulator(query)
    live = (jnp.arange(keys.shape[-1])[None] < length[:, None])[:, None]
    scores = jnp.einsum("BKQH,BKHS->BKQS", query, keys, preferred_element_type=dtype)
    scores = jnp.where(live[:, :, None], scores, LOWEST)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.where(live[:, :, None], jnp.exp(scores - largest), 0.0)
    total = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), jnp.finfo(dtype).tiny)
    if cleared:
        values = jnp.where(live[..., None], values, 0).astype(values.dtype)
    output = jnp.einsum("BKQS,BKSH->BKQH", weights.astype(values.dtype), values, preferred_element_type=dtype)
    return output / total, jnp.maximum(largest + jnp.log(total), LOWEST)[..., 0]


def decode_attention(query, keys, values, length):
    """See ``pallas_kernels.decode_attention``; query [B, K, Q, H] is scaled, (output, logsumexp) have its order."""
    batch = query.shape[0]
    dtype = accumulator(query)
    rows = min(GATHERED_ROWS, batch)
    count = jnp.sum(length > 0)
    most = 2 * count > batch
    found = lax.cond(
        most,
        lambda: _attend(query, keys, values, length, cleared=False),
        lambda: (jnp.zeros(query.shape, dtype), jnp.full(query.shape[:-1], LOWEST, dtype)),
    )

    def few(i, found):
        order = jnp.argsort(length <= 0, stable=True)
        place = i * rows + jnp.arange(rows)
        at = order[jnp.minimum(place, batch - 1)]
        part = _attend(query[at], keys[at], values[at], length[at], cleared=True)
        at = jnp.where(place < count, at, batch)
        return tuple(out.at[at].set(x, mode="drop") for out, x in zip(found, part, strict=True))

    spoiled = most & ~jnp.all(jnp.isfinite(found[0]))
    pieces = jnp.where(most & ~spoiled, 0, (count + rows - 1) // rows)
    output, logsumexp = lax.fori_loop(0, pieces, few, found)
    return jnp.where((length > 0)[:, None, None, None], output, 0), logsumexp
