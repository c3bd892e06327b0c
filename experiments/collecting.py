"""One step's rollout: prompts, sampling, verification, and what a recipe has the host add to it."""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from entropy_rl.data.batching import decode_responses, encode_prompts, span_of_tokens
from entropy_rl.data.tasks import Problem, rewards_of
from entropy_rl.objectives.recipe import Recipe
from entropy_rl.parallel.mesh import row_sharding
from entropy_rl.parallel.multihost import gather_rows, local_rows, to_global
from entropy_rl.rollout.replaying import Replayer, erased_extra_rows, regroup
from entropy_rl.types import ABSENT, FRESH, PromptBatch, Rollout
from experiments.building import Parts


@dataclasses.dataclass(frozen=True)
class Asked:
    """Prompts of a step: the stream's, then places for prompts derived from them.

    Attributes:
        problems: per place; a derived prompt's is the problem it came from, an empty place's the first one.
        prompts: NumPy arrays, ``active`` false for empty places (None where all are in use).
        plain: how many places are the stream's own.
        texts: what the policy reads, per place.
    """

    problems: list[Problem]
    prompts: PromptBatch
    plain: int
    texts: list[str]


class Collector:
    """Makes verified rollouts for a recipe.

    Args:
        parts: task, tokenizer, mesh and config of the run.
        recipe: says what to resample, replay, reflect on and carry along.
        sampler: ``(params, prompts, key, running) -> Rollout``.
    """

    def __init__(self, parts: Parts, recipe: Recipe, sampler: Callable[..., Rollout]):
        self._parts, self._recipe, self._sampler = parts, recipe, sampler
        self._samples = parts.config.batch.samples
        self._sharding = row_sharding(parts.mesh)
        self._sample_seconds = 0.0
        self.replayer = None if recipe.replay is None else Replayer(recipe.replay)

    def _rng(self, step: int, what: int) -> np.random.Generator:
        return np.random.default_rng([self._parts.config.seed, 3, what, step, jax.process_index()])

    # --- Prompts.

    def ask(self, problems: Sequence[Problem], *, step: int, epoch: int) -> Asked:
        """The stream's problems, and reflections on failures where the recipe wants some."""
        tokenizer, size = self._parts.tokenizer, self._parts.config.sampling.max_prompt
        places = 0 if self.replayer is None else self.replayer.options.reflections
        if self.replayer is None or not places:
            prompts = encode_prompts(problems, tokenizer, size)
            if self._recipe.resample_rounds:  # so that sampling some of them again is the same program
                prompts = prompts.replace(active=np.ones(len(problems), bool))
            return Asked(list(problems), prompts, len(problems), [p.prompt for p in problems])
        derived = self.replayer.reflections(
            [p.id for p in problems], [p.prompt for p in problems], lambda tokens: tokenizer.decode(tokens.tolist()),
            epoch=epoch, rng=self._rng(step, 0),
        )  # fmt: skip
        fits = lambda text: len(tokenizer.prompt_ids(text)) <= size  # noqa: E731
        derived = [entry for entry in derived if fits(entry[1])]  # a failure may be too long to reflect on
        empty = places - len(derived)
        owners = [*problems, *(problems[index] for index, _, _ in derived), *[problems[0]] * empty]
        texts = [dataclasses.replace(problems[index], prompt=text) for index, text, _ in derived]
        prompts = encode_prompts([*problems, *texts, *[problems[0]] * empty], tokenizer, size)
        prompts = prompts.replace(
            context=np.array([0] * len(problems) + [c for _, _, c in derived] + [0] * empty, np.int32),
            active=np.array([True] * (len(owners) - empty) + [False] * empty),
        )
        read = [p.prompt for p in [*problems, *texts, *[problems[0]] * empty]]
        return Asked(owners, prompts, len(problems), read)

    # --- Sampling and verification.

    @property
    def keeps_rows(self) -> bool:
        """Whether the rows sampled first are the rows that are trained on: none is sampled again, added or replaced."""
        added = self._recipe.rows_per_group(self._samples) - self._samples
        return not (self._recipe.resample_rounds or added or self.replayer is not None)

    def collect(
        self, params: Any, asked: Asked, key: Any, running: Any, meanwhile: Callable[[Rollout], object] | None = None
    ) -> tuple[Rollout, int, float]:
        """(rollout with rewards, verdicts and origin, tokens drawn, seconds of sampling).

        Groups of equal rewards are sampled again where the recipe says so. ``meanwhile`` is called with the rollout
        just sampled, before it is graded: what it starts on the devices runs while this host and its workers grade.
        """
        self._sample_seconds = 0.0
        rollout = self._sample(params, asked.prompts, key, running)
        if meanwhile is not None:
            meanwhile(rollout)
        tokens = self._drawn(rollout)
        rollout = self._verified(rollout, asked)
        for number in range(1, self._recipe.resample_rounds + 1):
            rewards = local_rows(rollout.rewards).reshape(-1, self._samples)
            equal = rewards.max(axis=1) == rewards.min(axis=1)
            if asked.prompts.active is not None:
                equal &= asked.prompts.active
            if not gather_rows(equal).any():
                break
            again = asked.prompts.replace(active=equal, round=asked.prompts.round + number * len(equal))
            new = self._sample(params, again, key, running)
            tokens += self._drawn(new)
            new = self._verified(new, asked)
            chosen = to_global(np.repeat(equal, self._samples), self._sharding)
            rollout = _merge(chosen, new, rollout)
        return rollout, tokens, self._sample_seconds

    def _sample(self, params, prompts, key, running):
        start = time.perf_counter()
        rollout = jax.block_until_ready(self._sampler(params, to_global(prompts, self._sharding), key, running))
        self._sample_seconds += time.perf_counter() - start
        return rollout

    def _drawn(self, rollout: Rollout) -> int:
        drawn = rollout.response_mask if rollout.segments is None else rollout.segments.draws
        return int(np.sum(gather_rows(np.array([local_rows(drawn).sum()]))))

    def _verified(self, rollout: Rollout, asked: Asked) -> Rollout:
        """With rewards, verdicts and origin; a row that was not sampled has none."""
        parts = self._parts
        mask = local_rows(rollout.response_mask)
        sampled = np.any(mask, axis=1).tolist()
        rows = [problem for problem in asked.problems for _ in range(self._samples)]
        texts = decode_responses(local_rows(rollout.tokens), mask, parts.tokenizer)

        chosen = [row for row, is_sampled in enumerate(sampled) if is_sampled]
        given = [rows[row] for row in chosen], [texts[row] for row in chosen]
        verdicts = np.zeros(len(rows), np.float32)
        verdicts[chosen] = rewards_of(parts.task, *given)
        rewards = verdicts
        if parts.config.reward:
            rewards = np.zeros(len(rows), np.float32)
            rewards[chosen] = [parts.reward(problem, text) for problem, text in zip(*given, strict=True)]
        if not np.all(np.isfinite(rewards)):
            wrong = int(np.argmin(np.isfinite(rewards)))
            sys.exit(f"error: the reward of problem {rows[wrong].id} is {rewards[wrong]}; response: {texts[wrong]!r}")
        origin = np.where(sampled, FRESH, ABSENT).astype(np.int32)
        rewards, correct, origin = to_global((rewards, verdicts >= 1.0, origin), self._sharding)
        return rollout.replace(rewards=rewards, correct=correct, origin=origin)

    # --- What the host adds.

    def augment(self, rollout: Rollout, asked: Asked, *, step: int) -> Rollout:
        """With replayed responses and erased attempts in their places, and where the answers are."""
        recipe, samples = self._recipe, self._samples
        places = recipe.rows_per_group(samples) - samples
        if places or self.replayer is not None:
            rollout = self._regrouped(rollout, asked, places, step)
        if recipe.readout is not None:
            start, end = self._answer_spans(rollout, asked)
            rollout = rollout.replace(answer_start=start, answer_end=end)
        return rollout

    def _regrouped(self, rollout: Rollout, asked: Asked, places: int, step: int) -> Rollout:
        samples, recipe, rng = self._samples, self._recipe, self._rng(step, 1)
        arrays = {k: local_rows(v) for k, v in vars(rollout).items() if isinstance(v, jax.Array)}
        segments = jax.tree.map(local_rows, rollout.segments)
        extra: list[list[Any]] = []
        for group, problem in enumerate(asked.problems):
            rows = slice(group * samples, (group + 1) * samples)
            added = []
            if self.replayer is not None and group < asked.plain:
                limit = self._parts.config.sampling.max_response
                added += self.replayer.replays(problem.id, arrays["correct"][rows], max_response=limit, rng=rng)
            for row in range(*rows.indices(len(arrays["tokens"]))) if recipe.erased_rows else ():
                added += erased_extra_rows(arrays, segments, row, recipe.erased_rows)
            extra.append(added)
        if self.replayer is not None:
            ids = np.repeat([problem.id for problem in asked.problems], samples)
            self.replayer.record(arrays, ids.tolist(), np.repeat(asked.prompts.context, samples).tolist())
        wide = regroup(arrays, extra, samples=samples, places=places)
        if segments is not None:
            fields = regroup({**vars(segments), **{k: arrays[k] for k in _NEEDED}}, [[]] * len(extra), samples=samples,
                             places=places)  # fmt: skip
            segments = segments.replace(**{name: fields[name] for name in vars(segments)})
            segments = to_global(segments, self._sharding)
        return Rollout(**to_global(wide, self._sharding), segments=segments)

    def _answer_spans(self, rollout: Rollout, asked: Asked) -> tuple[Any, Any]:
        """Index of each row's first answer token and of the one behind its last; equal where there is no answer."""
        tokens, mask = local_rows(rollout.tokens), local_rows(rollout.response_mask)
        group = len(tokens) // len(asked.problems)
        spans = np.zeros((len(tokens), 2), np.int32)
        find = getattr(self._parts.task, "answer_span", None)
        for row in range(len(tokens)):
            places = np.nonzero(mask[row])[0]
            if find is not None and len(places):
                response = tokens[row, places].tolist()
                span = find(asked.problems[row // group], self._parts.tokenizer.decode(response))
                if span is not None:
                    spans[row] = places[0] + np.array(span_of_tokens(response, span, self._parts.tokenizer))
        start, end = to_global((spans[:, 0], spans[:, 1]), self._sharding)
        return start, end


_NEEDED = ("tokens", "prompt_length", "length", "origin", "response_mask", "rewards", "correct", "stopped")


@jax.jit
def _merge(chosen: Any, new: Rollout, old: Rollout) -> Rollout:
    """Rows of ``new`` where ``chosen`` [B], else of ``old``."""

    def pick(a, b):
        return jax.numpy.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, new, old)
