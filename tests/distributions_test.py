"""Log-probs, entropy and KL against SciPy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from entropy_rl import distributions


def test_against_scipy():
    logits = np.random.default_rng(0).normal(0, 3, (5, 17))
    p = special.softmax(logits, -1)
    np.testing.assert_allclose(distributions.entropy(jnp.asarray(logits)), stats.entropy(p, axis=-1), atol=1e-5)
    other = np.random.default_rng(1).normal(0, 3, (5, 17))
    q = special.softmax(other, -1)
    kl = distributions.kl_divergence(jnp.asarray(logits), jnp.asarray(other))
    np.testing.assert_allclose(kl, stats.entropy(p, q, axis=-1), rtol=1e-4)
    tokens = np.array([0, 3, 16, 5, 5])
    log_p = distributions.log_prob(jnp.asarray(logits), jnp.asarray(tokens))
    np.testing.assert_allclose(log_p, np.log(p[np.arange(5), tokens]), atol=1e-5)


def test_uniform_and_forbidden():
    np.testing.assert_allclose(distributions.entropy(jnp.zeros((1, 8))), np.log(8), rtol=1e-6)
    half = jnp.array([[0.0, 0.0, -jnp.inf]])
    np.testing.assert_allclose(distributions.entropy(half), np.log(2), rtol=1e-6)


def test_kl_estimate_is_exact_for_small_differences():
    # d = 1e-4: exp(d) - 1 - d = d^2/2 + d^3/6 = 5.0001667e-9; exp(d) - 1 in f32 would give 0 or 1e-8.
    estimate = distributions.kl_estimate(jnp.array([-1.0]), jnp.array([-1.0 + 1e-4]))
    d = float(np.float32(-1.0 + 1e-4) - np.float32(-1.0))
    np.testing.assert_allclose(estimate, np.expm1(d) - d, rtol=1e-2)


def test_kl_estimate_averages_to_kl():
    rng = np.random.default_rng(0)
    p, q = special.softmax(rng.normal(0, 1, 6)), special.softmax(rng.normal(0, 1, 6))
    k3 = np.asarray(distributions.kl_estimate(jnp.log(jnp.asarray(p)), jnp.log(jnp.asarray(q))))
    np.testing.assert_allclose(np.sum(p * k3), stats.entropy(p, q), rtol=1e-5)


def test_kl_estimate_is_finite_far_away():
    value, gradient = jax.value_and_grad(lambda x: distributions.kl_estimate(x, jnp.float32(0)))(jnp.float32(-1e4))
    assert bool(jnp.isfinite(value))
    assert float(gradient) == 0.0
