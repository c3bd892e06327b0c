"""R3: replay of stored responses into groups without signal, reflection on failures, and a ranking reward.

Source: https://arxiv.org/abs/2601.19620.
"""

import dataclasses
from collections import OrderedDict, deque
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from entropy_rl.masked import fraction_of, masked_mean

PLAIN = 0  # the context of a prompt as it stands


def entropy_peak(entropy: Float[Array, "G T"], mask: Bool[Array, "G T"], *, top_fraction: float) -> Float[Array, "G"]:
    """E_peak: mean entropy over each response's top max(1, floor(p L)) tokens; 0 for an empty response."""
    length = jnp.sum(mask, axis=1)
    count = jnp.maximum(fraction_of(top_fraction, length), 1)
    ordered = -jnp.sort(-jnp.where(mask, entropy, -jnp.inf), axis=1)
    taken = (jnp.arange(entropy.shape[1])[None] < jnp.minimum(count, length)[:, None]) & jnp.isfinite(ordered)
    return masked_mean(ordered, taken, axis=1)


def ranking_rewards(
    entropy: Float[Array, "G T"], mask: Bool[Array, "G T"], *, top_fraction: float = 0.2, max_reward: float = 0.5
) -> Float[Array, "G"]:
    """Rewards in [0, max_reward] for failed responses, by how locally exploring and globally steady they were.

    i beats j iff E_peak^i > E_peak^j and E_glob^i < E_glob^j; S_i counts the beaten; rank k from 0 by S, best first;
    R = R_max (1 - k / (N - 1)).

    Args:
        entropy: nats.
        mask: tokens of the responses to rank; a response without any is not ranked.
        top_fraction: p of E_peak.
        max_reward: R_max; below 1, so that a failure never outranks a success.

    Returns:
        f32 [G]; ties share the mean of their rewards, a single response and responses not ranked get 0.
    """
    ranked = jnp.any(mask, axis=1)
    peak = entropy_peak(entropy, mask, top_fraction=top_fraction)
    overall = masked_mean(entropy, mask, axis=1)
    both = ranked[:, None] & ranked[None, :]
    beats = both & (peak[:, None] > peak[None, :]) & (overall[:, None] < overall[None, :])
    score = jnp.sum(beats, axis=1)
    above = jnp.sum(both & (score[None, :] > score[:, None]), axis=1)
    tied = jnp.sum(both & (score[None, :] == score[:, None]), axis=1)
    rank = above + (tied - 1) / 2
    last = jnp.sum(ranked) - 1
    return jnp.where(ranked & (last > 0), max_reward * (1 - rank / jnp.maximum(last, 1)), 0.0)


