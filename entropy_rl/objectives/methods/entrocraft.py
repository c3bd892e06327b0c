"""Entrocraft as one stage, a function per way of staying in the band."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from entropy_rl.masked import masked_mean
from entropy_rl.methods import entrocraft as lib
from entropy_rl.methods.entropy_dynamics import sequence_entropy_change
from entropy_rl.objectives import losses
from entropy_rl.objectives.recipe import Recipe, RunFacts, Stage, StepContext, policy_entropy, policy_mask
from entropy_rl.objectives.recipes import check_choice, refuse_unread
from entropy_rl.schedules import Band, entropy_band
from entropy_rl.types import ERASED, FRESH, REPLAYED, Rollout

SELECTS = (*lib.SELECTS, "controlled", "controlled_rejection")
VARIANTS = ("paper", "reward_sign")

# (rollout, controller's gain, H, (low, high) of the narrowed band, context) -> (rollout, metrics)
Actuator = Callable[[Rollout, Any, Any, tuple[Any, Any], StepContext], tuple[Rollout, dict[str, Any]]]


def entrocraft(
    base: Recipe,
    facts: RunFacts,
    *,
    band: str | Band = "linear",
    low: Sequence[float] = (0.6, 0.4),
    high: Sequence[float] = (0.7, 0.5),
    points: Sequence[Sequence[float]] = (),
    period: float = 0.0,
    hold_steps: int = 0,
    num_steps: int = 0,
    select: str = "sign",
    variant: str = "paper",
    margin: float = 0.0,
    full_at: float = 0.0,
    proportional: float = 8.0,
    integral: float = 2.0,
    max_gain: float = 2.0,
    feedforward: float = 1.0,
) -> Recipe:
    """Keeps the policy's entropy inside a band over the steps; see ``methods.entrocraft``.

    Args:
        band: a kind of ``entropy_band``, or a function step -> (low, high); "off" changes nothing.
        low, high, points, period, hold_steps: of the band, nats and steps; 0 and () where a kind does not use them.
        num_steps: over which the band runs; 0: the run's.
        select: "sign" (paper); ours: "predicted" (reject by predicted change of entropy), "controlled" (nothing is
            rejected, every token's advantage is biased by a PI controller on the distance from the band's middle),
            "controlled_rejection" (that controller sets which fraction of the wrong-way responses is rejected).
        variant: "paper", or "reward_sign" (the released code: raw signs of the outcome, rejected rows count).
        margin: nats by which the band is narrowed on either side when deciding.
        full_at: nats outside the band at which all rejectable responses are rejected, fewer nearer to it; 0: always.
        proportional, integral, max_gain: of the controller, per nat, per nat and step, and the largest bias, whatever
            it comes from.
        feedforward: under "controlled", how much of the batch's own predicted change of entropy is taken out before the
            controller acts: 1 leaves advantages that are neutral to first order, 0 nothing.

    Source: https://arxiv.org/abs/2604.26326.
    """
    check_choice("entrocraft select", select, SELECTS)
    check_choice("entrocraft variant", variant, VARIANTS)
    if variant == "reward_sign" and select != "sign":
        raise ValueError(f"entrocraft variant 'reward_sign' has its own rule; select={select!r} does not go with it")
    if min(margin, full_at, proportional, integral, max_gain, feedforward) < 0:
        raise ValueError(
            "entrocraft margin, full_at, proportional, integral, max_gain and feedforward must not be negative"
        )
    is_steered = select.startswith("controlled")
    read = {
        "margin": not is_steered,
        "full_at": not is_steered and variant == "paper",
        "proportional": is_steered,
        "integral": is_steered,
        "max_gain": is_steered,
        "feedforward": select == "controlled",
    }
    refuse_unread(entrocraft, locals(), read, f"select={select!r} and variant={variant!r}")
    if band == "off":
        return base
    band = band if callable(band) else entropy_band(
        band, low=low, high=high, num_steps=num_steps or facts.num_steps, points=points or None,
        period=period or None, hold_steps=hold_steps,
    )  # fmt: skip
    _check_band(band)
    if select == "controlled":
        act = _bias(base.reduction, feedforward=feedforward, max_gain=max_gain)
    elif select == "controlled_rejection":
        act = _reject_by_gain(max_gain=max_gain)
    else:
        act = _reward_sign if variant == "reward_sign" else _reject(select, full_at=full_at)

    def apply(rollout: Rollout, state: Any, context: StepContext):
        entropy = policy_entropy(rollout)
        low, high = band(context.step)
        middle = 0.5 * (low + high)
        inner = jnp.minimum(low + margin, middle), jnp.maximum(high - margin, middle)
        metrics = {"band_low": low, "band_high": high, "band_side": lib.band_side(entropy, *inner)}
        gain = None
        if is_steered:
            state, gain = lib.control(
                state, entropy, middle, proportional=proportional, integral=integral, max_gain=max_gain
            )
            metrics |= {"band_gain": gain}
        rollout, own = act(rollout, gain, entropy, inner, context)
        return rollout, state, metrics | own

    return base.with_stage(Stage("entrocraft", "select", apply, lib.Controller.start))


def _check_band(band: Band) -> None:
    """Raises ValueError where a band is no function step -> (low, high) that can be compiled."""
    try:
        low, high = jax.eval_shape(band, jax.ShapeDtypeStruct((), jnp.int32))
        is_right = low.shape == high.shape == ()
    except Exception as error:  # whatever a user's function does wrong
        raise ValueError(f"entrocraft band is no jnp function step -> (low, high): {error}") from None
    if not is_right:
        raise ValueError(f"entrocraft band gives arrays of shape {low.shape} and {high.shape}, not two numbers")


def _bias(reduction: str, *, feedforward: float, max_gain: float) -> Actuator:
    """Every token's advantage is biased along log pi + H by the gain, and by what makes the batch neutral."""

    def act(rollout, gain, entropy, band, context):
        del entropy, band
        metrics = {}
        if feedforward:
            mask = policy_mask(rollout)
            weights = losses.reduction_weights(mask, reduction=reduction, max_response=context.max_response)
            neutral = lib.neutral_gain(rollout.advantages, rollout.old_log_probs, rollout.old_entropy, mask, weights)
            metrics = {"band_neutral_gain": neutral}
            gain = jnp.clip(gain + feedforward * neutral, -max_gain, max_gain)
        biased = lib.entropy_biased_advantages(
            rollout.advantages, rollout.old_log_probs, rollout.old_entropy, rollout.loss_mask, gain
        )
        is_erased = (rollout.origin == ERASED)[:, None]  # these keep the advantage they have in common
        return rollout.replace(advantages=jnp.where(is_erased, rollout.advantages, biased)), metrics

    return act


