"""Sums, means and deviations over the entries a mask selects; an empty mask gives 0, never NaN."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Axis = int | tuple[int, ...] | None


def masked_sum(values: Float[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None) -> Float[Array, "..."]:
    """Sum of ``values`` where ``mask``; masked entries are replaced, so NaN there changes nothing."""
    return jnp.sum(jnp.where(mask, values, 0), axis=axis)


def masked_mean(values: Float[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None) -> Float[Array, "..."]:
    """Mean of ``values`` where ``mask``; 0 where nothing is selected."""
    count = jnp.sum(mask, axis=axis)
    return masked_sum(values, mask, axis) / jnp.maximum(count, 1)


def masked_std(
    values: Float[Array, "..."], mask: Bool[Array, "..."], axis: int | None = None, *, ddof: int = 1
) -> Float[Array, "..."]:
    """Standard deviation of ``values`` where ``mask``, with ``ddof`` degrees of freedom removed.

    Returns 0 where ``ddof`` or fewer entries are selected: one value has no spread.
    """
    count = jnp.sum(mask, axis=axis)
    mean = masked_mean(values, mask, axis)
    centred = values - (mean if axis is None else jnp.expand_dims(mean, axis))
    variance = masked_sum(jnp.square(centred), mask, axis) / jnp.maximum(count - ddof, 1)
    positive = (count > ddof) & (variance > 0)
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def token_mean(values: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    """Mean over all selected tokens: long responses weigh more."""
    return masked_mean(values, mask)


def sequence_mean(values: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    """Mean over sequences of the mean over their tokens; sequences without a selected token do not count."""
    return masked_mean(masked_mean(values, mask, axis=1), jnp.any(mask, axis=1))
