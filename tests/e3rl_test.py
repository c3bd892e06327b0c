"""E3RL's formulas: uncertainty, threshold, running statistics, segments and credit, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_rl.methods.e3rl import (
    Erasing,
    RunningUncertainty,
    attention_mass,
    history_modulation,
    segment_advantages,
    segment_credit,
    segment_ids,
    segment_lengths,
    segment_uncertainty,
    threshold,
)

B, T, N = 3, 10, 4


def numpy_uncertainty(u, ids, mask, num_segments, window, weights):
    out = np.zeros((len(u), num_segments))
    for i in range(len(u)):
        before = 0.0
        for n in range(num_segments):
            values = u[i][mask[i] & (ids[i] == n)].astype(np.float64)
            if not len(values):
                before = 0.0
                continue
            level = np.mean([values[max(0, t - window + 1) : t + 1].mean() for t in range(len(values))])
            rise = max(0.0, level - before) if n else 0.0
            out[i, n] = weights[0] * level + weights[1] * (values.max() - level) + weights[2] * rise
            before = level
    return out


def test_uncertainty_by_hand():
    # one segment, u = 1 3 2, window 2: M = 1, 2, 2.5, B = 11/6; X = 3 - 11/6; U = .6 B + .2 X = 1.33333
    u, ids, mask = jnp.array([[1.0, 3.0, 2.0]]), jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool)
    got = segment_uncertainty(u, ids, mask, num_segments=2, window=2)
    np.testing.assert_allclose(got, [[1.3333333, 0.0]], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0, 8, width=32), min_size=B * T, max_size=B * T),
    st.lists(st.integers(0, T), min_size=B, max_size=B),
    st.integers(0, T),
    st.sampled_from([1, 3, 20]),
)
def test_uncertainty_against_numpy(values, lengths, seed, window):
    u = np.array(values, np.float32).reshape(B, T)
    mask = (np.arange(T)[None] >= 1) & (np.arange(T)[None] < np.array(lengths)[:, None])
    steps = np.random.default_rng(seed).random((B, T)) < 0.3
    ids = np.minimum(np.cumsum(steps, axis=1), N - 1).astype(np.int32)
    got = segment_uncertainty(jnp.asarray(u), jnp.asarray(ids), jnp.asarray(mask), num_segments=N, window=window)
    want = numpy_uncertainty(u, ids, mask, N, window, (0.6, 0.2, 0.2))
    # the oracle's "segment before" is the index before; a row may lack it only where its mask starts later
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_threshold_rises_with_every_erasure():
    theta = threshold(jnp.full(6, 0.5), jnp.full(6, 0.2), jnp.arange(6), 0.9, kappa=1.5, growth=0.3)
    np.testing.assert_allclose(theta, (0.5 + 0.3) * np.exp(0.3 * np.arange(6)) * 0.9, rtol=1e-6)
    assert np.all(np.diff(theta) > 0)
    assert np.isinf(threshold(0.5, 0.0, 1, kappa=float("inf")))  # no inf * 0


def test_modulation():
    # mu_B = .4: a row at .4 is neutral, one at .8 halves (.5 after the clip's floor), a calm one at 0 rises by half
    level, known = jnp.array([0.4, 0.8, 0.0, 9.0, 9.0]), jnp.array([True, True, True, True, False])
    got = history_modulation(jnp.float32(0.4), level, known)
    np.testing.assert_allclose(got, [1.0, 0.5, 1.5, 0.5, 1.0], atol=1e-5)


def test_running_statistics():
    state = RunningUncertainty.empty(4)
    assert not np.any(state.baseline()[2])
    first = jnp.array([[1.0, 2.0, 9.0, 9.0], [3.0, 9.0, 9.0, 9.0]])
    seen = jnp.array([[True, True, False, False], [True, False, False, False]])
    state = state.update(first, first, seen, rate=0.9)
    mean, std, known = state.baseline()
    np.testing.assert_allclose(mean, [2, 2, 2, 2], rtol=1e-6)  # past the last index the last one's serve
    np.testing.assert_allclose(std, [1, 0, 0, 0], atol=1e-3)
    assert np.all(known)
    np.testing.assert_allclose(state.mean_level(), 2.0, rtol=1e-6)
    state = state.update(first + 2, first, seen & jnp.array([True, False, False, False])[None], rate=0.9)
    # weights .09 and .1: mean (2 * .09 + 4 * .1) / .19
    np.testing.assert_allclose(state.baseline()[0][:2], [(0.18 + 0.4) / 0.19, 2.0], rtol=1e-5)
    later = RunningUncertainty.empty(3).update(
        jnp.ones((1, 3)), jnp.ones((1, 3)), jnp.array([[False, True, False]]), rate=0.9
    )
    np.testing.assert_array_equal(later.baseline()[2], [False, True, True])


def test_segments_end_at_delimiters_and_lengths():
    tokens = jnp.array([[9, 1, 2, 7, 3, 3, 3, 3, 7, 0]])
    mask = jnp.array([[False] + [True] * 8 + [False]])
    got = segment_ids(tokens, mask, segment_length=3, delimiters=(7,))
    np.testing.assert_array_equal(got, [[0, 0, 0, 0, 1, 1, 1, 2, 2, 0]])
    fixed = segment_ids(tokens, mask, segment_length=3)
    np.testing.assert_array_equal(fixed, [[0, 0, 0, 0, 1, 1, 1, 2, 2, 0]])
    np.testing.assert_array_equal(segment_lengths(got, mask, 4), [[3, 3, 2, 0]])


def test_attention_mass_by_hand():
    # Segments 0 0 1 1 2, the answer is token 5 (segment 2). It pays .1 .2 .3 .1 to 0 0 1 1: masses .3 .4, own .35.
    attention = jnp.array([[[0.2, 0.1, 0.2, 0.3, 0.1, 0.1], [9.0] * 6]])
    ids, mask = jnp.array([[0, 0, 0, 1, 1, 2]]), jnp.array([[False] + [True] * 5])
    got = attention_mass(attention, jnp.array([[True, False]]), ids, mask, jnp.array([2]), 4)
    np.testing.assert_allclose(got, [[0.3, 0.4, 0.35, 0.0]], rtol=1e-6)


def test_credit():
    lengths = jnp.array([[2.0, 3.0, 1.0, 0.0]] * 3)
    mass = jnp.array([[1.0, 2.0, 1.0, 5.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    got = segment_credit(mass, lengths)
    np.testing.assert_allclose(got, [[0.25, 0.5, 0.25, 0], [1 / 3, 1 / 3, 1 / 3, 0], [1, 0, 0, 0]], rtol=1e-6)
    soft = segment_credit(mass, lengths, temperature=0.5)
    want = np.exp(np.array([0.5, 1.0, 0.5]))
    np.testing.assert_allclose(soft[0, :3], want / want.sum(), rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(soft, axis=1), 1, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 5, width=32), min_size=B * N, max_size=B * N), st.integers(0, 99))
def test_advantages_keep_their_token_mean(mass, seed):
    rng = np.random.default_rng(seed)
    mask = jnp.asarray(np.arange(T)[None] < rng.integers(0, T + 1, B)[:, None])
    ids = jnp.asarray(np.minimum(np.cumsum(rng.random((B, T)) < 0.3, axis=1), N - 1).astype(np.int32))
    outcome = jnp.asarray(rng.normal(size=B).astype(np.float32))
    credit = segment_credit(jnp.asarray(np.array(mass, np.float32).reshape(B, N)), segment_lengths(ids, mask, N))
    np.testing.assert_allclose(jnp.sum(credit, axis=1)[mask.any(axis=1)], 1, rtol=1e-5)
    got = segment_advantages(outcome, credit, ids, mask)
    counts = np.asarray(mask.sum(axis=1))
    means = np.asarray(jnp.sum(got, axis=1)) / np.maximum(counts, 1)
    np.testing.assert_allclose(means, np.where(counts > 0, outcome, 0), rtol=1e-5, atol=1e-6)
    uniform = segment_advantages(outcome, jnp.full((B, N), 1 / 3), ids, mask)
    np.testing.assert_array_equal(uniform, jnp.where(mask, outcome[:, None], 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_length": 0}, "segment_length=0 must be at least 1"),
        ({"segment_length": 4, "score": "luck"}, "not one of surprisal, entropy"),
        ({"segment_length": 4, "baseline": "none"}, "not one of running, group"),
        ({"segment_length": 4, "growth": -0.1}, "growth=-0.1 must not be negative"),
        ({"segment_length": 4, "weights": (1.0, -1.0, 0.0)}, "weights"),
        ({"segment_length": 4, "kappa": float("nan")}, "kappa=nan must be a number"),
        ({"segment_length": 4, "running_rate": 1.0}, "running_rate=1.0 must lie in"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Erasing(**options)


def test_infinite_kappa_is_off():
    assert Erasing(4, kappa=float("inf")).is_off
    assert Erasing(4, max_erasures=0).is_off
    assert not Erasing(4).is_off
    assert Erasing(4).num_segments(10) == 3
    assert Erasing(4, delimiters=(1,)).num_segments(10) == 10


def test_gradients_do_not_flow_where_nothing_is_masked_in():
    grad = jax.grad(lambda u: segment_uncertainty(
        u, jnp.zeros((1, 4), jnp.int32), jnp.array([[False, True, True, False]]), num_segments=1, window=2
    ).sum())(jnp.ones((1, 4)))  # fmt: skip
    assert np.all(np.isfinite(grad))
    assert grad[0, 0] == 0
    assert grad[0, 3] == 0
