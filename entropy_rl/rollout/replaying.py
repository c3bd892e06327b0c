"""What the host adds to a rollout batch between verification and scoring: replayed responses and erased attempts.

Every group gets the same number of places, so that shapes never change: fresh rows first, then places for replayed
responses, then for erased attempts. A place without a response is ``ABSENT`` and enters nothing.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from entropy_rl.methods.r3 import PLAIN, ReplayBuffer, Stored, choose_reflections, mix_group, reflection_text
from entropy_rl.objectives.recipe import Replay
from entropy_rl.rollout.erasing import erased_attempts
from entropy_rl.types import ABSENT, ERASED, FRESH, REPLAYED


class ExtraRow(NamedTuple):
    """A row to add to a group.

    Attributes:
        response: int32 [n], behind the group's prompt.
        first: response tokens before this one are context and not in the mask.
        origin, reward, is_correct, is_stopped: as in ``Rollout``.
    """

    response: np.ndarray
    first: int
    origin: int
    reward: float = 0.0
    is_correct: bool = False
    is_stopped: bool = True


def regroup(
    arrays: dict[str, Any], extra: Sequence[Sequence[ExtraRow]], *, samples: int, places: int
) -> dict[str, Any]:
    """Rows of all groups with ``places`` more each, filled from ``extra``.

    Args:
        arrays: fields of a Rollout as NumPy arrays [P * samples, ...], ``origin`` among them.
        extra: of each group, at most ``places`` rows.
        samples: rows a group has.
        places: rows to add to it.

    Returns:
        The fields with [P * (samples + places), ...]; log-probs and entropy of added rows are 0.
    """
    groups = len(extra)
    rows = samples + places

    def widen(array):
        wide = np.zeros((groups, rows, *array.shape[1:]), array.dtype)
        wide[:, :samples] = array.reshape(groups, samples, *array.shape[1:])
        return wide.reshape(groups * rows, *array.shape[1:])

    wide = {name: widen(array) for name, array in arrays.items()}
    for group, added in enumerate(extra):
        first = group * rows
        size = int(wide["prompt_length"][first])
        for place in range(samples, rows):
            row = first + place
            wide["prompt_length"][row] = size
            wide["tokens"][row, :size] = wide["tokens"][first, :size]
            wide["length"][row] = size
            wide["origin"][row] = ABSENT
            if place - samples < len(added):
                _place(wide, row, size, added[place - samples])
    return wide


def _place(wide: dict[str, Any], row: int, size: int, extra: ExtraRow) -> None:
    end = size + len(extra.response)
    wide["tokens"][row, size:end] = extra.response
    wide["response_mask"][row, size + extra.first : end] = True
    wide["length"][row], wide["origin"][row] = end, extra.origin
    wide["rewards"][row], wide["correct"][row] = extra.reward, extra.is_correct
    wide["stopped"][row] = extra.is_stopped


def erased_extra_rows(arrays: dict[str, Any], segments: Any, row: int, count: int) -> list[ExtraRow]:
    """The first ``count`` erased attempts of a row, each behind the accepted tokens that came before it."""
    start, end = int(arrays["prompt_length"][row]), int(arrays["length"][row])
    response = arrays["tokens"][row, start:end]
    rows = []
    attempts = erased_attempts(segments.drawn_position[row], int(segments.draws[row]))
    for position, first, last in attempts[:count]:
        attempt = segments.drawn_tokens[row, first:last]
        rows.append(ExtraRow(np.concatenate([response[:position], attempt]), position, ERASED))
    return rows


class Replayer:
    """A process's replay buffer and what is done with it; see ``methods.r3``."""

    def __init__(self, options: Replay):
        self.options = options
        self.buffer = ReplayBuffer(max_tokens=options.max_tokens, per_prompt=options.per_prompt)

    def reflections(
        self, ids: Sequence[int], prompts: Sequence[str], decode: Any, *, epoch: int, rng: np.random.Generator
    ) -> list[tuple[int, str, int]]:
        """(index of the prompt, text that reflects on one of its failures, context); none in the first epoch."""
        if epoch < 1 or not self.options.reflections:
            return []
        chosen = choose_reflections(
            ids, self.buffer, threshold=self.options.threshold, count=self.options.reflections, rng=rng
        )
        return [
            (index, reflection_text(self.options.template, prompts[index], decode(failure.tokens)), 1 + number)
            for number, (index, failure) in enumerate(chosen)
        ]

    def replays(self, prompt_id: int, is_correct: np.ndarray, *, max_response: int, rng: np.random.Generator):
        """Rows to add to a fresh group."""
        if not self.options.replays:
            return []
        chosen = mix_group(
            is_correct,
            self.buffer.find(prompt_id, is_correct=True),
            self.buffer.find(prompt_id, is_correct=False),
            count=self.options.replays,
            rng=rng,
        )
        return [
            ExtraRow(x.tokens, 0, REPLAYED, x.reward, x.is_correct, x.is_stopped)
            for x in chosen
            if len(x.tokens) <= max_response
        ]

    def record(self, arrays: dict[str, Any], ids: Sequence[int], contexts: Sequence[int]) -> None:
        """Stores every fresh response."""
        for row, (prompt_id, context) in enumerate(zip(ids, contexts, strict=True)):
            if arrays["origin"][row] != FRESH:
                continue
            start, end = int(arrays["prompt_length"][row]), int(arrays["length"][row])
            self.buffer.add(
                Stored(
                    prompt_id=int(prompt_id),
                    tokens=np.array(arrays["tokens"][row, start:end]),
                    reward=float(arrays["rewards"][row]),
                    is_correct=bool(arrays["correct"][row]),
                    context=int(context) or PLAIN,
                    is_stopped=bool(arrays["stopped"][row]),
                )
            )
