"""Sums, means and deviations over the entries a mask selects; an empty mask gives 0, never NaN."""

from fractions import Fraction

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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


def lowest(values: Float[Array, "..."], mask: Bool[Array, "..."], count: Int[Array, ""] | int) -> Bool[Array, "..."]:
    """The ``count`` smallest of the entries the mask selects, ties by index; all of them where there are fewer."""
    flat = jnp.where(mask, values, jnp.inf).reshape(-1)
    # Masked entries last even behind an unmasked infinity: sort by (masked, value, index).
    order = jnp.lexsort((flat, ~mask.reshape(-1)))
    rank = jnp.zeros(flat.shape, jnp.int32).at[order].set(jnp.arange(flat.size, dtype=jnp.int32))
    return mask & (rank < count).reshape(mask.shape)


def fraction_of(fraction: float, count: Int[Array, "*R"] | int, *, up: bool = False) -> Int[Array, "*R"]:
    """floor(fraction * count), or with ``up`` the ceiling, exactly: .7 of 10 is 7, and so on for millions.

    ``fraction`` is taken as the nearest rational with a denominator of at most a million, or smaller where int32 could
    not hold every step.
    """
    rational = Fraction(fraction).limit_denominator(1_000_000)
    if rational > Fraction(1, 2):  # the part that is left out has the smaller numerator
        return jnp.asarray(count, jnp.int32) - fraction_of(float(1 - rational), count, up=not up)
    if rational.numerator * rational.denominator >= 1 << 31:
        rational = rational.limit_denominator(46340)
    over, under = rational.numerator, rational.denominator
    count = jnp.asarray(count, jnp.int32)
    rest = over * (count % under) + (under - 1 if up else 0)
    return over * (count // under) + rest // under
