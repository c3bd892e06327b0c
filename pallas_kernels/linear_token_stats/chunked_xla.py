"""The portable implementation: a loop over vocabulary chunks with an online softmax; and the gradient of all of them.

Row state is merged chunk by chunk; the backward pass recomputes each chunk's logits from the saved log-sum-exp. The
last chunk overlaps its neighbour where the vocabulary is not a multiple of the chunk, with the repeated columns masked:
the tail stays inside the loop, which needs the least memory.
"""

import jax.numpy as jnp
from jax import lax

from pallas_kernels.linear_token_stats.types import LOWEST, RowState, Settings


def _chunks(settings: Settings, weight) -> tuple[int, int, int, int]:
    """Axis of V in ``weight``, V, columns of a chunk, number of chunks."""
    axis = settings.weight_layout.index("V")
    size = weight.shape[axis]
    columns = min(settings.chunk_size, size)
    return axis, size, columns, -(-size // columns)


def _chunk_logits(settings: Settings, hidden, weight, i):
    """Chunk i: logits a [R, C] in f32, the weight slice, its start, fresh columns [C]."""
    axis, size, columns, _ = _chunks(settings, weight)
    start = jnp.minimum(i * columns, size - columns)
    piece = lax.dynamic_slice_in_dim(weight, start, columns, axis)
    fresh = start + jnp.arange(columns) >= i * columns
    equation = "RD,DC->RC" if settings.weight_layout == "DV" else "RD,CD->RC"
    a = jnp.einsum(equation, hidden, piece, preferred_element_type=jnp.float32)
    return a, piece, start, fresh


def row_state(settings: Settings, hidden, weight, targets) -> RowState:
    """The state of every row after the whole (local) vocabulary; targets outside of it are in no chunk."""
    columns, count = _chunks(settings, weight)[2:]

    def body(i, state: RowState) -> RowState:
        a, _, start, fresh = _chunk_logits(settings, hidden, weight, i)
        z = settings.scaled(a)
        new_m = jnp.maximum(state.m, jnp.max(jnp.where(fresh[None], z, LOWEST), axis=-1))
        state = state.moved_to(new_m)
        x = z - new_m[:, None]
        e = jnp.where(fresh[None], jnp.exp(x), 0.0)
        xe = jnp.where(fresh[None], x * e, 0.0)
        q = state.q + jnp.sum(x * xe, -1) if settings.with_varentropy else state.q
        local = targets - start
        here = (targets >= i * columns) & (local < columns)
        picked = jnp.take_along_axis(z, jnp.clip(local, 0, columns - 1)[:, None], axis=-1)[:, 0]
        return RowState(
            new_m, state.s + jnp.sum(e, -1), state.t + jnp.sum(xe, -1), q, jnp.where(here, picked, state.z_target)
        )

    zeros = jnp.zeros(hidden.shape[0], jnp.float32)
    return lax.fori_loop(0, count, body, RowState(zeros + LOWEST, zeros, zeros, zeros, zeros))


def gradients(settings: Settings, hidden, weight, targets, entropy, logsumexp, varentropy, cotangents):
    """(d hidden in f32, d weight) of the four statistics; kernels.md section 2, the backward formulas."""
    g_log_prob, g_entropy, g_lse, g_varentropy = (g[:, None] for g in cotangents)
    axis, _, columns, count = _chunks(settings, weight)
    low = hidden.dtype

    def body(i, state):
        d_hidden, d_weight = state
        a, piece, start, fresh = _chunk_logits(settings, hidden, weight, i)
        slope = 1.0 / settings.temperature
        if settings.soft_cap is not None:
            slope *= 1.0 - jnp.square(jnp.tanh(a / settings.soft_cap))
        log_p = settings.scaled(a) - logsumexp[:, None]
        d = log_p + entropy[:, None]
        inner = g_lse - g_log_prob - g_entropy * d
        if settings.with_varentropy:
            inner += g_varentropy * (d**2 - varentropy[:, None] + 2 * d)
        is_target = (targets[:, None] - start) == jnp.arange(columns)[None]
        g = (jnp.exp(log_p) * inner + g_log_prob * is_target) * slope
        g = jnp.where(fresh[None], g, 0.0).astype(low)
        to_hidden = "RC,DC->RD" if axis == 1 else "RC,CD->RD"
        d_hidden += jnp.einsum(to_hidden, g, piece, preferred_element_type=jnp.float32)
        to_weight = "RD,RC->DC" if axis == 1 else "RD,RC->CD"
        update = jnp.einsum(to_weight, hidden, g, preferred_element_type=jnp.float32)
        old = lax.dynamic_slice_in_dim(d_weight, start, columns, axis)
        # Repeated columns add zero, so their earlier value stands.
        return d_hidden, lax.dynamic_update_slice_in_dim(d_weight, old + update.astype(d_weight.dtype), start, axis)

    return lax.fori_loop(0, count, body, (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros_like(weight)))
