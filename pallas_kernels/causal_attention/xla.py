"""The portable implementation: plain products, a block of queries at a time where rows are long."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.causal_attention.types import SharedPrompt

WHOLE = 2048  # rows up to so long, or as many scores, are attended to at once
BLOCK = 512  # in longer ones, so many queries


def _in_blocks(attend, query, size):
    """``attend(queries [B, BLOCK, ...], index of the first one)`` over blocks of axis 1, recomputed for gradients; the
    last block holds places past ``size``, which are dropped."""
    count = -(-size // BLOCK)
    padded = jnp.pad(query, [(0, 0), (0, count * BLOCK - size)] + [(0, 0)] * (query.ndim - 2))

    @jax.checkpoint
    def block(start):
        return attend(lax.dynamic_slice_in_dim(padded, start, BLOCK, axis=1), start)

    parts = jnp.moveaxis(lax.map(block, jnp.arange(count) * BLOCK), 0, 1)
    return parts.reshape(padded.shape)[:, :size]


def _causal(query, keys, values):
    size = query.shape[1]
    if size <= WHOLE:
        return jax.nn.dot_product_attention(query, keys, values, is_causal=True)

    def attend(part, start):
        mask = start + jnp.arange(BLOCK)[:, None] >= jnp.arange(size)[None]
        return jax.nn.dot_product_attention(part, keys, values, mask=mask[None, None])

    return _in_blocks(attend, query, size)


def _one_continued(query, keys, values, before, in_prompt, start):
    """Queries [B, T, N, H] at places ``start`` on of a continuation, over the prompt, ``before`` = (keys, values)
    [B, P, K, H] of which ``in_prompt`` [B, P] are in use, and the continuation's own keys [B, S, K, H]."""
    batch, size, heads, width = query.shape
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    query = query.reshape(batch, size, keys.shape[2], -1, width)
    product = lambda spec, a, b: jnp.einsum(spec, a, b, preferred_element_type=dtype)  # noqa: E731
    is_past = start + jnp.arange(size)[:, None] >= jnp.arange(keys.shape[1])[None]
    to_prompt = jnp.where(in_prompt[:, None, None, None], product("BTKGH,BPKH->BKGTP", query, before[0]), -jnp.inf)
    to_own = jnp.where(is_past, product("BTKGH,BSKH->BKGTS", query, keys), -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([to_prompt, to_own], -1) * width**-0.5, axis=-1).astype(values.dtype)
    prompt_size = in_prompt.shape[1]
    output = product("BKGTP,BPKH->BTKGH", weights[..., :prompt_size], before[1])
    output += product("BKGTS,BSKH->BTKGH", weights[..., prompt_size:], values)
    return output.reshape(batch, size, heads, width).astype(values.dtype)


def _continued(query, keys, values, before, prompt: SharedPrompt):
    """Continuations [B, C, T, ...] of a prompt: all at once, or one after the other where they are long."""
    in_prompt = jnp.arange(prompt.size)[None] < prompt.length[:, None]
    size = query.shape[2]
    if prompt.count * size * (prompt.size + size) <= WHOLE**2:
        each = jax.vmap(lambda q, k, v: _one_continued(q, k, v, before, in_prompt, 0), 1, 1)
        return each(query, keys, values)

    def one(arrays):
        q, k, v = arrays
        return _in_blocks(lambda part, start: _one_continued(part, k, v, before, in_prompt, start), q, size)

    parts = lax.map(one, tuple(jnp.moveaxis(x, 1, 0) for x in (query, keys, values)))
    return jnp.moveaxis(parts, 0, 1)


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
