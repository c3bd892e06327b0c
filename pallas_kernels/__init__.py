"""Fused kernels, one folder per operation, each with a readable reference and a portable implementation."""

from pallas_kernels.causal_attention.api import SharedPrompt, causal_attention
from pallas_kernels.decode_attention.api import decode_attention
from pallas_kernels.linear_token_stats.api import TokenStats, linear_token_stats, token_stats

__all__ = [
    "SharedPrompt",
    "TokenStats",
    "causal_attention",
    "decode_attention",
    "linear_token_stats",
    "token_stats",
]
