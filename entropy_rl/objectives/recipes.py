"""Recipes: a name, and which function stands at which stage of the step.

A recipe is built from plain keyword options and holds pure functions only. The loop and the learner call the stages
and know no recipe by name; a new one is one function here and one entry in ``RECIPES``.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from entropy_rl.distributions import kl_estimate
from entropy_rl.objectives import losses
from entropy_rl.objectives.advantages import NORMALIZATIONS, group_relative_advantages
from entropy_rl.types import Rollout

TokenLoss = Callable[[Any, Any, Rollout], tuple[Any, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The stages of one algorithm.

    Attributes:
        advantages: rewards [P, G] -> advantages [P, G].
        token_loss: (log_probs [B, T], entropy [B, T], rollout) -> (loss [B, T], per-token metrics by name), given the
            current policy's log-probs and entropy; only entries under ``rollout.loss_mask`` count.
        reduction: how token losses become one number; see ``reduction_weights``.
        needs_reference: whether ``token_loss`` reads ``rollout.ref_log_probs``.
    """

    advantages: Callable[[Any], Any]
    token_loss: TokenLoss
    reduction: str
    needs_reference: bool = False


def grpo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    kl_coef: float = 0.0,
    normalize: str = "std",
    reduction: str = "sequence_mean",
    importance: str = "none",
    importance_ceiling: float = 2.0,
) -> Recipe:
    """Group-relative policy optimisation with a clipped ratio and an optional KL penalty to a frozen reference.

    Source: Shao et al. 2024, https://arxiv.org/abs/2402.03300, eq. 3 and 4. Differs: no KL unless ``kl_coef`` > 0.

    Args:
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        dual_clip: bound on the loss of tokens with negative advantage, or None.
        kl_coef: weight of the k3 estimate of KL(pi || pi_ref), nats.
        normalize: "std" or "none"; see ``group_relative_advantages``.
        reduction: see ``reduction_weights``.
        importance: weight for the gap between sampler and trainer: "none", "token", "sequence".
        importance_ceiling: largest such weight.
    """
    _check_choice("reduction", reduction, losses.REDUCTIONS)
    _check_choice("normalize", normalize, NORMALIZATIONS)
    _check_choice("importance", importance, losses.IMPORTANCE_LEVELS)
    if importance_ceiling <= 0:
        raise ValueError(f"importance_ceiling={importance_ceiling} must be positive")
    if not 0 <= clip_low <= 1 or clip_high < 0 or kl_coef < 0 or (dual_clip is not None and dual_clip <= 1):
        raise ValueError(
            f"clip_low={clip_low} must lie in [0, 1], clip_high={clip_high} and kl_coef={kl_coef} must not be "
            f"negative, and dual_clip={dual_clip} must be None or above 1"
        )

    def advantages(rewards):
        return group_relative_advantages(rewards, normalize=normalize)

    def token_loss(log_probs, entropy, rollout):
        del entropy
        loss, metrics = losses.clipped_policy_loss(
            log_probs,
            rollout.old_log_probs,
            rollout.advantages,
            clip_low=clip_low,
            clip_high=clip_high,
            dual_clip=dual_clip,
        )
        if importance != "none":
            weights = losses.importance_weights(
                rollout.old_log_probs,
                rollout.sampler_log_probs,
                rollout.response_mask,
                level=importance,
                ceiling=importance_ceiling,
            )
            loss, metrics["importance_weight"] = loss * weights, weights
        if kl_coef:
            kl = kl_estimate(log_probs, rollout.ref_log_probs)
            loss, metrics["kl_ref"] = loss + kl_coef * kl, kl
        return loss, metrics

    return Recipe(advantages, token_loss, reduction, needs_reference=kl_coef > 0)


RECIPES: dict[str, Callable[..., Recipe]] = {"grpo": grpo}


def make_recipe(name: str, **options: Any) -> Recipe:
    """The recipe ``name`` with ``options``.

    Raises:
        ValueError: for an unknown recipe or an option it does not have, naming those there are.
    """
    _check_choice("recipe", name, tuple(RECIPES))
    known = tuple(inspect.signature(RECIPES[name]).parameters)
    for option in options:
        if option not in known:
            raise ValueError(f"recipe {name!r} has no option {option!r}; it has {', '.join(known)}")
    return RECIPES[name](**options)


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} {value!r} is not one of {', '.join(choices)}")


def token_advantages(advantages: Any, rollout: Rollout) -> Any:
    """Each response's advantage [P, G] on all its tokens, [B, T]; 0 elsewhere."""
    return jnp.where(rollout.response_mask, advantages.reshape(-1)[:, None], 0.0)
