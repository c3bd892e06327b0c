"""The readable reference: one head of one row, everything in f32 or wider."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LOWEST = -1e30  # the log-sum-exp of no slots


def _head(
    query: Float[Array, "H"], keys: Float[Array, "H S"], values: Float[Array, "S H"], length: Int[Array, ""]
) -> tuple[Float[Array, "H"], Float[Array, ""]]:
    live = jnp.arange(keys.shape[1]) < length
    scores = jnp.where(live, query @ keys * query.size**-0.5, -jnp.inf)
    logsumexp = jnp.where(length > 0, jax.nn.logsumexp(scores), LOWEST)
    values = jnp.where(live[:, None], values, 0)  # 0 * NaN would be NaN
    return jnp.exp(scores - logsumexp) @ values, logsumexp


def decode_attention(
    query: Float[Array, "B N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    length: Int[Array, "B"],
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    """See the public ``decode_attention``."""
    dtype = jnp.result_type(query, keys, values, jnp.float32)
    group = query.shape[1] // keys.shape[1]
    keys, values = (jnp.repeat(x.astype(dtype), group, axis=1) for x in (keys, values))
    heads = jax.vmap(_head, in_axes=(0, 0, 0, None))
    return jax.vmap(heads)(query.astype(dtype), keys, values, length)
