"""The portable implementation: plain products, a block of queries at a time where rows are long."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.causal_attention.types import SharedPrompt

WHOLE = 2048  # rows up to so long hold all their scores at once; longer ones those of so many queries
BLOCK = 512


def _causal(query, keys, values):
    size = query.shape[1]
    if size <= WHOLE or size % BLOCK:
        return jax.nn.dot_product_attention(query, keys, values, is_causal=True)

    @jax.checkpoint
    def block(start):
        part = lax.dynamic_slice_in_dim(query, start, BLOCK, axis=1)
        mask = start + jnp.arange(BLOCK)[:, None] >= jnp.arange(size)[None]
        return jax.nn.dot_product_attention(part, keys, values, mask=mask[None, None])

    parts = lax.map(block, jnp.arange(0, size, BLOCK))
    return jnp.moveaxis(parts, 0, 1).reshape(query.shape)


def _continued(query, keys, values, before, prompt: SharedPrompt):
    """Continuations [B, C, T, ...] over the prompt, ``before`` = (keys, values) [B, P, K, H], and themselves."""
    batch, count, size, heads, width = query.shape
    kv_heads = keys.shape[3]
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    query = query.reshape(batch, count, size, kv_heads, heads // kv_heads, width)
    product = lambda spec, a, b: jnp.einsum(spec, a, b, preferred_element_type=dtype)  # noqa: E731
    to_prompt = product("BCTKGH,BPKH->BKGCTP", query, before[0])
    to_own = product("BCTKGH,BCSKH->BKGCTS", query, keys)
    in_prompt = (jnp.arange(prompt.size)[None] < prompt.length[:, None])[:, None, None, None, None]
    is_past = jnp.tril(jnp.ones((size, size), bool))
    scores = jnp.concatenate([jnp.where(in_prompt, to_prompt, -jnp.inf), jnp.where(is_past, to_own, -jnp.inf)], axis=-1)
    weights = jax.nn.softmax(scores * width**-0.5, axis=-1).astype(values.dtype)
    output = product("BKGCTP,BPKH->BCTKGH", weights[..., : prompt.size], before[1])
    output += product("BKGCTS,BCSKH->BCTKGH", weights[..., prompt.size :], values)
    return output.reshape(batch, count, size, heads, width).astype(values.dtype)


def causal_attention(
    query: Float[Array, "B S N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    prompt: SharedPrompt | None,
) -> Float[Array, "B S N H"]:
    """See the public ``causal_attention``."""
    if prompt is None:
        return _causal(query, keys, values)
    size, count = prompt.size, prompt.count
    first_query, *first = (x[:, :size] for x in (query, keys, values))
    then_query, then_keys, then_values = (
        x[:, size:].reshape(x.shape[0], count, -1, *x.shape[2:]) for x in (query, keys, values)
    )
    output = _continued(then_query, then_keys, then_values, first, prompt)
    return jnp.concatenate([_causal(first_query, *first), output.reshape(query[:, size:].shape)], axis=1)
