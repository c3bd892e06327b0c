"""Masked reductions by hand, and their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl import masked
from entropy_rl.masked import fraction_of

VALUES = jnp.array([[1.0, 2.0, jnp.nan], [4.0, jnp.nan, jnp.nan]])
MASK = jnp.array([[True, True, False], [True, False, False]])


def test_by_hand():
    assert float(masked.masked_sum(VALUES, MASK)) == 7.0
    np.testing.assert_allclose(masked.token_mean(VALUES, MASK), 7.0 / 3, rtol=1e-6)
    assert float(masked.sequence_mean(VALUES, MASK)) == 2.75  # (1.5 + 4) / 2
    np.testing.assert_allclose(masked.masked_std(VALUES, MASK, axis=1), [np.std([1, 2], ddof=1), 0.0], rtol=1e-6)


def test_empty_mask_gives_zero_and_finite_gradient():
    empty = jnp.zeros_like(MASK)
    for function in (masked.token_mean, masked.sequence_mean, lambda v, m: jnp.sum(masked.masked_std(v, m, axis=1))):
        value, gradient = jax.value_and_grad(function)(jnp.ones((2, 3)), empty)
        assert float(value) == 0.0
        assert bool(jnp.all(gradient == 0))


def test_equal_values_have_zero_std_and_finite_gradient():
    value, gradient = jax.value_and_grad(lambda v: jnp.sum(masked.masked_std(v, v > 0, axis=1)))(jnp.ones((2, 3)))
    assert float(value) == 0.0
    assert bool(jnp.all(jnp.isfinite(gradient)))


@pytest.mark.parametrize(
    ("fraction", "count", "want"),
    [(1e-5, 4_000_000, 40), (1.7e-5, 4_000_000, 68), (0.99999, 4_000_000, 3_999_960), (0.7, 10, 7), (1.0, 7, 7),
     (0.0, 7, 0), (0.3, 10, 3), (0.123456, 1_000_000, 123_456)],
)  # fmt: skip
def test_fractions_of_a_count(fraction, count, want):
    assert int(fraction_of(fraction, count)) == want
    assert int(fraction_of(fraction, count, up=True)) == want  # they divide
    assert int(fraction_of(fraction, count + 1, up=True)) == want + (fraction > 0)