def length_bonus(length: Float[Array, "B"], is_correct: Bool[Array, "B"], *, max_length: int) -> Float[Array, "B"]:
    """max(0, 1 - l / L_max) for correct responses, 0 for others."""
    return jnp.where(is_correct, jnp.maximum(0.0, 1.0 - length / max_length), 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """One stored response.

    Attributes:
        prompt_id: of the problem it answers.
        tokens: int32 [n], the response alone.
        reward: as it came from verification, before any recipe changed it.
        is_correct: whether it counts as a success.
        context: ``PLAIN``, or the derived prompt that produced it.
        is_stopped: whether a stop token ended it.
    """

    prompt_id: int
    tokens: np.ndarray
    reward: float
    is_correct: bool
    context: int = PLAIN
    is_stopped: bool = True


class ReplayBuffer:
    """Responses by prompt, bounded by tokens over all prompts and by responses per prompt and verdict; oldest out.

    Args:
        max_tokens: tokens stored over all prompts.
        per_prompt: successes, and failures, stored of one prompt.
        max_prompts: prompts whose mean reward is remembered, those seen last.
    """

    def __init__(self, *, max_tokens: int, per_prompt: int = 8, max_prompts: int = 1 << 17):
        if min(max_tokens, per_prompt, max_prompts) < 1:
            raise ValueError(
                f"max_tokens={max_tokens}, per_prompt={per_prompt} and max_prompts={max_prompts} must be at least 1"
            )
        self._max_tokens, self._per_prompt, self._max_prompts = max_tokens, per_prompt, max_prompts
        self._items: OrderedDict[int, Stored] = OrderedDict()  # by order of arrival
        self._by_prompt: dict[tuple[int, bool], deque[int]] = {}
        self._history: dict[int, tuple[float, int]] = {}  # sum of rewards and count, of every response ever added
        self._next = 0
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, stored: Stored) -> None:
        """Stores a response and counts its reward in the prompt's history; one longer than the bound only counts."""
        total, count = self._history.pop(stored.prompt_id, (0.0, 0))
        self._history[stored.prompt_id] = (total + float(stored.reward), count + 1)
        if len(self._history) > self._max_prompts:
            del self._history[next(iter(self._history))]
        if len(stored.tokens) > self._max_tokens:
            return
        self._insert(stored)

    def _insert(self, stored: Stored) -> None:
        own = self._by_prompt.setdefault((stored.prompt_id, stored.is_correct), deque())
        if len(own) == self._per_prompt:
            self._remove(own[0])
        own = self._by_prompt.setdefault((stored.prompt_id, stored.is_correct), deque())
        own.append(self._next)
        self._items[self._next] = stored
        self._next += 1
        self.num_tokens += len(stored.tokens)
        while self.num_tokens > self._max_tokens:
            self._remove(next(iter(self._items)))

    def _remove(self, key: int) -> None:
        stored = self._items.pop(key)
        own = self._by_prompt[stored.prompt_id, stored.is_correct]
        own.popleft()  # within one prompt and verdict the oldest is always first
        if not own:
            del self._by_prompt[stored.prompt_id, stored.is_correct]
        self.num_tokens -= len(stored.tokens)

    def find(self, prompt_id: int, *, is_correct: bool) -> list[Stored]:
        """Stored successes or failures of a prompt, oldest first."""
        return [self._items[key] for key in self._by_prompt.get((prompt_id, is_correct), ())]

    def mean_reward(self, prompt_id: int) -> float | None:
        """Mean over every response added for the prompt; None where there was none, or it was too long ago."""
        total, count = self._history.get(prompt_id, (0.0, 0))
        return total / count if count else None

    def state(self) -> dict[str, np.ndarray]:
        """Everything as flat arrays, for a checkpoint."""
        items = list(self._items.values())
        column = lambda name, dtype: np.array([getattr(x, name) for x in items], dtype)  # noqa: E731
        tokens = [np.asarray(x.tokens, np.int32) for x in items]
        return {
            "prompt_id": column("prompt_id", np.int64),
            "reward": column("reward", np.float64),
            "is_correct": column("is_correct", bool),
            "context": column("context", np.int64),
            "is_stopped": column("is_stopped", bool),
            "size": np.array([len(t) for t in tokens], np.int64),
            "tokens": np.concatenate([np.zeros(0, np.int32), *tokens]),
            "history_id": np.array(list(self._history), np.int64),
            "history_sum": np.array([total for total, _ in self._history.values()], np.float64),
            "history_count": np.array([count for _, count in self._history.values()], np.int64),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Replaces the contents by those of ``state``."""
        bounds = dict(max_tokens=self._max_tokens, per_prompt=self._per_prompt, max_prompts=self._max_prompts)
        self.__init__(**bounds)  # type: ignore[misc]
        ends = np.cumsum(state["size"])
        columns = zip(*(state[k].tolist() for k in ("prompt_id", "reward", "is_correct", "context", "is_stopped")),
                      strict=True)  # fmt: skip
        for (prompt_id, reward, is_correct, context, is_stopped), end, size in zip(
            columns, ends, state["size"], strict=True
        ):
            tokens = np.asarray(state["tokens"][end - size : end], np.int32)
            self._insert(Stored(prompt_id, tokens, reward, is_correct, context, is_stopped))
        history = zip(*(state[f"history_{k}"].tolist() for k in ("id", "sum", "count")), strict=True)
        self._history = {prompt_id: (total, count) for prompt_id, total, count in history}


def mix_group(
    is_correct: Sequence[bool] | np.ndarray,
    successes: Sequence[Stored],
    failures: Sequence[Stored],
    *,
    count: int,
    rng: np.random.Generator,
) -> list[Stored]:
    """Stored responses to add to a fresh group of one prompt: up to ``count`` of the verdict the group lacks.

    An all-failed group gets successes, an all-solved one failures, a mixed one nothing.
    """
    if not len(is_correct) or (any(is_correct) and not all(is_correct)):
        return []
    pool = failures if is_correct[0] else successes
    chosen = rng.permutation(len(pool))[:count]
    return [pool[i] for i in sorted(chosen)]


def choose_reflections(
    prompt_ids: Sequence[int],
    buffer: ReplayBuffer,
    *,
    threshold: float,
    count: int,
    rng: np.random.Generator,
) -> list[tuple[int, Stored]]:
    """Up to ``count`` pairs (index into ``prompt_ids``, a stored failure of it to reflect on), hardest prompts first.

    Chosen are prompts whose mean historical reward is below ``threshold`` and that have a stored failure.
    """
    candidates: list[tuple[float, int]] = []
    for index, prompt_id in enumerate(prompt_ids):
        mean = buffer.mean_reward(prompt_id)
        if mean is not None and mean < threshold and buffer.find(prompt_id, is_correct=False):
            candidates.append((mean, index))
    chosen: list[tuple[int, Stored]] = []
    for _, index in sorted(candidates)[:count]:
        failures = buffer.find(prompt_ids[index], is_correct=False)
        chosen.append((index, failures[int(rng.integers(len(failures)))]))
    return chosen


def reflection_text(template: str, problem: str, failure: str) -> str:
    """The template with ``{problem}`` and ``{failure}`` filled in; other braces stay as they are.

    Raises:
        ValueError: where one of the two places is missing.
    """
    for part in ("{problem}", "{failure}"):
        if part not in template:
            raise ValueError(f"the reflection template {template!r} has no place for {part}")
    head, _, tail = template.partition("{problem}")
    fill = lambda text: text.replace("{failure}", failure)  # noqa: E731
    return fill(head) + problem + fill(tail)
