"""Group-relative advantages by hand and by property."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from entropy_rl.objectives import group_relative_advantages


def test_by_hand():
    # Rewards 1, 0, 0: mean 1/3, unbiased variance (4/9 + 1/9 + 1/9) / 2 = 1/3.
    got = group_relative_advantages(jnp.array([[1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(got, np.array([[2, -1, -1]]) / 3 / (np.sqrt(1 / 3) + 1e-6), rtol=1e-6)
    centred = group_relative_advantages(jnp.array([[1.0, 0.0, 0.0]]), normalize="none")
    np.testing.assert_allclose(centred, np.array([[2, -1, -1]]) / 3, rtol=1e-6)
    # (R - mu) / (alpha sigma + lambda): alpha 2 halves, up to epsilon.
    scaled = group_relative_advantages(jnp.array([[1.0, 0.0, 0.0]]), scale=2.0, epsilon=0.0)
    np.testing.assert_allclose(scaled, np.array([[2, -1, -1]]) / 3 / (2 * np.sqrt(1 / 3)), rtol=1e-6)


def test_unequal_groups():
    rewards = jnp.array([[1.0, 0.0, jnp.nan], [1.0, jnp.nan, jnp.nan]])
    mask = jnp.array([[True, True, False], [True, False, False]])
    got = group_relative_advantages(rewards, mask)
    root = np.sqrt(0.5)
    np.testing.assert_allclose(got, [[0.5 / (root + 1e-6), -0.5 / (root + 1e-6), 0], [0, 0, 0]], rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(-4, 4, width=32)))
def test_groups_sum_to_zero(rewards):
    got = np.asarray(group_relative_advantages(jnp.asarray(rewards)))
    assert np.all(np.isfinite(got))
    np.testing.assert_allclose(got.sum(1), 0, atol=2e-5 * max(1.0, np.abs(got).max()))


def test_wrong_input():
    with pytest.raises(ValueError, match="not one of"):
        group_relative_advantages(jnp.zeros((1, 2)), normalize="max")


def test_equal_rewards_give_exactly_zero():
    rewards = jnp.full((3, 5), 0.21214265)  # the f32 mean of these five is another float
    assert not np.any(np.asarray(group_relative_advantages(rewards)))
