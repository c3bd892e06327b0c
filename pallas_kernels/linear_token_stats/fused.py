"""Forward by any implementation, backward by vocabulary chunks, over a whole or a sharded vocabulary."""

import functools

import jax
import numpy as np
from jax import lax

from pallas_kernels.linear_token_stats import chunked_xla, pallas_gpu, pallas_tpu
from pallas_kernels.linear_token_stats.types import RowState, Settings, TokenStats

_ROW_STATE = {"xla": chunked_xla.row_state, "pallas_tpu": pallas_tpu.row_state, "pallas_gpu": pallas_gpu.row_state}


def linear_token_stats(settings: Settings, hidden, weight, targets) -> TokenStats:
    """See ``pallas_kernels.linear_token_stats``."""
    log_probs, entropy, logsumexp, varentropy = _stats(settings, hidden, weight, targets)
    return TokenStats(log_probs, entropy, logsumexp, varentropy if settings.with_varentropy else None)


def _local(settings: Settings, weight, targets):
    """Targets counted from the first column this device holds."""
    if settings.vocab_axis is None:
        return targets
    return targets - lax.axis_index(settings.vocab_axis) * weight.shape[settings.weight_layout.index("V")]


def _forward(settings: Settings, hidden, weight, targets):
    state = _ROW_STATE[settings.implementation](settings, hidden, weight, _local(settings, weight, targets))
    if settings.vocab_axis is not None:
        state = state.moved_to(lax.pmax(state.m, settings.vocab_axis))
        state = RowState(state.m, *lax.psum(state[1:], settings.vocab_axis))
    return state.stats()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stats(settings, hidden, weight, targets):
    return _forward(settings, hidden, weight, targets)


def _stats_fwd(settings, hidden, weight, targets):
    outputs = _forward(settings, hidden, weight, targets)
    return outputs, (hidden, weight, targets, *outputs[1:])


def _stats_bwd(settings, residuals, cotangents):
    hidden, weight, targets, entropy, logsumexp, varentropy = residuals
    if settings.vocab_axis is not None:  # shard_map hands each shard its part of a cotangent, and adds up d_hidden
        cotangents = lax.psum(cotangents, settings.vocab_axis)
    d_hidden, d_weight = chunked_xla.gradients(
        settings, hidden, weight, _local(settings, weight, targets), entropy, logsumexp, varentropy, cotangents
    )
    return d_hidden.astype(hidden.dtype), d_weight, np.zeros(targets.shape, jax.dtypes.float0)


_stats.defvjp(_stats_fwd, _stats_bwd)
