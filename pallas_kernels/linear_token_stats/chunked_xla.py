"""The portable implementation: a loop over vocabulary chunks with an online softmax and a hand-written gradient.

Row state m, s, t, q (maximum and shifted sums), merged chunk by chunk; the backward pass recomputes each chunk's
logits from the saved log-sum-exp. The last chunk overlaps its neighbour where the vocabulary is not a multiple of
the chunk, with the repeated columns masked: the tail stays inside the loop, which needs the least memory.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.linear_token_stats.types import TokenStats

_LOWEST = -1e30


def linear_token_stats(
    hidden, weight, targets, *, temperature, soft_cap, weight_layout, with_varentropy, chunk_size
) -> TokenStats:
    """See ``pallas_kernels.linear_token_stats``; R rows, at most ``chunk_size`` vocabulary columns at once."""
    static = (temperature, soft_cap, weight_layout, with_varentropy, chunk_size)
    log_probs, entropy, logsumexp, varentropy = _stats(static, hidden, weight, targets)
    return TokenStats(log_probs, entropy, logsumexp, varentropy if with_varentropy else None)


def _chunks(static, weight) -> tuple[int, int, int, int]:
    """Axis of V in ``weight``, V, columns of a chunk, number of chunks."""
    axis = static[2].index("V")
    size = weight.shape[axis]
    columns = min(static[4], size)
    return axis, size, columns, -(-size // columns)


def _chunk_logits(static, hidden, weight, i):
    """Chunk i: capped and tempered logits [R, C] in f32, d z / d a, the weight slice, its start, fresh columns [C]."""
    temperature, soft_cap, layout = static[:3]
    axis, size, columns, _ = _chunks(static, weight)
    start = jnp.minimum(i * columns, size - columns)
    piece = lax.dynamic_slice_in_dim(weight, start, columns, axis)
    fresh = start + jnp.arange(columns) >= i * columns
    equation = "RD,DC->RC" if layout == "DV" else "RD,CD->RC"
    a = jnp.einsum(equation, hidden, piece, preferred_element_type=jnp.float32)
    if soft_cap is None:
        return a / temperature, 1.0 / temperature, piece, start, fresh
    squashed = jnp.tanh(a / soft_cap)
    return soft_cap * squashed / temperature, (1.0 - squashed**2) / temperature, piece, start, fresh


def _forward(static, hidden, weight, targets):
    rows = hidden.shape[0]
    columns, count = _chunks(static, weight)[2:]
    with_varentropy = static[3]

    def body(i, state):
        m, s, t, q, z_target = state
        z, _, _, start, fresh = _chunk_logits(static, hidden, weight, i)
        new_m = jnp.maximum(m, jnp.max(jnp.where(fresh[None], z, _LOWEST), axis=-1))
        delta = jnp.maximum(m - new_m, -200.0)
        alpha = jnp.exp(delta)
        x = z - new_m[:, None]
        e = jnp.where(fresh[None], jnp.exp(x), 0.0)
        xe = jnp.where(fresh[None], x * e, 0.0)
        if with_varentropy:
            q = alpha * (q + 2 * delta * t + delta**2 * s) + jnp.sum(x * xe, -1)
        t = alpha * (t + delta * s) + jnp.sum(xe, -1)
        s = alpha * s + jnp.sum(e, -1)
        local = targets - start
        here = (targets >= i * columns) & (local < columns)
        picked = jnp.take_along_axis(z, jnp.clip(local, 0, columns - 1)[:, None], axis=-1)[:, 0]
        return new_m, s, t, q, jnp.where(here, picked, z_target)

    zeros = jnp.zeros(rows, jnp.float32)
    m, s, t, q, z_target = lax.fori_loop(0, count, body, (zeros + _LOWEST, zeros, zeros, zeros, zeros))
    log_s, mean = jnp.log(s), t / s
    return (z_target - m) - log_s, log_s - mean, m + log_s, q / s - jnp.square(mean)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stats(static, hidden, weight, targets):
    return _forward(static, hidden, weight, targets)


def _stats_fwd(static, hidden, weight, targets):
    outputs = _forward(static, hidden, weight, targets)
    return outputs, (hidden, weight, targets, *outputs[1:])


def _stats_bwd(static, residuals, cotangents):
    hidden, weight, targets, entropy, logsumexp, varentropy = residuals
    g_log_prob, g_entropy, g_lse, g_varentropy = (g[:, None] for g in cotangents)
    axis, _, columns, count = _chunks(static, weight)
    with_varentropy = static[3]
    low = hidden.dtype

    def body(i, state):
        d_hidden, d_weight = state
        z, dz_da, piece, start, fresh = _chunk_logits(static, hidden, weight, i)
        log_p = z - logsumexp[:, None]
        d = log_p + entropy[:, None]
        inner = g_lse - g_log_prob - g_entropy * d
        if with_varentropy:
            inner += g_varentropy * (d**2 - varentropy[:, None] + 2 * d)
        is_target = (targets[:, None] - start) == jnp.arange(columns)[None]
        g = (jnp.exp(log_p) * inner + g_log_prob * is_target) * dz_da
        g = jnp.where(fresh[None], g, 0.0).astype(low)
        to_hidden = "RC,DC->RD" if axis == 1 else "RC,CD->RD"
        d_hidden += jnp.einsum(to_hidden, g, piece, preferred_element_type=jnp.float32)
        to_weight = "RD,RC->DC" if axis == 1 else "RD,RC->CD"
        update = jnp.einsum(to_weight, hidden, g, preferred_element_type=jnp.float32)
        old = lax.dynamic_slice_in_dim(d_weight, start, columns, axis)
        # Repeated columns add zero, so their earlier value stands.
        return d_hidden, lax.dynamic_update_slice_in_dim(d_weight, old + update.astype(d_weight.dtype), start, axis)

    state = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros_like(weight)
    d_hidden, d_weight = lax.fori_loop(0, count, body, state)
    return d_hidden.astype(hidden.dtype), d_weight, np.zeros(targets.shape, jax.dtypes.float0)


_stats.defvjp(_stats_fwd, _stats_bwd)
