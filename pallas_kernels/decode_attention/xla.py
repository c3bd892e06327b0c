"""The portable implementation: work follows the rows that have something live.

Where more than half of the rows do, one product over the whole window reads keys and values in place. Otherwise, and
where something dead in the window (a NaN, an infinity) spoiled that product, the live rows are gathered a few at a
time, their dead values cleared: clearing takes a pass over the values, which the common case does without. A row gets
the same bits either way.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.decode_attention.reference import LOWEST

GATHERED_ROWS = 8


def _attend(query, keys, values, length, *, cleared: bool):
    """(output [B, K, Q, H], log-sum-exp [B, K, Q]) over the whole window; ``cleared`` makes dead values 0 first."""
    dtype = jnp.result_type(query, keys, values, jnp.float32)
    live = (jnp.arange(keys.shape[3])[None] < length[:, None])[:, None]
    scores = jnp.einsum("BKQH,BKHS->BKQS", query, keys, preferred_element_type=dtype) * query.shape[3] ** -0.5
    scores = jnp.where(live[:, :, None], scores, LOWEST)
    maximum = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.where(live[:, :, None], jnp.exp(scores - maximum), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if cleared:
        values = jnp.where(live[..., None], values, 0).astype(values.dtype)  # 0 * NaN would be NaN
    output = jnp.einsum("BKQS,BKSH->BKQH", weights.astype(values.dtype), values, preferred_element_type=dtype)
    total = jnp.where(total == 0, 1, total)
    return output / total, (maximum + jnp.log(total))[..., 0]


def decode_attention(
    query: Float[Array, "B N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    length: Int[Array, "B"],
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    """See the public ``decode_attention``."""
    batch, heads, size = query.shape
    dtype = jnp.result_type(query, keys, values, jnp.float32)
    query = query.reshape(batch, keys.shape[1], -1, size)
    rows = min(GATHERED_ROWS, batch)
    count = jnp.sum(length > 0)
    most = 2 * count > batch
    found = lax.cond(
        most,
        lambda: _attend(query, keys, values, length, cleared=False),
        lambda: (jnp.zeros(query.shape, dtype), jnp.full(query.shape[:3], LOWEST, dtype)),
    )

    def few(i, found):
        order = jnp.argsort(length <= 0, stable=True)
        place = i * rows + jnp.arange(rows)
        at = order[jnp.minimum(place, batch - 1)]
        part = _attend(query[at], keys[at], values[at], length[at], cleared=True)
        at = jnp.where(place < count, at, batch)
        return tuple(out.at[at].set(x, mode="drop") for out, x in zip(found, part, strict=True))

    in_place = most & jnp.all(jnp.isfinite(found[0]))
    output, logsumexp = lax.fori_loop(0, jnp.where(in_place, 0, (count + rows - 1) // rows), few, found)
    output = jnp.where((length > 0)[:, None, None, None], output, 0)
    return output.reshape(batch, heads, size), logsumexp.reshape(batch, heads)
