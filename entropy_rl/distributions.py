"""Log-probs, entropies and divergences from logits: the readable reference, in the logits' own dtype.

The fused forms that never hold [tokens, vocabulary] are in ``pallas_kernels``; tests compare them with these.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def log_prob(logits: Float[Array, "*R V"], tokens: Int[Array, "*R"]) -> Float[Array, "*R"]:
    """log softmax(logits)[token], in nats."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]


def entropy(logits: Float[Array, "*R V"]) -> Float[Array, "*R"]:
    """H = -sum_v p_v log p_v in nats, between 0 and ln V; a logit of -inf contributes 0."""
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    return -jnp.sum(jnp.where(p > 0, p * log_p, 0.0), axis=-1)


def kl_divergence(logits_p: Float[Array, "*R V"], logits_q: Float[Array, "*R V"]) -> Float[Array, "*R"]:
    """KL(p || q) = sum_v p_v (log p_v - log q_v) in nats."""
    log_p, log_q = jax.nn.log_softmax(logits_p), jax.nn.log_softmax(logits_q)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def kl_estimate(log_probs: Float[Array, "*R"], ref_log_probs: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """The k3 estimator of KL(pi || pi_ref) from tokens drawn from pi: expm1(d) - d with d = log pi_ref - log pi.

    Non-negative and unbiased. ``d`` is clamped to +-20, where its gradient is then 0.

    Source: Schulman, "Approximating KL divergence" (2020), http://joschu.net/blog/kl-approx.html.
    Differs: expm1 in place of exp(d) - 1, which in f32 loses every digit for |d| below 1e-3.
    """
    d = jnp.clip(ref_log_probs - log_probs, -20.0, 20.0)
    return jnp.expm1(d) - d
