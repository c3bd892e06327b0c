"""The baselines: GRPO, and what each of the others changes of it.

A recipe is built from plain keyword options and holds pure functions only. A new one is one function here and one entry
in ``RECIPES``. The token loss all of them share is

    l = w_policy * policy loss + kl_coef * k3 + w_kl_ref * k3 + w_kl_old * |log pi - log pi_old| - (c + w_entropy) * H

with the weights that stages put into ``rollout.weights``; a term without a weight or coefficient is not computed, and
erased attempts have the policy loss alone.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from entropy_rl.distributions import kl_estimate
from entropy_rl.masked import fraction_of, lowest, masked_mean
from entropy_rl.methods.entropy_dynamics import RunningCorrelation, minibatch_entropy_change
from entropy_rl.methods.sent import token_covariance
from entropy_rl.objectives import advantages as advantage_lib
from entropy_rl.objectives import losses
from entropy_rl.objectives.recipe import (
    Recipe,
    Stage,
    StepContext,
    TokenLoss,
    add_weight,
    multiply_weight,
    policy_entropy,
    policy_mask,
    stateless,
)
from entropy_rl.types import ERASED, FRESH, REPLAYED, Rollout

POLICY_LOSSES = ("clip", "sequence_clip", "cispo", "reinforce", "unclipped")
CLIPPED = ("clip", "sequence_clip")
ADVANTAGES = ("std", "none", "leave_one_out", "outcome_sign")


def _policy_loss(kind: str, *, clip_low: float, clip_high: float, dual_clip: float | None, max_ratio: float):
    """(log_probs, rollout) -> (loss [B, T], per-token metrics)."""

    def loss(log_probs, rollout):
        old, advantages = rollout.old_log_probs, rollout.advantages
        clip = dict(clip_low=clip_low, clip_high=clip_high)
        if kind == "clip":
            return losses.clipped_policy_loss(log_probs, old, advantages, dual_clip=dual_clip, **clip)
        if kind == "sequence_clip":
            return losses.sequence_policy_loss(log_probs, old, advantages, rollout.response_mask, **clip)
        if kind == "cispo":
            return losses.cispo_loss(log_probs, old, advantages, max_ratio=max_ratio)
        if kind == "reinforce":
            return losses.reinforce_loss(log_probs, advantages), {}
        return losses.unclipped_policy_loss(log_probs, old, advantages), {}

    return loss


def make_token_loss(
    policy_loss: Callable[[Any, Rollout], tuple[Any, dict[str, Any]]],
    *,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    importance: str = "none",
    importance_ceiling: float = 2.0,
) -> TokenLoss:
    """The token loss at the head of this file."""

    def token_loss(log_probs, entropy, rollout):
        loss, metrics = policy_loss(log_probs, rollout)
        if "policy" in rollout.weights:
            loss = loss * rollout.weights["policy"]
        if importance != "none":
            weights = losses.importance_weights(
                rollout.old_log_probs,
                rollout.sampler_log_probs,
                rollout.response_mask,
                level=importance,
                ceiling=importance_ceiling,
            )
            loss, metrics["importance_weight"] = loss * weights, weights
        own = 1.0 if rollout.origin is None else jnp.where(rollout.origin == ERASED, 0.0, 1.0)[:, None]
        if kl_coef or "kl_ref" in rollout.weights:
            kl = kl_estimate(log_probs, rollout.ref_log_probs)
            loss, metrics["kl_ref"] = loss + own * (kl_coef + rollout.weights.get("kl_ref", 0.0)) * kl, kl
        if "kl_old" in rollout.weights:
            loss = loss + own * rollout.weights["kl_old"] * jnp.abs(log_probs - rollout.old_log_probs)
        if entropy_coef or "entropy" in rollout.weights:
            loss = loss - own * (entropy_coef + rollout.weights.get("entropy", 0.0)) * entropy
        return loss, metrics

    return token_loss


def advantage_stage(function: Callable[[Any, Any, Any], Any]) -> Stage:
    """A stage that sets ``outcome_advantages`` and spreads them over each response's tokens.

    Args:
        function: (rewards [P, G], correct [P, G], present [P, G]) -> advantages [P, G]; rows that are not present (no
            response, or an erased attempt) are to count for nothing.
    """

    def apply(rollout: Rollout, context: StepContext):
        by_group = lambda x: x.reshape(-1, context.group_size)  # noqa: E731
        present = (rollout.origin == FRESH) | (rollout.origin == REPLAYED)
        outcome = function(by_group(rollout.rewards), by_group(rollout.correct), by_group(present))
        outcome = jnp.where(present, outcome.reshape(-1), 0.0)
        spread = jnp.where(rollout.response_mask, outcome[:, None], 0.0)
        return rollout.replace(outcome_advantages=outcome, advantages=spread), {}

    return Stage("advantage", "advantage", stateless(apply))


def _advantages(kind: str, *, scale: float, epsilon: float, success: float, failure: float):
    def advantages(rewards, correct, present):
        if kind == "leave_one_out":
            return advantage_lib.leave_one_out_advantages(rewards, present)
        if kind == "outcome_sign":
            return advantage_lib.outcome_sign_advantages(correct, success=success, failure=failure)
        return advantage_lib.group_relative_advantages(rewards, present, normalize=kind, scale=scale, epsilon=epsilon)

    return advantages


def _dynamics_stage() -> Stage:
    """Predicted and realised change of entropy, and their running correlation."""

    def init():
        zero = lambda: jnp.zeros((), jnp.float32)  # noqa: E731
        return {"steps": jnp.zeros((), jnp.int32), "entropy": zero(), "predicted": zero(),
                "correlation": RunningCorrelation.empty()}  # fmt: skip

    def apply(rollout: Rollout, state: Any, context: StepContext):
        del context
        entropy = policy_entropy(rollout)
        predicted = minibatch_entropy_change(
            rollout.old_log_probs, rollout.old_entropy, rollout.loss_mask, rollout.advantages
        )
        realised = entropy - state["entropy"]
        is_known = state["steps"] > 0
        added = state["correlation"].add(state["predicted"], realised)
        correlation = jax.tree.map(lambda new, old: jnp.where(is_known, new, old), added, state["correlation"])
        metrics = {
            "entropy_change_predicted": predicted,
            "entropy_change_realised": jnp.where(is_known, realised, 0.0),  # by the step before this one
            "entropy_change_correlation": correlation.value(),
        }
        state = {"steps": state["steps"] + 1, "entropy": entropy, "predicted": predicted, "correlation": correlation}
        return rollout, state, metrics

    return Stage("entropy_dynamics", "observe", apply, init)


def grpo(
    *,
    policy_loss: str = "clip",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    max_ratio: float = 5.0,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    normalize: str = "std",
    advantage_scale: float = 1.0,
    advantage_epsilon: float = 1e-6,
    success: float = 0.1,
    failure: float = -1.0,
    overlong_buffer: int = 0,
    resample_rounds: int = 0,
    reduction: str = "sequence_mean",
    importance: str = "none",
    importance_ceiling: float = 2.0,
) -> Recipe:
    """Group-relative policy optimisation with a clipped ratio and an optional KL penalty to a frozen reference.

    Source: Shao et al. 2024, https://arxiv.org/abs/2402.03300, eq. 3 and 4. Differs: no KL unless ``kl_coef`` > 0.

    Args:
        policy_loss: "clip" (PPO), "sequence_clip" (GSPO), "cispo", "reinforce" (-A log pi) or "unclipped" (-r A).
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        dual_clip: bound on the loss of tokens with negative advantage under "clip", or None.
        max_ratio: ceiling of the ratio under "cispo".
        kl_coef: weight of the k3 estimate of KL(pi || pi_ref), nats.
        entropy_coef: weight of the token's entropy, which is maximised.
        normalize: advantages: "std", "none" (both ``group_relative_advantages``), "leave_one_out" or "outcome_sign".
        advantage_scale, advantage_epsilon: alpha and lambda of (R - mu) / (alpha sigma + lambda).
        success, failure: advantages under "outcome_sign".
        overlong_buffer: tokens before the length limit over which a penalty grows to -1; 0: none.
        resample_rounds: groups whose rewards are all equal are sampled again so often at most.
        reduction: see ``reduction_weights``.
        importance: weight for the gap between sampler and trainer: "none", "token", "sequence".
        importance_ceiling: largest such weight.
    """
    check_choice("policy_loss", policy_loss, POLICY_LOSSES)
    check_choice("reduction", reduction, losses.REDUCTIONS)
    check_choice("normalize", normalize, ADVANTAGES)
    check_choice("importance", importance, losses.IMPORTANCE_LEVELS)
    not_negative = dict(clip_high=clip_high, kl_coef=kl_coef, entropy_coef=entropy_coef)
    not_negative |= dict(resample_rounds=resample_rounds, overlong_buffer=overlong_buffer)
    for name, value in not_negative.items():
        if value < 0:
            raise ValueError(f"{name}={value} must not be negative")
    positive = dict(importance_ceiling=importance_ceiling, max_ratio=max_ratio, advantage_scale=advantage_scale)
    positive |= dict(advantage_epsilon=advantage_epsilon)
    for name, value in positive.items():
        if value <= 0:
            raise ValueError(f"{name}={value} must be positive")
    if not 0 <= clip_low <= 1:
        raise ValueError(f"clip_low={clip_low} must lie in [0, 1]")
    if dual_clip is not None and (dual_clip <= 1 or policy_loss != "clip"):
        raise ValueError(f"dual_clip={dual_clip} must be None or above 1, and belongs to policy_loss 'clip'")

    read = {
        "clip_low": policy_loss in CLIPPED,
        "clip_high": policy_loss in CLIPPED,
        "max_ratio": policy_loss == "cispo",
        "advantage_scale": normalize == "std",
        "advantage_epsilon": normalize == "std",
        "success": normalize == "outcome_sign",
        "failure": normalize == "outcome_sign",
        "overlong_buffer": normalize != "outcome_sign",
        "importance_ceiling": importance != "none",
    }
    refuse_unread(
        grpo, locals(), read, f"policy_loss={policy_loss!r}, normalize={normalize!r}, importance={importance!r}"
    )

    advantages = _advantages(
        normalize, scale=advantage_scale, epsilon=advantage_epsilon, success=success, failure=failure
    )
    stages = [advantage_stage(advantages), _dynamics_stage()]
    if overlong_buffer:
        stages.append(_overlong_stage(overlong_buffer))
    loss = _policy_loss(policy_loss, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, max_ratio=max_ratio)
    token_loss = make_token_loss(
        loss,
        kl_coef=kl_coef,
        entropy_coef=entropy_coef,
        importance=importance,
        importance_ceiling=importance_ceiling,
    )
    return Recipe(
        stages=tuple(stages),
        token_loss=token_loss,
        reduction=reduction,
        needs_reference=kl_coef > 0,
        resample_rounds=resample_rounds,
        is_clipped=policy_loss in CLIPPED,
        reads_rewards=normalize != "outcome_sign",
    )


def _overlong_stage(buffer: int) -> Stage:
    def apply(rollout: Rollout, context: StepContext):
        length = jnp.sum(rollout.response_mask, axis=1).astype(jnp.float32)
        is_fresh = rollout.origin == FRESH
        penalty = advantage_lib.overlong_penalty(length, max_length=context.max_response, buffer=buffer)
        penalty = jnp.where(is_fresh, penalty, 0.0)
        return rollout.replace(rewards=rollout.rewards + penalty), {"overlong_penalty": masked_mean(penalty, is_fresh)}

    return Stage("overlong_penalty", "reward", stateless(apply))


def clip_cov(base: Recipe, *, fraction: float = 2e-4, lower: float = 1.0, upper: float = 5.0) -> Recipe:
    """GRPO without the policy loss on a few tokens of high covariance, drawn at random.

    max(1, floor(fraction N)) of the tokens with lower < (A - mean A)(log pi - mean log pi) < upper lose their loss and
    stay in the denominator.

    Source: Cui et al. 2025, https://arxiv.org/abs/2505.22617, Clip-Cov. Differs: the covariance is of the whole rollout
    batch before any update, so no token is clipped yet and none is excluded for it.
    """
    if not 0 <= fraction <= 1 or not lower < upper:
        raise ValueError(f"clip_cov needs fraction={fraction} in [0, 1] and lower={lower} below upper={upper}")

    def apply(rollout: Rollout, context: StepContext):
        mask = policy_mask(rollout)
        covariance = token_covariance(rollout.old_log_probs, rollout.advantages, mask)
        candidates = mask & (covariance > lower) & (covariance < upper)
        count = jnp.maximum(fraction_of(fraction, jnp.sum(mask)), 1)
        noise = jax.random.uniform(jax.random.fold_in(context.key, 0xC0F), mask.shape)
        dropped = lowest(noise, candidates, count)
        metrics = {"covariance_dropped": jnp.sum(dropped) / jnp.maximum(jnp.sum(mask), 1)}
        return multiply_weight(rollout, "policy", jnp.where(dropped, 0.0, 1.0)), metrics

    return base.with_stage(Stage("clip_cov", "weigh", stateless(apply)))


def kl_cov(base: Recipe, *, fraction: float = 2e-3, beta: float = 1.0) -> Recipe:
    """-r A for every token, plus beta |log pi - log pi_old| on the floor(fraction N) of largest covariance.

    Source: Cui et al. 2025, https://arxiv.org/abs/2505.22617, KL-Cov (the released code's absolute difference).
    """
    if not 0 <= fraction <= 1 or beta < 0:
        raise ValueError(f"kl_cov needs fraction={fraction} in [0, 1] and beta={beta} of at least 0")

    def apply(rollout: Rollout, context: StepContext):
        del context
        mask = policy_mask(rollout)
        covariance = token_covariance(rollout.old_log_probs, rollout.advantages, mask)
        chosen = lowest(-covariance, mask, fraction_of(fraction, jnp.sum(mask)))
        return add_weight(rollout, "kl_old", jnp.where(chosen, beta, 0.0)), {}

    return base.with_stage(Stage("kl_cov", "weigh", stateless(apply)))


def top_entropy(base: Recipe, *, fraction: float = 0.2) -> Recipe:
    """The policy loss only on the ceil(fraction N) tokens of highest entropy ("80/20"); the mean is over all tokens.

    Source: Wang et al. 2025, https://arxiv.org/abs/2506.01939. By count, ties by index: a quantile would keep every
    token where most have the same entropy, 0.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"top_entropy needs fraction={fraction} in (0, 1]")

    def apply(rollout: Rollout, context: StepContext):
        del context
        mask = policy_mask(rollout)
        chosen = lowest(-rollout.old_entropy, mask, fraction_of(fraction, jnp.sum(mask), up=True))
        return multiply_weight(rollout, "policy", jnp.where(mask & ~chosen, 0.0, 1.0)), {}

    return base.with_stage(Stage("top_entropy", "weigh", stateless(apply)))


