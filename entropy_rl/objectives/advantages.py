"""Advantages from the rewards of a prompt's samples."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from entropy_rl.masked import masked_mean, masked_std

NORMALIZATIONS = ("std", "none")


def group_relative_advantages(
    rewards: Float[Array, "P G"],
    mask: Bool[Array, "P G"] | None = None,
    *,
    normalize: str = "std",
    scale: float = 1.0,
    epsilon: float = 1e-6,
) -> Float[Array, "P G"]:
    """A = (R - mu) / (scale * sigma + epsilon) within each group; sigma is the unbiased standard deviation.

    Source: Shao et al. 2024, DeepSeekMath (GRPO), https://arxiv.org/abs/2402.03300, section 4.1.2; without division
    ("none") Liu et al. 2025, Dr. GRPO, https://arxiv.org/abs/2503.20783.

    Args:
        rewards: of the G samples of each prompt.
        mask: which samples exist, for groups of unequal size; None for all.
        normalize: "std" divides as above, "none" only subtracts the mean.
        scale: factor of sigma.
        epsilon: added to the denominator.

    Returns:
        Advantages; 0 where ``mask`` is false, and in groups of one (whose sigma counts as 0).

    Raises:
        ValueError: for an unknown ``normalize``.
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize={normalize!r} is not one of {', '.join(NORMALIZATIONS)}")
    mask = jnp.ones(rewards.shape, bool) if mask is None else mask
    # Measured from the group's largest, equal rewards are exactly 0 and so is their mean; a mean of equal floats need
    # not be that float, and division by epsilon would make an advantage of the rounding.
    largest = jnp.max(jnp.where(mask, rewards, -jnp.inf), axis=1, keepdims=True)
    rewards = jnp.where(mask, rewards - largest, 0.0)
    centred = jnp.where(mask, rewards - masked_mean(rewards, mask, axis=1)[:, None], 0.0)
    if normalize == "none":
        return centred
    return centred / (scale * masked_std(rewards, mask, axis=1)[:, None] + epsilon)


def leave_one_out_advantages(
    rewards: Float[Array, "P G"], mask: Bool[Array, "P G"] | None = None
) -> Float[Array, "P G"]:
    """R_i - mean_{j != i} R_j within each group; 0 in groups of one and where ``mask`` is false.

    Source: Kool et al. 2019 (RLOO), https://openreview.net/forum?id=r1lgTGL5DE; Ahmadian et al. 2024,
    https://arxiv.org/abs/2402.14740.
    """
    mask = jnp.ones(rewards.shape, bool) if mask is None else mask
    count = jnp.sum(mask, axis=1, keepdims=True)
    centred = group_relative_advantages(rewards, mask, normalize="none")
    return jnp.where(mask & (count > 1), centred * count / jnp.maximum(count - 1, 1), 0.0)


def outcome_sign_advantages(
    is_correct: Bool[Array, "P G"], *, success: float = 0.1, failure: float = -1.0
) -> Float[Array, "P G"]:
    """``success`` for a correct response, ``failure`` for a wrong one, whatever the group.

    Source: Zhu et al. 2025, "The Surprising Effectiveness of Negative Reinforcement", W-REINFORCE,
    https://arxiv.org/abs/2506.01347.
    """
    return jnp.where(is_correct, success, failure)


def overlong_penalty(length: Float[Array, "B"], *, max_length: int, buffer: int) -> Float[Array, "B"]:
    """0 up to max_length - buffer tokens, then falling linearly to -1 at max_length and staying there.

    Source: Yu et al. 2025, DAPO, https://arxiv.org/abs/2503.14476, eq. 13.

    Raises:
        ValueError: for a buffer that is not between 1 and ``max_length``.
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"the overlong buffer of {buffer} tokens must lie between 1 and max_response={max_length}")
    return jnp.clip((max_length - buffer - length) / buffer, -1.0, 0.0)
