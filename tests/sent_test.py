"""SENT: semantic entropy, stages, and token weights against a NumPy oracle."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_rl.masked import lowest
from entropy_rl.methods.sent import (
    curriculum_stages,
    low_entropy_tokens,
    released_token_weights,
    semantic_entropy,
    token_covariance,
    token_kl_weights,
)


def test_semantic_entropy_by_hand():
    assert float(semantic_entropy(jnp.array([3, 3, 3, 3]))) == 0
    np.testing.assert_allclose(semantic_entropy(jnp.array([0, 1, 2, 3])), np.log(4), rtol=1e-6)
    # clusters of 3 and 1 of 4: -(.75 ln .75 + .25 ln .25) = .5623351
    np.testing.assert_allclose(semantic_entropy(jnp.array([7, 7, -2, 7])), 0.5623351, rtol=1e-6)
    # weights 1, 1, 2 with the last two together: P = (1/4, 3/4)
    weights = jnp.log(jnp.array([1.0, 1.0, 2.0]))
    np.testing.assert_allclose(semantic_entropy(jnp.array([0, 5, 5]), weights), 0.5623351, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(-50, 0, width=32)), min_size=6, max_size=6),
    st.permutations(range(6)),
    st.floats(-20, 20, width=32),
)
def test_semantic_entropy_properties(members, order, shift):
    ids = np.array([i for i, _ in members], np.int32)
    log_weights = np.array([w for _, w in members], np.float32)
    got = float(semantic_entropy(jnp.asarray(ids), jnp.asarray(log_weights)))
    weights = np.exp(log_weights.astype(np.float64) - log_weights.max())
    shares = np.array([weights[ids == i].sum() for i in set(ids.tolist())]) / weights.sum()
    want = -np.sum(shares * np.log(np.maximum(shares, 1e-300)))
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert 0 <= got <= np.log(6) + 1e-6
    order = np.array(order)
    moved = semantic_entropy(jnp.asarray(ids[order]), jnp.asarray(log_weights[order] + np.float32(shift)))
    np.testing.assert_allclose(moved, got, atol=1e-4)  # f32 rounding of the shifted weights


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 0.5, 1.2, 2.0]), min_size=5, max_size=17), st.integers(1, 5))
def test_stages_partition_in_order(values, num_stages):
    stages = curriculum_stages(np.array(values), num_stages)
    assert len(stages) == num_stages
    assert sorted(np.concatenate(stages).tolist()) == list(range(len(values)))
    assert max(map(len, stages)) - min(map(len, stages)) <= 1
    for before, after in itertools.pairwise(stages):
        assert max(np.array(values)[before]) <= min(np.array(values)[after])


def test_wrong_stages_are_refused():
    with pytest.raises(ValueError, match="cannot be split"):
        curriculum_stages(np.zeros(2), 3)
    with pytest.raises(ValueError, match="prompt 1 is not finite"):
        curriculum_stages(np.array([0.0, np.nan]), 2)


SHAPE = (4, 7)
grids = st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.7, 1.3]), min_size=28, max_size=28)


@settings(max_examples=25, deadline=None)
@given(grids, grids, st.lists(st.booleans(), min_size=28, max_size=28), st.sampled_from([0.0, 0.1, 0.34, 1.0]))
def test_weights_against_numpy(entropy, surprisal, mask, fraction):
    entropy = np.array(entropy, np.float32).reshape(SHAPE)
    log_probs = -np.array(surprisal, np.float32).reshape(SHAPE)
    mask = np.array(mask).reshape(SHAPE)
    advantages = np.where(mask, np.array([1.5, -0.5, 0.0, -1.0], np.float32)[:, None], 0)
    args = [jnp.asarray(x) for x in (entropy, log_probs, advantages, mask)]
    got = np.asarray(token_kl_weights(*args, high_covariance_fraction=fraction, beta_low=0.05, beta_high=0.2))

    flat = np.flatnonzero(mask)
    by_entropy = flat[np.argsort(entropy.reshape(-1)[flat], kind="stable")]
    low = np.sort(by_entropy[: int(np.floor(0.8 * len(flat) + 1e-9))])
    chosen = np.asarray(low_entropy_tokens(args[0], args[3]))
    np.testing.assert_array_equal(np.flatnonzero(chosen), low)
    want = np.zeros(mask.size)
    want[low] = 0.05
    if len(flat):
        lp, adv = log_probs.reshape(-1).astype(np.float64), advantages.reshape(-1).astype(np.float64)
        cov = (lp - lp[flat].mean()) * (adv - adv[flat].mean())
        np.testing.assert_allclose(
            np.asarray(token_covariance(args[1], args[2], args[3])).reshape(-1)[flat], cov[flat], atol=1e-6
        )
        cov = np.asarray(token_covariance(args[1], args[2], args[3])).reshape(-1)  # ties are decided in f32
        count = int(np.floor(fraction * len(low) + 1e-9))
        want[low[np.argsort(-cov[low], kind="stable")][:count]] = 0.2
    np.testing.assert_allclose(got.reshape(-1), want, rtol=1e-6)
    same = token_kl_weights(*args, high_covariance_fraction=fraction, beta_low=0.1, beta_high=0.1)
    np.testing.assert_allclose(same, np.where(chosen, 0.1, 0.0), rtol=1e-6)
    released = np.asarray(released_token_weights(*args, covariance_fraction=fraction))
    assert not np.any(released[~chosen])
    assert all(min(abs(w - x) for x in (0.0, 0.05, 0.2)) < 1e-6 for w in released[chosen])


def test_lowest_takes_infinities_and_ties_in_order():
    values = jnp.array([jnp.inf, 1.0, 1.0, -jnp.inf, 0.0])
    mask = jnp.array([True, True, True, True, False])
    np.testing.assert_array_equal(lowest(values, mask, 2), [False, True, False, True, False])
    np.testing.assert_array_equal(lowest(values, mask, 9), mask)
    np.testing.assert_array_equal(lowest(values, mask, 0), [False] * 5)
