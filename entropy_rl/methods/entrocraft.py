"""Entrocraft: keep the policy's entropy inside a band by rejecting responses, or by biasing tokens.

Source: https://arxiv.org/abs/2604.26326. The paper's rule is ``select="sign"``, its released code's
``reward_sign_advantages``; ``select="predicted"``, ``strength`` and the controlled bias are ours.
"""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from entropy_rl.masked import lowest

SELECTS = ("sign", "predicted")
Scalar = Float[Array, ""] | float | int


def band_side(entropy: Scalar, low: Scalar, high: Scalar) -> Float[Array, ""]:
    """m = 1[H > h_high] - 1[H < h_low]: 1 above the band, -1 below it, 0 inside."""
    return (jnp.asarray(entropy) > high).astype(jnp.float32) - (jnp.asarray(entropy) < low).astype(jnp.float32)


def keep_mask(
    advantages: Float[Array, "B"],
    entropy: Scalar,
    low: Scalar,
    high: Scalar,
    *,
    select: str = "sign",
    predicted_change: Float[Array, "B"] | None = None,
    strength: Scalar = 1.0,
) -> Bool[Array, "B"]:
    """Which responses enter the update.

    "sign" (the paper): keep i iff m A_i >= 0. "predicted" (ours): keep i iff m dH_i <= 0, with dH_i the
    predicted change of entropy of ``sequence_entropy_change``. Inside the band, and where A = 0, everything is kept.

    Args:
        advantages: outcome advantages, also where segment credit made [B, T] of them.
        entropy: H, mean token entropy of the policy over fresh rows, nats.
        low, high: the band at this step, nats.
        select: "sign" or "predicted".
        predicted_change: dH_i; needed by "predicted", and by "sign" with a ``strength`` below 1, for its order.
        strength: fraction in [0, 1] of the rejectable responses to reject, the largest |dH_i| first.

    Raises:
        ValueError: for an unknown ``select``, or where ``predicted_change`` is needed and missing.
    """
    if select not in SELECTS:
        raise ValueError(f"select={select!r} is not one of {', '.join(SELECTS)}")
    is_full = isinstance(strength, int | float) and strength == 1
    if predicted_change is None and (select == "predicted" or not is_full):
        raise ValueError(f"select={select!r} with strength={strength} needs predicted_change")
    side = band_side(entropy, low, high)
    change = advantages if predicted_change is None else predicted_change
    if select == "sign":
        rejectable = side * jnp.sign(advantages) < 0
    else:
        rejectable = (side * jnp.sign(change) > 0) & (advantages != 0)
    if is_full:
        return ~rejectable
    count = jnp.round(jnp.clip(strength, 0.0, 1.0) * jnp.sum(rejectable)).astype(jnp.int32)
    return ~lowest(-jnp.abs(change), rejectable, count)


def rejection_strength(entropy: Scalar, low: Scalar, high: Scalar, *, full_at: float) -> Float[Array, ""]:
    """Distance of H from the band as a fraction of ``full_at`` nats, clipped to [0, 1]; ours."""
    outside = jnp.maximum(jnp.asarray(entropy) - high, low - jnp.asarray(entropy))
    return jnp.clip(outside / full_at, 0.0, 1.0)


def reward_sign_advantages(
    advantages: Float[Array, "B"], rewards: Float[Array, "B"], entropy: Scalar, low: Scalar, high: Scalar
) -> Float[Array, "B"]:
    """The released code's rule: outside the band the advantage becomes the raw reward's positive or negative part.

    max(R, 0) where H is too high, min(R, 0) where it is too low, A inside; ``rewards`` are +1 and -1 there, so that
    groups that are all right or all wrong still contribute. Rejected responses get 0 and stay in the denominator.
    """
    side = band_side(entropy, low, high)
    outside = jnp.where(side > 0, jnp.maximum(rewards, 0.0), jnp.minimum(rewards, 0.0))
    return jnp.where(side == 0, advantages, outside)


def entropy_biased_advantages(
    advantages: Float[Array, "B"] | Float[Array, "B T"],
    log_probs: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    gain: Scalar,
) -> Float[Array, "B T"]:
    """A - lambda (log pi_old + H) per token; lambda > 0 raises entropy, < 0 lowers it. Ours.

    To first order the added part changes entropy by lambda sum (log pi + H)^2: always in the direction of lambda.
    """
    advantages = advantages[:, None] if advantages.ndim == 1 else advantages
    return jnp.where(mask, advantages - gain * (log_probs + entropy), 0.0)


def neutral_gain(
    advantages: Float[Array, "B T"],
    log_probs: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    weights: Float[Array, "B T"],
) -> Float[Array, ""]:
    """The lambda for which the batch's predicted change of entropy is 0: <A, g> / <g, g>, g = log pi_old + H. Ours.

    With it ``entropy_biased_advantages`` is A without its part along g. ``weights`` are those of the loss's reduction.
    Returns 0 for an empty mask.
    """
    surplus = jnp.where(mask, log_probs + entropy, 0.0)
    along = jnp.sum(jnp.where(mask, weights * advantages, 0.0) * surplus)
    size = jnp.sum(jnp.where(mask, weights, 0.0) * surplus**2)
    return jnp.where(size > 0, along / jnp.where(size > 0, size, 1.0), 0.0)


class Controller(struct.PyTreeNode):
    """State of the PI controller: the sum of past errors, nats * steps."""

    integral: Array

    @classmethod
    def start(cls) -> "Controller":
        """Nothing summed yet."""
        return cls(jnp.zeros((), jnp.float32))


def control(
    state: Controller, entropy: Scalar, target: Scalar, *, proportional: float, integral: float, max_gain: float
) -> tuple[Controller, Float[Array, ""]]:
    """(new state, lambda): lambda = clip(k_p e + k_i sum e, +-max_gain), e = target - H.

    While lambda is at its bound the sum does not grow in that direction (anti-windup).
    """
    error = jnp.asarray(target - entropy, jnp.float32)
    total = state.integral + error
    wanted = proportional * error + integral * total
    winds_up = (jnp.abs(wanted) > max_gain) & (jnp.sign(wanted) == jnp.sign(error))
    total = jnp.where(winds_up, state.integral, total)
    gain = jnp.clip(proportional * error + integral * total, -max_gain, max_gain)
    return Controller(total), gain
