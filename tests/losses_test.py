"""GRPO against an independent NumPy float64 oracle: loss and gradient, every reduction and option."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.objectives import losses, make_recipe
from tests.helpers import random_rollout

ROWS, PROMPT, RESPONSE = 6, 4, 9


def oracle(log_probs, rollout, *, reduction, clip_low, clip_high, dual_clip=None, kl_coef=0.0, importance="none"):
    """(loss, d loss / d log_probs) in float64, written from the formulas, token by token."""
    as64 = lambda x: np.asarray(x, np.float64)
    old, ref, adv = as64(rollout.old_log_probs), as64(rollout.ref_log_probs), as64(rollout.advantages)
    sampler, mask = as64(rollout.sampler_log_probs), np.asarray(rollout.loss_mask)
    response = np.asarray(rollout.response_mask)
    loss, gradient = 0.0, np.zeros_like(old)
    lengths = mask.sum(1)
    for i in range(mask.shape[0]):
        for t in np.flatnonzero(mask[i]):
            weight = {
                "sequence_mean": 1 / (lengths[i] * np.sum(lengths > 0)),
                "token_mean": 1 / lengths.sum(),
                "fixed_length": 1 / (np.sum(lengths > 0) * RESPONSE),
            }[reduction]
            ratio, a = np.exp(log_probs[i, t] - old[i, t]), adv[i, t]
            limited = min(max(ratio, 1 - clip_low), 1 + clip_high)
            value, slope = -ratio * a, -ratio * a
            if limited * a < ratio * a:
                value, slope = -limited * a, 0.0
            if dual_clip is not None and a < 0 and value > -dual_clip * a:
                value, slope = -dual_clip * a, 0.0
            if importance == "token":
                factor = min(np.exp(old[i, t] - sampler[i, t]), 2.0)
            elif importance == "sequence":
                factor = min(np.exp(np.sum((old[i] - sampler[i])[response[i]])), 2.0)
            else:
                factor = 1.0
            value, slope = value * factor, slope * factor
            d = ref[i, t] - log_probs[i, t]
            value += kl_coef * (np.exp(d) - 1 - d)
            slope += kl_coef * (1 - np.exp(d))
            loss += weight * value
            gradient[i, t] = weight * slope
    return loss, gradient


def ours(log_probs, rollout, **options):
    recipe = make_recipe("grpo", **options)

    def loss(log_probs):
        values, _ = recipe.token_loss(log_probs, jnp.zeros_like(log_probs), rollout)
        weights = losses.reduction_weights(rollout.loss_mask, reduction=recipe.reduction, max_response=RESPONSE)
        return jnp.sum(jnp.where(rollout.loss_mask, values * weights, 0))

    return jax.jit(jax.value_and_grad(loss))(log_probs)


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_low": 0.1, "clip_high": 0.28},
        {"dual_clip": 1.3},
        {"kl_coef": 0.05},
        {"importance": "token"},
        {"importance": "sequence", "dual_clip": 3.0, "kl_coef": 1e-3},
    ],
    ids=str,
)
def test_loss_and_gradient(reduction, options):
    rollout = random_rollout(ROWS, PROMPT, RESPONSE, vocab=20, seed=1)
    noise = np.random.default_rng(2).normal(0, 0.4, rollout.tokens.shape)
    log_probs = np.where(rollout.response_mask, np.asarray(rollout.old_log_probs) + noise, 0).astype(np.float32)
    options = {"reduction": reduction, "clip_low": 0.2, "clip_high": 0.2} | options
    want_loss, want_gradient = oracle(log_probs.astype(np.float64), rollout, **options)
    loss, gradient = ours(jnp.asarray(log_probs), rollout, **options)
    np.testing.assert_allclose(loss, want_loss, atol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-6)
    assert np.abs(want_gradient).max() > 1e-3  # the comparison is of something


def test_on_policy_gradient_is_the_policy_gradient():
    """At ratio 1 the clip is idle: d loss / d log pi = -A w."""
    rollout = random_rollout(ROWS, PROMPT, RESPONSE, vocab=20)
    _, gradient = ours(rollout.old_log_probs, rollout)
    weights = losses.reduction_weights(rollout.loss_mask, reduction="sequence_mean")
    np.testing.assert_allclose(gradient, -rollout.advantages * weights, atol=1e-7)


def test_masked_tokens_change_nothing():
    rollout = random_rollout(ROWS, PROMPT, RESPONSE, vocab=20)
    log_probs = rollout.old_log_probs + 0.1
    spoilt = jnp.where(rollout.loss_mask, log_probs, jnp.nan)
    for a, b in zip(ours(log_probs, rollout), ours(spoilt, rollout), strict=True):
        np.testing.assert_array_equal(jnp.where(jnp.isnan(b), 0, b), a)


def test_weights_by_hand():
    mask = jnp.array([[True, True, False], [True, False, False], [False, False, False]])
    half = np.array([[0.25, 0.25, 0], [0.5, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(losses.reduction_weights(mask, reduction="sequence_mean"), half)
    third = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]]) / 3
    np.testing.assert_allclose(losses.reduction_weights(mask, reduction="token_mean"), third, rtol=1e-6)
    fixed = losses.reduction_weights(mask, reduction="fixed_length", max_response=10)
    np.testing.assert_allclose(fixed, np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]]) / 20, rtol=1e-6)
    empty = losses.reduction_weights(jnp.zeros((2, 3), bool), reduction="sequence_mean")
    assert float(jnp.sum(empty)) == 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clipp": 1.0}, "no option 'clipp'; it has policy_loss"),
        ({"reduction": "median"}, "not one of sequence_mean"),
        ({"importance": "both"}, "not one of none"),
        ({"normalize": "rank"}, "not one of std"),
        ({"clip_low": -0.1}, "clip_low"),
        ({"dual_clip": 0.5}, "dual_clip"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(ValueError, match=words):
        make_recipe("grpo", **options)


def test_unknown_recipe():
    with pytest.raises(ValueError, match="'ppo' is not one of grpo"):
        make_recipe("ppo")


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_ratio_that_would_overflow_is_finite(advantage):
    def loss(log_probs):
        old, adv = jnp.zeros((1, 1)), jnp.full((1, 1), advantage)
        return jnp.sum(losses.clipped_policy_loss(log_probs, old, adv, dual_clip=3.0)[0])

    value, gradient = jax.value_and_grad(loss)(jnp.full((1, 1), 100.0))
    assert bool(jnp.isfinite(value))
    assert float(gradient[0, 0]) == 0.0
