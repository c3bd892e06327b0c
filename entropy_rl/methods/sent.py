"""SENT: a curriculum by semantic entropy, and a KL penalty on confident tokens that a reward would sharpen further.

Source: https://arxiv.org/abs/2512.04359.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from entropy_rl.masked import fraction_of, lowest, masked_mean


def semantic_entropy(cluster_ids: Int[Array, "M"], log_weights: Float[Array, "M"] | None = None) -> Float[Array, ""]:
    """H_SE = -sum_C P(C) log P(C) over clusters of a prompt's M responses; P(C) sums its members' normalised weights.

    Args:
        cluster_ids: equal ids are one cluster; any integers.
        log_weights: log-probability of each response, length-normalised where wanted, up to a constant; None counts
            responses (n_C / M).

    Returns:
        Nats in [0, ln M].
    """
    cluster_ids = jnp.asarray(cluster_ids)
    log_weights = jnp.zeros(cluster_ids.shape, jnp.float32) if log_weights is None else jnp.asarray(log_weights)
    weights = jax.nn.softmax(log_weights)
    same = cluster_ids[:, None] == cluster_ids[None, :]
    cluster = jnp.sum(jnp.where(same, weights[None, :], 0.0), axis=1)
    log_cluster = jnp.log(jnp.where(weights > 0, cluster, 1.0))
    return jnp.maximum(-jnp.sum(weights * log_cluster), 0.0)


def curriculum_stages(values: Float[Array, "P"] | np.ndarray, num_stages: int) -> list[np.ndarray]:
    """Indices of prompts by ascending value, ties by index, in ``num_stages`` stages of equal size (to within one).

    Raises:
        ValueError: for values that are not finite, or more stages than prompts.
    """
    values = np.asarray(values)
    if not 1 <= num_stages <= len(values):
        raise ValueError(f"{len(values)} prompts cannot be split into {num_stages} stages")
    if not np.all(np.isfinite(values)):
        raise ValueError(f"the semantic entropy of prompt {int(np.argmin(np.isfinite(values)))} is not finite")
    return np.array_split(np.argsort(values, kind="stable"), num_stages)


def token_covariance(
    log_probs: Float[Array, "B T"], advantages: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """(log pi - mean log pi)(A - mean A) per token, means over ``mask``; 0 elsewhere.

    Source: Cui et al. 2025, https://arxiv.org/abs/2505.22617: its mean is the covariance that drives entropy down.
    """
    product = (log_probs - masked_mean(log_probs, mask)) * (advantages - masked_mean(advantages, mask))
    return jnp.where(mask, product, 0.0)


def low_entropy_tokens(
    entropy: Float[Array, "B T"], mask: Bool[Array, "B T"], *, fraction: float = 0.8
) -> Bool[Array, "B T"]:
    """T_low: the floor(fraction N) tokens of lowest entropy among the N of ``mask``, ties by index."""
    return lowest(entropy, mask, fraction_of(fraction, jnp.sum(mask)))


def covariance_ends(
    entropy: Float[Array, "B T"],
    log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    low_entropy_fraction: float = 0.8,
    covariance_fraction: float,
) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"], Bool[Array, "B T"]]:
    """(T_low, its tokens of largest covariance, its tokens of smallest covariance), ties by index.

    Either end has floor(``covariance_fraction`` |T_low|) tokens. Everything is from the policy before the update, over
    the whole rollout batch.
    """
    low = low_entropy_tokens(entropy, mask, fraction=low_entropy_fraction)
    covariance = token_covariance(log_probs, advantages, mask)
    count = fraction_of(covariance_fraction, jnp.sum(low))
    return low, lowest(-covariance, low, count), lowest(covariance, low, count)


def token_kl_weights(
    entropy: Float[Array, "B T"],
    log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    low_entropy_fraction: float = 0.8,
    high_covariance_fraction: float,
    beta_low: float,
    beta_high: float,
) -> Float[Array, "B T"]:
    """Weight of each token's KL to the reference: beta_high on T_hc, beta_low on the rest of T_low, 0 elsewhere.

    T_hc is the top end of ``covariance_ends``.
    """
    fractions = dict(low_entropy_fraction=low_entropy_fraction, covariance_fraction=high_covariance_fraction)
    low, high, _ = covariance_ends(entropy, log_probs, advantages, mask, **fractions)
    return jnp.where(high, beta_high, jnp.where(low, beta_low, 0.0))


def released_token_weights(
    entropy: Float[Array, "B T"],
    log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    low_entropy_fraction: float = 0.8,
    covariance_fraction: float,
    coefficient: float = 0.1,
) -> Float[Array, "B T"]:
    """The released code's weights of |log pi - log pi_old|: 2x on the top of T_low by covariance, .5x on its bottom.

    Tokens between the two ends, and outside T_low, have none.
    """
    fractions = dict(low_entropy_fraction=low_entropy_fraction, covariance_fraction=covariance_fraction)
    _, top, bottom = covariance_ends(entropy, log_probs, advantages, mask, **fractions)
    return coefficient * jnp.where(top, 2.0, jnp.where(bottom, 0.5, 0.0))
