"""SENT as a curriculum and a stage that weighs each token's KL."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from entropy_rl.masked import masked_mean
from entropy_rl.methods import sent as lib
from entropy_rl.objectives.recipe import Recipe, RunFacts, Stage, StepContext, add_weight, policy_mask, stateless
from entropy_rl.objectives.recipes import check_choice, refuse_unread
from entropy_rl.types import Rollout

VARIANTS = ("paper", "released")


def sent(
    base: Recipe,
    facts: RunFacts,
    *,
    stages: int = 2,
    low_entropy_fraction: float = 0.8,
    high_covariance_fraction: float = 0.02,
    beta_low: float = 0.05,
    beta_high: float = 0.2,
    variant: str = "paper",
    coefficient: float = 0.1,
    global_kl: float = 1e-3,
) -> Recipe:
    """A curriculum by semantic entropy, and a KL penalty on low-entropy tokens; see ``methods.sent``.

    Args:
        stages: of the curriculum, by the file ``experiments.rank_prompts`` wrote (``config.curriculum.path``); 1: none.
        low_entropy_fraction, high_covariance_fraction, beta_low, beta_high: see ``token_kl_weights``.
        variant: "paper", or "released": no clip (-r A), |log pi - log pi_old| at 2x and .5x ``coefficient`` on the two
            ends of T_low by covariance, and ``global_kl`` of k3 on every token.
        coefficient, global_kl: of the released variant.

    Source: https://arxiv.org/abs/2512.04359.
    """
    del facts
    check_choice("sent variant", variant, VARIANTS)
    if stages < 1:
        raise ValueError(f"sent stages={stages} must be at least 1")
    if min(beta_low, beta_high, coefficient, global_kl) < 0:
        raise ValueError("sent beta_low, beta_high, coefficient and global_kl must not be negative")
    for name, value in dict(low_entropy_fraction=low_entropy_fraction,
                            high_covariance_fraction=high_covariance_fraction).items():  # fmt: skip
        if not 0 <= value <= 1:
            raise ValueError(f"sent {name}={value} must lie in [0, 1]")
    read = {
        "beta_low": variant == "paper",
        "beta_high": variant == "paper",
        "coefficient": variant == "released",
        "global_kl": variant == "released",
    }
    refuse_unread(sent, locals(), read, f"variant={variant!r}")
    recipe = dataclasses.replace(base, curriculum_stages=stages)
    if variant == "released":
        if base.is_clipped:
            raise ValueError(
                "sent variant 'released' has no clip: set config.recipe.options.policy_loss to 'unclipped'"
            )
        weights = functools.partial(lib.released_token_weights, low_entropy_fraction=low_entropy_fraction,
                                    covariance_fraction=high_covariance_fraction, coefficient=coefficient)  # fmt: skip
        needs_reference = base.needs_reference or global_kl > 0
        return recipe.with_stage(_stage(weights, "kl_old", global_kl), needs_reference=needs_reference)
    if not beta_low and not beta_high:
        return recipe
    weights = functools.partial(lib.token_kl_weights, low_entropy_fraction=low_entropy_fraction,
                                high_covariance_fraction=high_covariance_fraction, beta_low=beta_low,
                                beta_high=beta_high)  # fmt: skip
    return recipe.with_stage(_stage(weights, "kl_ref"), needs_reference=True)


def _stage(weights: Callable[..., Any], name: str, global_kl: float = 0.0) -> Stage:
    """Adds each token's weight to ``rollout.weights[name]``, and ``global_kl`` to those of the reference."""

    def apply(rollout: Rollout, context: StepContext):
        del context
        mask = policy_mask(rollout)
        added = weights(rollout.old_entropy, rollout.old_log_probs, rollout.advantages, mask)
        rollout = add_weight(rollout, name, added)
        rollout = add_weight(rollout, "kl_ref", global_kl) if global_kl else rollout
        return rollout, {"kl_weight": masked_mean(added, rollout.loss_mask)}

    return Stage("sent", "weigh", stateless(apply))
