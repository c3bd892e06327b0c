"""Drawing one token per row: truncation by threshold search and a two-level inverse of the cumulative sum.

Nothing sorts the vocabulary. Each row uses its own key, so that what a row draws depends on nothing beside it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import TokenStats, token_stats

_BLOCK = 128


def _ordered_bits(x: Float[Array, "R V"]) -> Array:
    """uint32 keys that sort as the floats do."""
    x = jnp.where(x == 0, 0.0, x.astype(jnp.float32))  # -0.0 is 0.0
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _largest_threshold(bits, is_enough) -> Array:
    """Per row the largest uint32 v, [R, 1], with ``is_enough(bits >= v)``; exact, one bit a pass."""

    def body(i, threshold):
        candidate = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(is_enough(bits >= candidate), candidate, threshold)

    return jax.lax.fori_loop(0, 32, body, jnp.zeros((bits.shape[0], 1), jnp.uint32))


def truncate(
    logits: Float[Array, "R V"], *, top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0
) -> Float[Array, "R V"]:
    """Logits with -inf on tokens outside the top k, then outside the nucleus, then below ``min_p`` of the most likely.

    Args:
        logits: after temperature.
        top_k: keep the k largest; None keeps all. Logits equal to the k-th are all kept.
        top_p: keep the fewest most likely tokens whose mass, after top-k, is at least ``top_p``; equal ones together.
        min_p: drop tokens less likely than ``min_p`` times the most likely one.
    """
    if top_k is not None and top_k < logits.shape[1]:
        bits = _ordered_bits(logits)
        kept = bits >= _largest_threshold(bits, lambda keep: jnp.sum(keep, -1, keepdims=True) >= top_k)
        logits = jnp.where(kept, logits, -jnp.inf)
    if top_p < 1.0:
        bits, p = _ordered_bits(logits), jax.nn.softmax(logits)
        mass = lambda keep: jnp.sum(jnp.where(keep, p, 0.0), -1, keepdims=True)  # noqa: E731
        logits = jnp.where(bits >= _largest_threshold(bits, lambda keep: mass(keep) >= top_p), logits, -jnp.inf)
    if min_p > 0.0:
        floor = jnp.max(logits, -1, keepdims=True) + jnp.log(min_p)
        logits = jnp.where(logits >= floor, logits, -jnp.inf)
    return logits


def _first_above(cumulative, weights, uniform) -> Int[Array, "R"]:
    """First index whose cumulative sum exceeds uniform * total, among those of positive weight."""
    above = (cumulative > uniform[:, None] * cumulative[:, -1:]) & (weights > 0)
    return jnp.where(jnp.any(above, -1), jnp.argmax(above, -1), jnp.argmax(weights, -1))


def uniforms(keys: Any, draws: Int[Array, "R"]) -> Float[Array, "R 2"]:
    """What ``categorical`` needs for draw number ``draws`` of each row's stream."""
    return jax.vmap(lambda key, draw: jax.random.uniform(jax.random.fold_in(key, draw), (2,)))(keys, draws)


def categorical(uniforms: Float[Array, "R 2"], logits: Float[Array, "R V"]) -> Int[Array, "R"]:
    """One token per row from softmax(logits): a block of 128 tokens by its mass, then a token within it.

    Two uniforms of 23 bits per draw, one per level, so that rare tokens keep their probability. -inf is never drawn.
    """
    rows, size = logits.shape
    weights = jnp.exp(logits - jnp.max(logits, -1, keepdims=True))
    count = -(-size // _BLOCK)
    weights = jnp.pad(weights, ((0, 0), (0, count * _BLOCK - size))).reshape(rows, count, _BLOCK)
    mass = jnp.sum(weights, -1)
    block = _first_above(jnp.cumsum(mass, -1), mass, uniforms[:, 0])
    within = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
    return (block * _BLOCK + _first_above(jnp.cumsum(within, -1), within, uniforms[:, 1])).astype(jnp.int32)


def draw(
    uniforms: Float[Array, "R 2"],
    logits: Float[Array, "R V"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> tuple[Int[Array, "R"], Float[Array, "R"], TokenStats]:
    """Draws one token per row.

    ``temperature=0`` takes the most likely token, lowest id first among equals, with log-prob 0.

    Returns:
        (tokens, log-prob in nats under the distribution each was drawn from, statistics before truncation: at
        ``temperature``, or at 1 where that is 0).
    """
    if temperature == 0:
        tokens = jnp.argmax(logits, -1).astype(jnp.int32)
        return tokens, jnp.zeros(logits.shape[0], jnp.float32), token_stats(logits, tokens)
    kept = truncate(logits / temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    tokens = categorical(uniforms, kept)
    stats = token_stats(logits, tokens, temperature=temperature)
    if top_k is None and top_p == 1 and min_p == 0:
        return tokens, stats.log_probs, stats
    chosen = jnp.take_along_axis(kept, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(kept, axis=-1), stats


def check_sampling_options(*, temperature: float, top_k: int | None, top_p: float, min_p: float) -> None:
    """Raises ValueError with what to change where an option is out of its range."""
    if temperature < 0 or 0 < temperature < 1e-4:
        raise ValueError(f"temperature={temperature} is neither 0 (greedy) nor at least 1e-4; 1 is the policy itself")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} keeps nothing; use None to keep all tokens")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} is outside (0, 1]; 1 keeps all tokens")
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p={min_p} is outside [0, 1]; 0 keeps all tokens")