def adaptive_entropy(
    base: Recipe, *, target: float = 0.2, increment: float = 1e-4, max_coef: float = 5e-3, start: float = 0.0
) -> Recipe:
    """An entropy bonus whose coefficient rises by ``increment`` while H < target and falls otherwise.

    It is applied only while H < target. Source: He et al. 2025, Skywork-OR1, https://arxiv.org/abs/2505.22312.
    """
    if min(target, increment, max_coef, start) < 0 or start > max_coef:
        raise ValueError("adaptive_entropy needs target, increment and 0 <= start <= max_coef, none negative")

    def apply(rollout: Rollout, state: Any, context: StepContext):
        del context
        is_low = policy_entropy(rollout) < target
        coef = jnp.clip(state + jnp.where(is_low, increment, -increment), 0.0, max_coef)
        used = jnp.where(is_low, coef, 0.0)
        return add_weight(rollout, "entropy", used), coef, {"entropy_coef": used}

    return base.with_stage(Stage("adaptive_entropy", "weigh", apply, lambda: jnp.full((), start, jnp.float32)))


def entropic(base: Recipe, *, target: float = 0.2, proportional: float = 1.0, integral: float = 0.01) -> Recipe:
    """EntroPIC: positives weigh 1 + alpha, negatives 1 - alpha, alpha = k_p e + k_i sum of earlier e, e = H - target.

    Source: EntroPIC, as restated by Entrocraft, https://arxiv.org/abs/2604.26326.
    """
    if target < 0:
        raise ValueError(f"entropic needs a target of at least 0 nats, got {target}")

    def apply(rollout: Rollout, state: Any, context: StepContext):
        del context
        error = policy_entropy(rollout) - target
        alpha = proportional * error + integral * state
        factor = 1 + alpha * jnp.sign(rollout.advantages)
        return multiply_weight(rollout, "policy", factor), state + error, {"entropic_alpha": alpha}

    return base.with_stage(Stage("entropic", "select", apply, lambda: jnp.zeros((), jnp.float32)))


