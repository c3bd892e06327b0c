"""The readable reference: all logits at once, plain autodiff."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.linear_token_stats.types import TokenStats


def scaled_logits(logits: Float[Array, "*R"], temperature: float, soft_cap: float | None) -> Float[Array, "*R"]:
    """z = c tanh(a / c) / temperature, or a / temperature without a cap."""
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    return logits / temperature


def stats_from_scaled_logits(
    z: Float[Array, "R V"], targets: Int[Array, "R"], *, with_varentropy: bool = True
) -> TokenStats:
    """Statistics of softmax(z), with every sum shifted by the row's maximum (f32 stays honest at large offsets)."""
    maximum = jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    x = z - maximum
    e = jnp.exp(x)
    xe = jnp.where(e > 0, x * e, 0.0)  # a logit of -inf contributes 0
    s, t, q = jnp.sum(e, -1), jnp.sum(xe, -1), jnp.sum(jnp.where(e > 0, x * xe, 0.0), -1)
    log_s = jnp.log(s)
    target = jnp.take_along_axis(x, targets[:, None], axis=-1)[:, 0]
    return TokenStats(
        log_probs=target - log_s,
        entropy=log_s - t / s,
        logsumexp=maximum[:, 0] + log_s,
        varentropy=q / s - jnp.square(t / s) if with_varentropy else None,
    )


def linear_token_stats(
    hidden: Float[Array, "R D"],
    weight: Float[Array, "_ _"],
    targets: Int[Array, "R"],
    *,
    temperature: float,
    soft_cap: float | None,
    weight_layout: str,
    with_varentropy: bool,
) -> TokenStats:
    """From the full [R, V] logits; for tests and tiny vocabularies."""
    equation = {"DV": "RD,DV->RV", "VD": "RD,VD->RV"}[weight_layout]
    logits = jnp.einsum(equation, hidden, weight, preferred_element_type=jnp.float32)
    return stats_from_scaled_logits(
        scaled_logits(logits, temperature, soft_cap), targets, with_varentropy=with_varentropy
    )
