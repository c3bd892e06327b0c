"""What the operation returns, what it is told, and the state its implementations share."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

LOWEST = (
    -1e30
)  # a running maximum starts here: not at 0, which is wrong below it, nor at -inf, whose differences are NaN


class TokenStats(struct.PyTreeNode):
    """Per-row statistics of one softmax, f32 [R], in nats.

    Attributes:
        log_probs: log-probability of the row's target.
        entropy: -sum p log p.
        logsumexp: lse of the (capped, tempered) logits.
        varentropy: sum p (log p)^2 - entropy^2, or None where it was not asked for.
    """

    log_probs: Any
    entropy: Any
    logsumexp: Any
    varentropy: Any = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is fixed while compiling.

    Attributes:
        temperature, soft_cap, weight_layout, with_varentropy, chunk_size: see ``linear_token_stats``.
        implementation: "xla", "pallas_tpu" or "pallas_gpu", of the forward pass.
        vocab_axis: mesh axis the vocabulary is sharded over, inside ``shard_map``; None: W is whole.
        tiles: (rows, vocabulary columns) of a Pallas tile.
        vmem_limit_bytes: of the TPU kernel.
        stages: tiles the GPU kernel holds in shared memory at once.
        interpret: of ``pallas_call`` or ``plgpu.kernel``.
    """

    temperature: float = 1.0
    soft_cap: float | None = None
    weight_layout: str = "DV"
    with_varentropy: bool = False
    chunk_size: int = 4096
    implementation: str = "xla"
    vocab_axis: str | None = None
    tiles: tuple[int, int] = (512, 512)
    vmem_limit_bytes: int | None = None
    stages: int = 4
    interpret: Any = False

    def scaled(self, a: jax.Array) -> jax.Array:
        """z = c tanh(a / c) / temperature, or a / temperature without a cap."""
        return (a if self.soft_cap is None else self.soft_cap * jnp.tanh(a / self.soft_cap)) / self.temperature


class RowState(NamedTuple):
    """Of each row over the vocabulary seen so far, f32 [R]: what two parts of a vocabulary are merged by.

    m is the maximum of z; with x = z - m and e = exp x, s sums e, t sums x e, q sums x^2 e; z_target is z at the row's
    target, 0 where that is in another part. Sums of x, not of z, keep f32 honest far from 0.
    """

    m: jax.Array
    s: jax.Array
    t: jax.Array
    q: jax.Array
    z_target: jax.Array

    def moved_to(self, m: jax.Array) -> "RowState":
        """The same sums relative to another maximum, which must not be smaller."""
        delta = jnp.maximum(self.m - m, -200.0)
        alpha = jnp.exp(delta)
        return RowState(
            m,
            alpha * self.s,
            alpha * (self.t + delta * self.s),
            alpha * (self.q + 2 * delta * self.t + delta**2 * self.s),
            self.z_target,
        )

    def stats(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """(log_probs, entropy, logsumexp, varentropy)."""
        log_s, mean = jnp.log(self.s), self.t / self.s
        return (self.z_target - self.m) - log_s, log_s - mean, self.m + log_s, self.q / self.s - jnp.square(mean)