def over_grpo(function: Callable[..., Recipe] | None = None, **changed: Any) -> Callable[..., Recipe]:
    """A builder that takes GRPO's options, with ``changed`` defaults, and those of ``function(base, *, ...)``."""
    core = {name: p.replace(default=changed.get(name, p.default)) for name, p in
            inspect.signature(grpo).parameters.items()}  # fmt: skip
    own = dict(list(inspect.signature(function).parameters.items())[1:]) if function else {}

    def build(**options: Any) -> Recipe:
        given = {name: options.get(name, p.default) for name, p in core.items()}
        base = grpo(**given)
        return function(base, **{name: x for name, x in options.items() if name in own}) if function else base

    build.__doc__ = function.__doc__ if function else None
    build.__signature__ = inspect.Signature([*own.values(), *core.values()])  # type: ignore[attr-defined]
    return build


RECIPES: dict[str, Callable[..., Recipe]] = {
    "grpo": grpo,
    "dapo": over_grpo(clip_high=0.28, reduction="token_mean", resample_rounds=10),
    "dr_grpo": over_grpo(normalize="none", reduction="fixed_length"),
    "gspo": over_grpo(policy_loss="sequence_clip", clip_low=3e-4, clip_high=4e-4),
    "cispo": over_grpo(policy_loss="cispo", reduction="token_mean"),
    "rloo": over_grpo(policy_loss="reinforce", normalize="leave_one_out", reduction="token_mean"),
    "clip_cov": over_grpo(clip_cov, reduction="token_mean"),
    "kl_cov": over_grpo(kl_cov, policy_loss="unclipped", reduction="token_mean"),
    "top_entropy": over_grpo(top_entropy, reduction="token_mean"),
    "entropy_bonus": over_grpo(entropy_coef=3e-3),
    "adaptive_entropy": over_grpo(adaptive_entropy),
    "w_reinforce": over_grpo(policy_loss="reinforce", normalize="outcome_sign", reduction="token_mean"),
    "entropic": over_grpo(entropic),
}


