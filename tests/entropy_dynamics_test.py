"""What an update does to entropy: the formulas against autodiff, finite steps and Theorem 1."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_rl.distributions import entropy
from entropy_rl.methods.entropy_dynamics import (
    RunningCorrelation,
    entropy_threshold,
    minibatch_entropy_change,
    sequence_entropy_change,
    softmax_step_entropy_change,
)

V = 6
logits_of = st.lists(st.floats(-6, 6, width=32), min_size=V, max_size=V).map(lambda x: np.array(x, np.float32))


def step(logits, action, advantage, rate):
    """z + rate * A * (e_k - p), in float64."""
    z = np.asarray(logits, np.float64)
    p = np.exp(z - z.max())
    p /= p.sum()
    return z + rate * advantage * (np.eye(len(z))[action] - p)


def entropy64(z):
    p = np.exp(z - z.max())
    p /= p.sum()
    return float(-np.sum(p * np.log(p)))


def test_two_tokens_by_hand():
    # p = (3/4, 1/4), H = .5623351; reinforcing token 0 by eta A = .1:
    # p_0 (log p_0 + H) = .75 * .2746531 = .2059898
    # sum p^2 (log p + H) = .5625 * .2746531 - .0625 * .8239593 = .1029949
    # dH = -.1 * (.2059898 - .1029949) = -.0102995
    logits = jnp.log(jnp.array([0.75, 0.25]))
    np.testing.assert_allclose(softmax_step_entropy_change(logits, 0, 1.0, 0.1), -0.0102995, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(logits_of, st.integers(0, V - 1), st.floats(-2, 2, width=32))
def test_step_change_is_the_derivative(logits, action, advantage):
    got = float(softmax_step_entropy_change(jnp.asarray(logits), action, advantage, 1e-4))
    slope = jax.grad(lambda eta: entropy(
        jnp.asarray(logits) + eta * advantage * (jax.nn.one_hot(action, V) - jax.nn.softmax(jnp.asarray(logits)))
    ))(0.0)  # fmt: skip
    np.testing.assert_allclose(got, 1e-4 * slope, rtol=1e-3, atol=2e-10)
    finite = entropy64(step(logits, action, advantage, 1e-4)) - entropy64(step(logits, action, advantage, 0))
    np.testing.assert_allclose(got, finite, rtol=5e-3, atol=5e-8)


@settings(max_examples=40, deadline=None)
@given(logits_of, st.integers(0, V - 1))
def test_theorem_1(logits, action):
    threshold, weights = entropy_threshold(jnp.asarray(logits), action)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    if p[action] > 0.95:
        return  # the token cannot gain: the shares are rounding
    size = np.abs(np.asarray(weights)).max()  # shares of an unlikely token are large and cancel
    np.testing.assert_allclose(np.sum(np.asarray(weights)), 1, atol=1e-4 * max(size, 10))
    change = float(softmax_step_entropy_change(jnp.asarray(logits), action, 1.0, 1.0))
    margin = np.log(p[action]) - float(threshold)
    if abs(margin) > 1e-3 * max(size, 1):
        assert (change < 0) == (margin > 0)


def test_sequences_by_hand():
    # row 0: -2 * ((-1 + .5) + (-.2 + .5)) = .4; row 1: one token, A = -1: -(-1) * (-3 + 1) = -2
    log_probs = jnp.array([[-1.0, -0.2, -9.0], [-3.0, -9.0, -9.0]])
    entropies = jnp.array([[0.5, 0.5, 7.0], [1.0, 7.0, 7.0]])
    mask = jnp.array([[True, True, False], [True, False, False]])
    advantages = jnp.array([2.0, -1.0])
    got = sequence_entropy_change(log_probs, entropies, mask, advantages)
    np.testing.assert_allclose(got, [0.4, -2.0], rtol=1e-6)
    spread = jnp.broadcast_to(advantages[:, None], mask.shape)
    np.testing.assert_allclose(sequence_entropy_change(log_probs, entropies, mask, spread), got)
    np.testing.assert_allclose(minibatch_entropy_change(log_probs, entropies, mask, advantages), -1.6 / 3, rtol=1e-6)


def test_sampled_tokens_leave_entropy_where_it_is_in_expectation():
    """E[log pi + H] = 0: reinforcing everything alike does nothing to first order."""
    logits = jax.random.normal(jax.random.key(0), (V,)) * 2
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    assert abs(np.sum(p * (np.log(p) + float(entropy(logits))))) < 1e-6


def test_running_correlation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=50).astype(np.float32)
    y = (0.7 * x + 0.5 * rng.normal(size=50)).astype(np.float32)
    state = RunningCorrelation.empty()
    assert float(state.value()) == 0
    add = jax.jit(lambda s, a, b: s.add(a, b, rate=0.9))
    for a, b in zip(x, y, strict=True):
        state = add(state, a, b)
    weights = 0.9 ** np.arange(50)[::-1]
    centred = [z - np.average(z, weights=weights) for z in (x.astype(np.float64), y.astype(np.float64))]
    want = np.sum(weights * centred[0] * centred[1]) / np.sqrt(
        np.sum(weights * centred[0] ** 2) * np.sum(weights * centred[1] ** 2)
    )
    np.testing.assert_allclose(state.value(), want, atol=1e-4)
    constant = RunningCorrelation.empty()
    for b in y[:5]:
        constant = add(constant, np.float32(0.3), b)
    assert float(constant.value()) == 0
