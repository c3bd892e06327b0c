"""The readable reference: one head of one row, all scores held, everything in f32 or wider."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.causal_attention.types import SharedPrompt


def seen(size: int, prompt: SharedPrompt | None, row: int) -> Bool[Array, "S S"]:
    """Which keys (second axis) each query of row ``row`` sees."""
    place = jnp.arange(size)
    causal = place[:, None] >= place[None]
    if prompt is None:
        return causal
    each = (size - prompt.size) // prompt.count
    part = jnp.where(place < prompt.size, -1, (place - prompt.size) // each)  # -1: the prompt
    in_prompt = (place < prompt.length[row]) & (part == -1)
    own = part[:, None] == part[None]
    return causal & (own | in_prompt[None])


def _head(query: Float[Array, "S H"], keys: Float[Array, "S H"], values: Float[Array, "S H"], mask: Bool[Array, "S S"]):
    scores = jnp.where(mask, query @ keys.T * query.shape[1] ** -0.5, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1) @ values


def causal_attention(
    query: Float[Array, "B S N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    prompt: SharedPrompt | None,
) -> Float[Array, "B S N H"]:
    """See the public ``causal_attention``."""
    dtype = jnp.result_type(query, jnp.float32)
    group = query.shape[2] // keys.shape[2]
    keys, output = jnp.repeat(keys.astype(dtype), group, axis=2), values.dtype
    values = jnp.repeat(values.astype(dtype), group, axis=2)
    masks = jnp.stack([seen(query.shape[1], prompt, row) for row in range(query.shape[0])])
    heads = jax.vmap(_head, in_axes=(1, 1, 1, None), out_axes=1)
    return jax.vmap(heads)(query.astype(dtype), keys, values, masks).astype(output)