def _reward_sign(rollout, gain, entropy, band, context) -> tuple[Rollout, dict[str, Any]]:
    """The released code: outside the band, advantages become the positive or negative part of +1 and -1."""
    del gain, context
    signs = jnp.where(rollout.correct, 1.0, -1.0)
    outcome = lib.reward_sign_advantages(rollout.outcome_advantages, signs, entropy, *band)
    counted = (rollout.origin == FRESH) | (rollout.origin == REPLAYED)
    spread = jnp.where(rollout.response_mask & counted[:, None], outcome[:, None], rollout.advantages)
    spread = jnp.where(lib.band_side(entropy, *band) == 0, rollout.advantages, spread)
    return rollout.replace(advantages=spread), {"rejected": masked_mean((outcome == 0).astype(jnp.float32), counted)}


def _reject(select: str, *, full_at: float) -> Actuator:
    """Responses on the wrong side leave the loss: all of them, or a fraction that grows with the distance."""

    def act(rollout, gain, entropy, band, context):
        del gain, context
        strength = lib.rejection_strength(entropy, *band, full_at=full_at) if full_at else 1.0
        return _without(rollout, select, entropy, band, strength)

    return act


def _reject_by_gain(*, max_gain: float) -> Actuator:
    """The gain's sign says which responses may leave the loss, its size how many of them do."""

    def act(rollout, gain, entropy, band, context):
        del entropy, band, context
        strength = jnp.minimum(jnp.abs(gain) / max(max_gain, 1e-9), 1.0)
        # In place of the entropy: a point outside a band around 0, on the side that the controller leaves.
        return _without(rollout, "predicted", -jnp.sign(gain), (-0.5, 0.5), strength)

    return act


def _without(rollout: Rollout, rule: str, entropy, band, strength) -> tuple[Rollout, dict[str, Any]]:
    """``rollout`` with the responses out of the loss that ``keep_mask`` does not keep."""
    change = sequence_entropy_change(rollout.old_log_probs, rollout.old_entropy, rollout.loss_mask, rollout.advantages)
    is_erased = rollout.origin == ERASED

    def dropped(rows):  # of some rows alone: an advantage of 0 is always kept
        advantages = jnp.where(rows, rollout.outcome_advantages, 0.0)
        return ~lib.keep_mask(advantages, entropy, *band, select=rule, predicted_change=change, strength=strength)

    drop = jnp.where(is_erased, dropped(is_erased), dropped(~is_erased))
    rows = jnp.any(policy_mask(rollout), axis=1)
    metrics = {"rejected": masked_mean(drop.astype(jnp.float32), rows)}
    return rollout.replace(loss_mask=rollout.loss_mask & ~drop[:, None]), metrics
