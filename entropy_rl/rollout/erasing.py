"""Erasing inside the decode loop: every row watches its own segment and rewinds by itself.

The decision is made of pure functions of ``entropy_rl.methods.e3rl``; this file holds what they need between two draws.
An erased segment costs a smaller ``length`` of its row: nothing is copied, nothing computed again, no host involved.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from entropy_rl.methods.e3rl import (
    Erasing,
    RunningUncertainty,
    combine_uncertainty,
    history_modulation,
    threshold,
)
from entropy_rl.types import Segments


class Watch(struct.PyTreeNode):
    """What a slot knows of the segment it is in, and of its row so far; [slots] each.

    Attributes:
        start: position in the response where the segment starts.
        segment: its index.
        erasures: attempts of it erased so far.
        window_sum, level_sum, largest: of u over the sliding window, of its means over the segment, and the largest u.
        previous_level: B of the segment before, as accepted.
        row_level: moving average of B over the row's accepted segments.
    """

    start: Any
    segment: Any
    erasures: Any
    window_sum: Any
    level_sum: Any
    largest: Any
    previous_level: Any
    row_level: Any


class Attempts(struct.PyTreeNode):
    """First attempts of each prompt's group at each segment, [P, N]: their number, and sums of U and U^2."""

    count: Any
    total: Any
    square: Any


class EraseState(struct.PyTreeNode):
    """Erasing's part of the decode loop's state."""

    watch: Watch
    attempts: Attempts | None
    segments: Segments


def init_erasing(erasing: Erasing, *, prompts: int, rows: int, slots: int, max_response: int) -> EraseState:
    """Nothing drawn yet."""
    count = erasing.num_segments(max_response)
    ints, floats = jnp.zeros(slots, jnp.int32), jnp.zeros(slots, jnp.float32)
    watch = Watch(ints, ints, ints, floats, floats, floats, floats, floats)
    group = jnp.zeros((prompts, count), jnp.float32)
    per_segment = jnp.zeros((rows, count), jnp.float32)
    drawn = jnp.zeros((rows, erasing.recorded_draws * max_response), jnp.float32)
    row_counts = jnp.zeros(rows, jnp.int32)
    segments = Segments(
        count=row_counts,
        uncertainty=per_segment,
        first_uncertainty=per_segment,
        first_level=per_segment,
        threshold=per_segment,
        erasures=per_segment.astype(jnp.int32),
        draws=row_counts,
        drawn_tokens=drawn.astype(jnp.int32),
        drawn_position=drawn.astype(jnp.int32),
        drawn_log_probs=drawn,
        drawn_entropy=drawn,
    )
    return EraseState(watch, Attempts(group, group, group) if erasing.baseline == "group" else None, segments)


def restart(state: EraseState, starting: Bool[Array, "W"]) -> EraseState:
    """A fresh watch for the slots that start a row."""
    return state.replace(watch=jax.tree.map(lambda x: jnp.where(starting, 0, x).astype(x.dtype), state.watch))


def record_draw(state: EraseState, row, draws, fed, token, log_prob, entropy) -> EraseState:
    """Appends the draw to its row's log, as far as that reaches, and counts it."""
    s = state.segments
    write = lambda out, x: out.at[row, draws].set(x, mode="drop")  # noqa: E731
    segments = s.replace(draws=s.draws.at[row].set(draws + 1, mode="drop"))
    if s.drawn_tokens.shape[1]:
        segments = segments.replace(
            drawn_tokens=write(s.drawn_tokens, token),
            drawn_position=write(s.drawn_position, fed),
            drawn_log_probs=write(s.drawn_log_probs, log_prob),
            drawn_entropy=write(s.drawn_entropy, entropy),
        )
    return state.replace(segments=segments)


def _with_first_attempts(attempts: Attempts, prompt, segment, uncertainty, is_first) -> Attempts:
    """``attempts`` with the first attempts that ended at this draw."""
    at = jnp.where(is_first, prompt, attempts.count.shape[0])
    add = lambda out, x: out.at[at, segment].add(x, mode="drop")  # noqa: E731
    return Attempts(add(attempts.count, 1.0), add(attempts.total, uncertainty), add(attempts.square, uncertainty**2))


def _baseline(erasing: Erasing, running: RunningUncertainty, attempts, prompt, segment, uncertainty, is_first):
    """(mean, std, known) [W] of first attempts at each slot's segment.

    In a group these are the first attempts so far, those that ended at the same draw included, less the slot's own one
    where that is what is being judged.
    """
    mean, std, known = (jnp.take(x, segment) for x in running.baseline())
    if attempts is None:
        return mean, std, known
    own = is_first.astype(jnp.float32)
    count = attempts.count[prompt, segment] - own
    own_mean = (attempts.total[prompt, segment] - own * uncertainty) / jnp.maximum(count, 1)
    square = (attempts.square[prompt, segment] - own * uncertainty**2) / jnp.maximum(count, 1)
    variance = jnp.maximum(square - own_mean**2, 0.0)
    enough = count >= erasing.min_attempts
    return jnp.where(enough, own_mean, mean), jnp.where(enough, jnp.sqrt(variance), std), known | enough


