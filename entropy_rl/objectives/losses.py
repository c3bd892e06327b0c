"""Token losses and the weights that reduce them to one number.

A loss is sum_t w_t * l_t, with the weights fixed by the minibatch's mask before it is split into microbatches; so
gradients do not depend on how many microbatches there are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from entropy_rl.masked import masked_mean, masked_sum

REDUCTIONS = ("sequence_mean", "token_mean", "fixed_length")
IMPORTANCE_LEVELS = ("none", "token", "sequence")


def clipped_policy_loss(
    log_probs: Float[Array, "B T"],
    old_log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> tuple[Float[Array, "B T"], dict[str, Float[Array, "B T"]]]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) per token, r = exp(log pi - log pi_old).

    The difference of log-probs is clamped to +-20, where its gradient is then 0: a ratio never overflows.

    Source: Schulman et al. 2017, PPO, https://arxiv.org/abs/1707.06347, eq. 7. Dual clip: Ye et al. 2020,
    https://arxiv.org/abs/1912.09729: for A < 0 the loss is at most -dual_clip * A.

    Returns:
        (loss, indicators), the latter 1 where the clip took the gradient away, below, above, and by the dual clip.
    """
    ratio = _ratio(log_probs, old_log_probs)
    unclipped = ratio * advantages
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
    loss = -jnp.minimum(unclipped, clipped)
    indicators = {
        "clip_fraction_low": ((ratio < 1 - clip_low) & (advantages < 0)).astype(jnp.float32),
        "clip_fraction_high": ((ratio > 1 + clip_high) & (advantages > 0)).astype(jnp.float32),
    }
    if dual_clip is not None:
        bound = -dual_clip * advantages
        is_bound = (advantages < 0) & (loss > bound)
        loss = jnp.where(is_bound, bound, loss)
        indicators["clip_fraction_dual"] = is_bound.astype(jnp.float32)
    return loss, indicators


def _ratio(log_probs: Float[Array, "B T"], old_log_probs: Float[Array, "B T"]) -> Float[Array, "B T"]:
    return jnp.exp(jnp.clip(log_probs - old_log_probs, -20.0, 20.0))


def unclipped_policy_loss(
    log_probs: Float[Array, "B T"], old_log_probs: Float[Array, "B T"], advantages: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """-r A per token, r = exp(log pi - log pi_old)."""
    return -_ratio(log_probs, old_log_probs) * advantages


def reinforce_loss(log_probs: Float[Array, "B T"], advantages: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """-A log pi per token."""
    return -advantages * log_probs


def cispo_loss(
    log_probs: Float[Array, "B T"],
    old_log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    *,
    max_ratio: float = 5.0,
) -> tuple[Float[Array, "B T"], dict[str, Float[Array, "B T"]]]:
    """-sg[min(r, max_ratio)] A log pi per token: the ratio is bounded, no token loses its gradient.

    Source: MiniMax 2025, CISPO, https://arxiv.org/abs/2506.13585. ``max_ratio`` is the ceiling itself.
    """
    ratio = jax.lax.stop_gradient(_ratio(log_probs, old_log_probs))
    metrics = {"clip_fraction_high": (ratio > max_ratio).astype(jnp.float32)}
    return -jnp.minimum(ratio, max_ratio) * advantages * log_probs, metrics


def sequence_policy_loss(
    log_probs: Float[Array, "B T"],
    old_log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> tuple[Float[Array, "B T"], dict[str, Float[Array, "B T"]]]:
    """-min(s A, clip(s) A) with the sequence's ratio s = exp(mean_t log r_t), as sg[s] pi / sg[pi] on every token.

    Source: Zheng et al. 2025, GSPO, https://arxiv.org/abs/2507.18071 (the token form, which allows token advantages).
    """
    difference = jnp.clip(log_probs - old_log_probs, -20.0, 20.0)
    mean = masked_mean(jax.lax.stop_gradient(difference), mask, axis=1)[:, None]
    own = jnp.where(mask, log_probs - jax.lax.stop_gradient(log_probs), 0.0)
    return clipped_policy_loss(mean + own, jnp.zeros_like(own), advantages, clip_low=clip_low, clip_high=clip_high)


def reduction_weights(
    mask: Bool[Array, "B T"], *, reduction: str, max_response: int | None = None
) -> Float[Array, "B T"]:
    """Weights w with loss = sum w * token loss; 0 outside ``mask``.

    "sequence_mean": mean over sequences of the mean over their tokens (GRPO); sequences without a token do not count.
    "token_mean": mean over all tokens (DAPO). "fixed_length": sum / (B * max_response) (Dr. GRPO), B sequences with a
    token.

    Raises:
        ValueError: for an unknown reduction, or "fixed_length" without ``max_response``.
    """
    counts = jnp.sum(mask, axis=1, keepdims=True)
    if reduction == "sequence_mean":
        weights = 1.0 / (jnp.maximum(counts, 1) * jnp.maximum(jnp.sum(counts > 0), 1))
    elif reduction == "token_mean":
        weights = 1.0 / jnp.maximum(jnp.sum(counts), 1)
    elif reduction == "fixed_length" and max_response is not None:
        weights = 1.0 / (jnp.maximum(jnp.sum(counts > 0), 1) * max_response)
    elif reduction == "fixed_length":
        raise ValueError("reduction 'fixed_length' divides by max_response, which was not given")
    else:
        raise ValueError(f"reduction {reduction!r} is not one of {', '.join(REDUCTIONS)}")
    return jnp.where(mask, weights, 0.0)


def importance_weights(
    old_log_probs: Float[Array, "B T"],
    sampler_log_probs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    level: str,
    ceiling: float = 2.0,
) -> Float[Array, "B T"]:
    """min(exp(log pi_old - log pi_sampler), ceiling): corrects for drawing from another distribution than pi_old.

    ``level="token"`` weighs each token by its own ratio, "sequence" by its response's product of ratios, "none" by 1.

    Raises:
        ValueError: for an unknown level.
    """
    if level not in IMPORTANCE_LEVELS:
        raise ValueError(f"importance level {level!r} is not one of {', '.join(IMPORTANCE_LEVELS)}")
    if level == "none":
        return jnp.ones_like(old_log_probs)
    difference = old_log_probs - sampler_log_probs
    if level == "sequence":
        difference = jnp.broadcast_to(masked_sum(difference, mask, axis=1)[:, None], mask.shape)
    weights = jnp.exp(jnp.minimum(difference, jnp.log(ceiling)))
    return jax.lax.stop_gradient(jnp.where(mask, weights, 0.0))
