"""The portable implementation: the whole window at once, masked."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.decode_attention.reference import LOWEST


def decode_attention(
    query: Float[Array, "B N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    length: Int[Array, "B"],
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    """See the public ``decode_attention``."""
    dtype = jnp.result_type(query, keys, values, jnp.float32)
    rows, heads, size = query.shape
    query = query.reshape(rows, keys.shape[1], -1, size)
    live = jnp.arange(keys.shape[3])[None] < length[:, None]
    scores = jnp.einsum("BKQH,BKHS->BKQS", query, keys, preferred_element_type=dtype) * size**-0.5
    scores = jnp.where(live[:, None, None], scores, LOWEST)
    maximum = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.where(live[:, None, None], jnp.exp(scores - maximum), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    values = jnp.where(live[:, None, :, None], values, 0).astype(values.dtype)  # 0 * NaN would be NaN
    output = jnp.einsum("BKQS,BKSH->BKQH", weights.astype(values.dtype), values, preferred_element_type=dtype)
    empty = total == 0
    total = jnp.where(empty, 1, total)
    logsumexp = jnp.where(empty, LOWEST, maximum + jnp.log(total))
    return (output / total).reshape(rows, heads, size), logsumexp.reshape(rows, heads)
