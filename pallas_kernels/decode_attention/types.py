"""What the implementations share."""

import jax.numpy as jnp

LOWEST = -1e30


def accumulator(x):
    """The dtype sums are held in: f32, or wider where ``x`` is."""
    return jnp.promote_types(x.dtype, jnp.float32)
