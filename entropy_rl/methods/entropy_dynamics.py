"""What an update does to the policy's entropy, to first order.

Source: Entrocraft, https://arxiv.org/abs/2604.26326 (Theorem 1 and its sequence form).
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from entropy_rl.masked import masked_mean


def softmax_step_entropy_change(
    logits: Float[Array, "V"],
    action: Int[Array, ""] | int,
    advantage: Float[Array, ""] | float,
    learning_rate: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Change of entropy by one policy-gradient step on softmax logits, to first order in the rate.

        dH = -eta A [ p_k (log p_k + H) - sum_i p_i^2 (log p_i + H) ]

    The step is z <- z + eta A (e_k - p), the gradient of A log p_k.

    Args:
        logits: z.
        action: k, the sampled token.
        advantage: A.
        learning_rate: eta.

    Returns:
        Nats; the error is of second order in ``learning_rate``.
    """
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    plogp = jnp.where(p > 0, p * log_p, 0.0)
    surplus = plogp - p * jnp.sum(plogp)  # p_i (log p_i + H)
    return -learning_rate * advantage * (surplus[action] - jnp.sum(p * surplus))


def entropy_threshold(
    logits: Float[Array, "V"], action: Int[Array, ""] | int
) -> tuple[Float[Array, ""], Float[Array, "V"]]:
    """The probability above which reinforcing a token lowers entropy: A dH < 0 iff p_k > prod_{i != k} p_i^{w_i}.

    Source: Theorem 1. w_i = -dp_i / dp_k, the shares in which the others pay for the token's gain; they sum to 1 over
    i != k and may be negative.

    Returns:
        (log of the threshold, the weights [V] with 0 at the action). Undefined (NaN) for a policy that is certain.
    """
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    one_hot = jax.nn.one_hot(action, p.shape[0], dtype=p.dtype)
    change = p * (one_hot - p - (p[action] - jnp.sum(p * p)))
    weights = jnp.where(one_hot > 0, 0.0, -change / change[action])
    return jnp.sum(jnp.where(weights == 0, 0.0, weights * log_p)), weights


def token_entropy_change(
    log_probs: Float[Array, "B T"], entropy: Float[Array, "B T"], advantages: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """-A (log pi + H) per token: the direction in which reinforcing it moves entropy, up to a positive factor."""
    return -advantages * (log_probs + entropy)


def sequence_entropy_change(
    log_probs: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    advantages: Float[Array, "B"] | Float[Array, "B T"],
) -> Float[Array, "B"]:
    """Predicted change of entropy by each response, up to a positive factor: -sum_t A m (log pi + H).

    A response that was likelier than expected (log-likelihood above its expectation) lowers entropy when reinforced.

    Args:
        log_probs: of the sampled tokens under the policy that is about to be updated, nats.
        entropy: of the same policy at the same places, nats.
        mask: which tokens count.
        advantages: per response or per token.

    Returns:
        f32 [B]; 0 for a row without tokens.
    """
    advantages = advantages[:, None] if advantages.ndim == 1 else advantages
    change = token_entropy_change(log_probs, entropy, jnp.broadcast_to(advantages, log_probs.shape))
    return jnp.sum(jnp.where(mask, change, 0.0), axis=1)


def minibatch_entropy_change(
    log_probs: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    advantages: Float[Array, "B"] | Float[Array, "B T"],
    weights: Float[Array, "B T"] | None = None,
) -> Float[Array, ""]:
    """Predicted change of mean token entropy by one update on a minibatch, up to a positive factor.

    The weighted sum of -A (log pi + H), with the weights of the loss's reduction (default: the mean over tokens).
    Source: the sequence form, summed; ours. The factor (rate, optimizer, curvature) is not known to first order, so
    compare it with realised changes by correlation.
    """
    advantages = advantages[:, None] if advantages.ndim == 1 else advantages
    change = token_entropy_change(log_probs, entropy, jnp.broadcast_to(advantages, log_probs.shape))
    if weights is None:
        return masked_mean(change, mask)
    return jnp.sum(jnp.where(mask, change * weights, 0.0))


class RunningCorrelation(struct.PyTreeNode):
    """Exponentially weighted moments of pairs (x, y), f32 scalars: weight, means and second moments."""

    weight: Array
    x: Array
    y: Array
    xx: Array
    yy: Array
    xy: Array

    @classmethod
    def empty(cls) -> "RunningCorrelation":
        """No pairs yet."""
        return cls(*(jnp.zeros((), jnp.float32) for _ in range(6)))

    def add(self, x: Float[Array, ""], y: Float[Array, ""], *, rate: float = 0.98) -> "RunningCorrelation":
        """With one more pair; earlier ones count ``rate`` times as much as before."""
        new = (jnp.ones(()), x, y, x * x, y * y, x * y)
        old = (self.weight, self.x, self.y, self.xx, self.yy, self.xy)
        return RunningCorrelation(*(rate * a + (1 - rate) * b for a, b in zip(old, new, strict=True)))

    def value(self) -> Float[Array, ""]:
        """Pearson's correlation of the weighted pairs; 0 while one of the two has not varied."""
        weight = jnp.maximum(self.weight, 1e-12)
        x, y = self.x / weight, self.y / weight
        var_x, var_y = self.xx / weight - x * x, self.yy / weight - y * y
        varied = (var_x > 1e-6 * self.xx / weight) & (var_y > 1e-6 * self.yy / weight)
        product = jnp.where(varied, var_x * var_y, 1.0)
        return jnp.where(varied, jnp.clip((self.xy / weight - x * y) * jax.lax.rsqrt(product), -1.0, 1.0), 0.0)
