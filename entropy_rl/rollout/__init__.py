"""Sampling: one jitted loop over a rewindable cache, and its sharded form."""

from entropy_rl.rollout.engine import make_sampler
from entropy_rl.rollout.sampling import sample

__all__ = ["make_sampler", "sample"]