def default_options(name: str) -> dict[str, Any]:
    """Every option of a recipe with its default; see ``make_recipe`` for errors."""
    check_choice("recipe", name, tuple(RECIPES))
    return {option: p.default for option, p in inspect.signature(RECIPES[name]).parameters.items()}


def make_recipe(name: str, **options: Any) -> Recipe:
    """The recipe ``name`` with ``options``.

    Raises:
        ValueError: for an unknown recipe or an option it does not have, naming those there are.
    """
    known = default_options(name)
    for option in options:
        if option not in known:
            raise ValueError(f"recipe {name!r} has no option {option!r}; it has {', '.join(known)}")
    check_finite("recipe", options)
    return RECIPES[name](**options)


def refuse_unread(function: Callable[..., Any], given: dict[str, Any], read: dict[str, bool], why: str) -> None:
    """Raises ValueError where an option of ``function`` that is not read differs from its default.

    Args:
        function: whose signature has the defaults.
        given: the options by name, others among them.
        read: which of its options are read, given the rest.
        why: the options that decide so, for the message.
    """
    defaults = inspect.signature(function).parameters
    for name, is_read in read.items():
        default = defaults[name].default
        if not is_read and given[name] != default:
            raise ValueError(
                f"{function.__name__} {name}={given[name]} has no effect with {why}; leave it at {default}"
            )


def check_finite(what: str, options: dict[str, Any], may_be_infinite: tuple[str, ...] = ()) -> None:
    """Raises ValueError where a number among ``options``, or in a sequence among them, is not finite."""
    for name, value in options.items():
        for number in value if isinstance(value, tuple | list) else (value,):
            is_fine = not isinstance(number, float) or math.isfinite(number)
            if not is_fine and not (math.isinf(number) and name in may_be_infinite):
                raise ValueError(f"{what} {name}={value} must be finite")


def check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError where ``value`` is none of ``choices``."""
    if value not in choices:
        raise ValueError(f"{what} {value!r} is not one of {', '.join(choices)}")
