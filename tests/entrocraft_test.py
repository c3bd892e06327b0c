"""Entrocraft: the truth table, what it may depend on, the released variant, and the controller."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_rl.methods.entrocraft import (
    Controller,
    control,
    entropy_biased_advantages,
    keep_mask,
    rejection_strength,
    reward_sign_advantages,
)
from entropy_rl.schedules import ENTROPY_BANDS, entropy_band

LOW, HIGH = 0.2, 0.4
B = 8
floats = st.lists(st.floats(-3, 3, width=32, allow_subnormal=False), min_size=B, max_size=B).map(
    lambda x: np.array(x, np.float32)
)


@pytest.mark.parametrize(("entropy", "advantage"), list(itertools.product((0.1, 0.3, 0.5), (-1.0, 0.0, 1.0))))
def test_truth_table(entropy, advantage):
    m = {0.1: -1, 0.3: 0, 0.5: 1}[entropy]
    got = keep_mask(jnp.array([advantage]), entropy, LOW, HIGH)
    assert bool(got[0]) == (m * advantage >= 0)


@settings(max_examples=25, deadline=None)
@given(floats, st.floats(0, 0.625, width=32))
def test_sign_rule_sees_only_signs_and_is_idempotent(advantages, entropy):
    keep = keep_mask(jnp.asarray(advantages), entropy, LOW, HIGH)
    np.testing.assert_array_equal(keep, keep_mask(jnp.sign(jnp.asarray(advantages)), entropy, LOW, HIGH))
    kept = jnp.where(keep, jnp.asarray(advantages), 0.0)  # what is rejected does not come back, what is kept stays
    np.testing.assert_array_equal(keep_mask(kept, entropy, LOW, HIGH), jnp.ones(B, bool))
    m = int(np.float32(entropy) > np.float32(HIGH)) - int(np.float32(entropy) < np.float32(LOW))
    np.testing.assert_array_equal(keep, m * np.sign(advantages) >= 0)


@settings(max_examples=25, deadline=None)
@given(floats, floats, st.sampled_from([0.1, 0.3, 0.5]), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_predicted_rule_and_strength(advantages, change, entropy, strength):
    m = {0.1: -1, 0.3: 0, 0.5: 1}[entropy]
    keep = np.asarray(keep_mask(
        jnp.asarray(advantages), entropy, LOW, HIGH, select="predicted", predicted_change=jnp.asarray(change),
        strength=jnp.float32(strength),
    ))  # fmt: skip
    rejectable = (m * change > 0) & (advantages != 0)
    assert not np.any(~keep & ~rejectable)
    count = round(strength * rejectable.sum() + 1e-9) if (strength * rejectable.sum()) % 1 != 0.5 else None
    if count is not None:
        assert (~keep).sum() == count
    if np.any(~keep) and np.any(keep & rejectable):
        assert np.abs(change[~keep]).min() >= np.abs(change[keep & rejectable]).max()


def test_wrong_selects_are_refused():
    ones = jnp.ones(3)
    with pytest.raises(ValueError, match="not one of sign, predicted"):
        keep_mask(ones, 0.5, LOW, HIGH, select="random")
    for options in ({"select": "predicted"}, {"strength": 0.5}):
        with pytest.raises(ValueError, match="needs predicted_change"):
            keep_mask(ones, 0.5, LOW, HIGH, **options)


def test_strength_by_hand():
    # .45 is .05 above .4: half of the .1 at which everything is rejected.
    np.testing.assert_allclose(rejection_strength(0.45, LOW, HIGH, full_at=0.1), 0.5, rtol=1e-5)
    np.testing.assert_allclose(rejection_strength(0.05, LOW, HIGH, full_at=0.1), 1.0)
    assert float(rejection_strength(0.3, LOW, HIGH, full_at=0.1)) == 0


def test_reward_sign_variant():
    advantages, rewards = jnp.array([0.5, -0.5, 0.0]), jnp.array([1.0, -1.0, 1.0])
    np.testing.assert_array_equal(reward_sign_advantages(advantages, rewards, 0.5, LOW, HIGH), [1, 0, 1])
    np.testing.assert_array_equal(reward_sign_advantages(advantages, rewards, 0.1, LOW, HIGH), [0, -1, 0])
    np.testing.assert_array_equal(reward_sign_advantages(advantages, rewards, 0.3, LOW, HIGH), advantages)


def test_bias_by_hand():
    # A - gain (log pi + H): 1 - .5 (-1 + .4) = 1.3; masked tokens stay 0
    got = entropy_biased_advantages(
        jnp.array([1.0]), jnp.array([[-1.0, -5.0]]), jnp.array([[0.4, 0.1]]), jnp.array([[True, False]]), 0.5
    )
    np.testing.assert_allclose(got, [[1.3, 0.0]], rtol=1e-6)


def test_controller_by_hand_and_anti_windup():
    options = dict(proportional=2.0, integral=1.0, max_gain=0.5)
    state, gain = control(Controller.start(), 0.2, 0.3, **options)  # e = .1: 2 * .1 + 1 * .1 = .3
    np.testing.assert_allclose([gain, state.integral], [0.3, 0.1], rtol=1e-5)
    for _ in range(20):
        state, gain = control(state, 0.0, 0.3, **options)  # e = .3 saturates: the sum must not run away
        assert float(gain) == 0.5
    assert float(state.integral) < 0.5
    state, gain = control(state, 0.6, 0.3, **options)  # and the other side answers at once
    assert float(gain) < 0


BANDS = {
    "constant": {},
    "linear": {},
    "cosine": {},
    "sine": {"period": 20.0},
    "hold_decay": {"hold_steps": 30},
    "step": {"points": [(0, 0.5, 0.6), (40, 0.1, 0.2)]},
    "piecewise": {"points": [(0, 0.5, 0.6), (40, 0.1, 0.2), (100, 0.3, 0.4)]},
}


@pytest.mark.parametrize("kind", ENTROPY_BANDS)
def test_bands(kind):
    options = {"low": (0.5, 0.1), "high": (0.6, 0.2)} | BANDS[kind]
    band = jax.jit(jax.vmap(entropy_band(kind, num_steps=100, **options)))
    low, high = (np.asarray(x) for x in band(jnp.arange(0, 131)))
    assert np.all(low <= high)
    np.testing.assert_allclose([low[0], high[0]], [0.5, 0.6], rtol=1e-6)
    np.testing.assert_allclose(low[100:], low[100])  # past the end it stays
    wanted = {"constant": 0.5, "sine": 0.5, "piecewise": 0.3}.get(kind, 0.1)
    np.testing.assert_allclose(low[100], wanted, atol=1e-6)
    if kind in ("linear", "cosine", "hold_decay", "step", "constant"):
        assert np.all(np.diff(low) <= 1e-7)
    middle = {"linear": 0.3, "cosine": 0.3, "constant": 0.5, "sine": 0.1, "step": 0.1}
    middle |= {"hold_decay": 0.5 - 0.4 * 20 / 70, "piecewise": 0.1 + 0.2 * 10 / 60}
    middle = middle[kind]
    np.testing.assert_allclose(low[50], middle, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("spiral", {}, "not one of"),
        ("linear", {"low": (0.5, 0.1), "high": (0.4, 0.2)}, "low <= high"),
        ("linear", {"low": (float("nan"), 0.1), "high": (0.4, 0.2)}, "low <= high"),
        ("step", {}, "needs points"),
        ("piecewise", {"points": [(5, 0.1, 0.2), (5, 0.1, 0.2)]}, "ascending"),
        ("sine", {"high": (1, 1)}, "positive period"),
        ("linear", {"high": (1, 1), "period": 3.0}, "belongs to a sine band"),
        ("cosine", {"high": (1, 1), "hold_steps": 3}, "belongs to a hold_decay band"),
        ("hold_decay", {"high": (1, 1), "hold_steps": 100}, "must lie in"),
        ("linear", {"points": [(0, 1, 2)]}, "points belong to"),
    ],
)
def test_wrong_bands_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        entropy_band(kind, num_steps=100, **options)