def observe(
    erasing: Erasing,
    running: RunningUncertainty,
    state: EraseState,
    *,
    row: Int[Array, "W"],
    prompt: Int[Array, "W"],
    fed: Int[Array, "W"],
    token: Int[Array, "W"],
    score: Float[Array, "W"],
    left_window: Float[Array, "W"],
    is_stop: Bool[Array, "W"],
    live: Bool[Array, "W"],
) -> tuple[EraseState, Bool[Array, "W"], Int[Array, "W"]]:
    """Takes note of one draw of every slot and decides which segments to erase.

    Args:
        erasing, running: options, and statistics of earlier steps.
        state: as it was before the draw.
        row, prompt: what each slot is sampling; rows past the last are idle.
        fed: the draw's position in its response.
        token: what was drawn.
        score: its u.
        left_window: u of the token ``window`` positions before; read only where the segment reaches back that far.
        is_stop: whether the token ends the response.
        live: whether the slot is sampling at all.

    Returns:
        (new state, which slots erase their segment, where that segment starts).
    """
    w = state.watch
    size = fed - w.start + 1
    window_sum = w.window_sum + score - jnp.where(size > erasing.window, left_window, 0.0)
    level_sum = w.level_sum + window_sum / jnp.minimum(size, erasing.window)
    largest = jnp.where(size == 1, score, jnp.maximum(w.largest, score))
    is_delimiter = jnp.any(token[:, None] == jnp.asarray(erasing.delimiters, jnp.int32)[None], axis=-1)
    ended = live & (is_delimiter | is_stop | (size >= erasing.segment_length))

    level = level_sum / size
    is_later = w.segment > 0
    uncertainty = combine_uncertainty(level, largest, w.previous_level, is_later, erasing.weights)
    is_first, attempts = ended & (w.erasures == 0), state.attempts
    if attempts is not None:
        attempts = _with_first_attempts(attempts, prompt, w.segment, uncertainty, is_first)
    mean, std, known = _baseline(erasing, running, attempts, prompt, w.segment, uncertainty, is_first)
    has_history = is_later & (running.level_weight > 0)  # phi compares a row with earlier steps
    phi = history_modulation(running.mean_level(), w.row_level, has_history, strength=erasing.modulate)
    limit = threshold(mean, std, w.erasures, phi, kappa=erasing.kappa, growth=erasing.growth)
    erase = ended & known & (uncertainty > limit) & (w.erasures < erasing.max_erasures)
    accepted = ended & ~erase

    segments, nowhere = state.segments, state.segments.count.shape[0]
    first = jnp.where(is_first, row, nowhere)
    final = jnp.where(accepted, row, nowhere)
    put = lambda out, at, x: out.at[at, w.segment].set(x, mode="drop")  # noqa: E731
    segments = segments.replace(
        count=segments.count.at[final].set(w.segment + 1, mode="drop"),
        uncertainty=put(segments.uncertainty, final, uncertainty),
        first_uncertainty=put(segments.first_uncertainty, first, uncertainty),
        first_level=put(segments.first_level, first, level),
        threshold=put(segments.threshold, final, jnp.where(known, limit, 0.0)),
        erasures=put(segments.erasures, final, w.erasures),
    )
    history = jnp.where(is_later, erasing.history_rate * w.row_level + (1 - erasing.history_rate) * level, level)
    watch = Watch(
        start=jnp.where(accepted, fed + 1, w.start),
        segment=w.segment + accepted,
        erasures=jnp.where(accepted, 0, w.erasures + erase),
        window_sum=jnp.where(ended, 0.0, window_sum),
        level_sum=jnp.where(ended, 0.0, level_sum),
        largest=largest,
        previous_level=jnp.where(accepted, level, w.previous_level),
        row_level=jnp.where(accepted, history, w.row_level),
    )
    return EraseState(watch, attempts, segments), erase, w.start


def erased_attempts(positions: np.ndarray, draws: int) -> list[tuple[int, int, int]]:
    """Erased attempts of one row, in order: (position where the attempt starts, its first and past-the-last draw).

    Args:
        positions: int [D], ``Segments.drawn_position`` of the row.
        draws: tokens the row drew; the log may be shorter, and an attempt it does not show whole is left out.
    """
    shown = positions[: min(draws, len(positions))]
    falls = np.nonzero(np.diff(shown) <= 0)[0]  # the last draw of each erased attempt
    found = []
    for last in falls:
        start = int(shown[last + 1])
        found.append((start, int(last) - (int(shown[last]) - start), int(last) + 1))
    return found
