"""One training step: prompts, sample (and erase), verify, augment, score, the recipe's stages, update."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from entropy_rl.data.tasks import Problem
from entropy_rl.learner import make_answer_attention, make_prepare, make_score, make_update, rollout_metrics, scored
from entropy_rl.objectives.recipe import Recipe
from entropy_rl.rollout.engine import make_sampler
from entropy_rl.types import Rollout, TrainState
from experiments.building import Parts, state_shardings
from experiments.collecting import Asked, Collector


class _Clock:
    """Seconds since the last call, after the given arrays are ready."""

    def __init__(self):
        self._last = time.perf_counter()

    def lap(self, *arrays: Any) -> float:
        jax.block_until_ready(arrays)
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


@dataclasses.dataclass(frozen=True)
class Done:
    """What one step made.

    Attributes:
        state: after the step's updates.
        stages: the recipe's states after the step.
        asked: the prompts.
        rollout: as the updates read it.
        tokens: drawn, erased ones included.
        values: metrics by name.
        seconds: of sampling, grading, augmenting, scoring and updating together.
        skipped_in_a_row: the longest run of skipped updates the step saw.
    """

    state: TrainState
    stages: dict[str, Any]
    asked: Asked
    rollout: Rollout
    tokens: int
    values: dict[str, Any]
    seconds: float
    skipped_in_a_row: int


def minibatches(key: Any, rows: int, count: int, group_size: int) -> Any:
    """int32 [count, rows / count], every row once in random order: with ``group_size`` above 1 an equal part of each
    group, side by side, in every minibatch."""
    if group_size == 1:
        return jax.random.permutation(key, rows).reshape(count, -1)
    groups = jax.random.permutation(key, jnp.arange(rows).reshape(-1, group_size), axis=1, independent=True)
    return jnp.swapaxes(groups.reshape(-1, count, group_size // count), 0, 1).reshape(count, -1)


class Line:
    """The compiled stages of a run and their order; it knows the recipe, but no recipe by name.

    Args:
        parts: of the run.
        recipe: with its methods.
        optimizer: of the update.
    """

    def __init__(self, parts: Parts, recipe: Recipe, optimizer: optax.GradientTransformation):
        config = parts.config
        batch, sampling = config.batch, config.sampling
        self._batch, self._recipe, self._for_sampling = batch, recipe, parts.for_sampling
        sampler = make_sampler(
            parts.model,
            parts.mesh,
            samples_per_prompt=batch.samples,
            max_response=sampling.max_response,
            slots_per_device=sampling.slots_per_device,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            stop_tokens=parts.tokenizer.stop_ids,
            erasing=recipe.erasing,
        )
        self.collector = Collector(parts, recipe, sampler)
        self.group_size = recipe.rows_per_group(batch.samples)
        forward = dict(
            max_response=sampling.max_response, temperature=sampling.temperature, chunk_size=config.head_chunk,
            num_buckets=batch.length_buckets,
            group_size=self.group_size // batch.minibatches if batch.share_prompts else 1,
        )  # fmt: skip
        pieces = batch.minibatches * batch.microbatches
        self._score = make_score(parts.model, num_microbatches=pieces, **forward)
        self._attend = None
        if recipe.readout is not None:
            options = dataclasses.asdict(recipe.readout)
            self._attend = make_answer_attention(parts.model, num_microbatches=pieces, **options)
        self._prepare = make_prepare(recipe, parts.mesh, group_size=self.group_size, max_response=sampling.max_response)
        self._update = make_update(
            parts.model,
            optimizer,
            recipe.token_loss,
            reduction=recipe.reduction,
            num_microbatches=batch.microbatches,
            state_shardings=state_shardings(parts, optimizer),
            **forward,
        )
        self._from_sampler = batch.old_stats == "sampler" or (
            batch.old_stats == "auto" and config.model.dtype == "float32" and self.group_size == batch.samples
        )
        self._measure = jax.jit(rollout_metrics, static_argnames="group_size")

    def step(
        self, state: TrainState, stages: dict[str, Any], problems: Sequence[Problem], *, number: int, epoch: int,
        key: Any, reference: Any = None,
    ) -> Done:  # fmt: skip
        """Runs the line once; ``state`` is donated.

        Args:
            state, stages: parameters and optimizer, and the recipe's states.
            problems: this process's share of the stream's batch.
            number: of the step, from 0.
            epoch: whole passes over the problems before this batch.
            key: the step's.
            reference: parameters of the frozen policy, where the recipe reads one.
        """
        clock = _Clock()
        asked = self.collector.ask(problems, step=number, epoch=epoch)
        sampling_params = self._for_sampling(state.params)
        scores: list[Any] = []  # where the rows stay as they are, they are scored while the host grades them

        def score(rollout: Rollout) -> None:
            scores.append(self._score(state.params, rollout))

        from_sampler = self._from_sampler
        meanwhile = score if self.collector.keeps_rows and not from_sampler else None
        rollout, tokens, sample_seconds = self.collector.collect(
            sampling_params, asked, key, stages.get("erasing"), meanwhile
        )
        del sampling_params  # not beside the gradients
        verify_seconds = clock.lap(rollout) - sample_seconds
        rollout = self.collector.augment(rollout, asked, step=number)
        augment_seconds = clock.lap(rollout)

        if from_sampler:
            scores.append((rollout.raw_log_probs, rollout.entropy))
        if not scores:
            score(rollout)
        rollout = scored(rollout, *scores[0], mask_truncated=self._batch.mask_truncated)
        rollout = rollout.replace(
            ref_log_probs=self._score(reference, rollout)[0] if self._recipe.needs_reference else None,
            attention_mass=self._attend(state.params, rollout) if self._attend is not None else None,
        )
        values = self._measure(rollout, group_size=self.group_size)
        if from_sampler:  # there is nothing to compare
            values = {name: value for name, value in values.items() if not name.startswith("log_prob_gap")}
        rollout, stages, stage_values = self._prepare(rollout, stages, number, key)
        score_seconds = clock.lap(rollout)

        updates, read = [], rollout.for_update()
        for epoch_number in range(self._batch.epochs):
            chosen = jax.random.fold_in(key, epoch_number), rollout.tokens.shape[0], self._batch.minibatches
            for minibatch in minibatches(*chosen, self.group_size if self._batch.share_prompts else 1):
                state, update_values = self._update(state, read, minibatch)
                updates.append(update_values)
        update_seconds = clock.lap(state)

        streak = max(int(u.pop("skipped_in_a_row")) for u in updates)
        means = {name: jnp.mean(jnp.stack([u[name] for u in updates])) for name in updates[0]}
        seconds = sample_seconds + verify_seconds + augment_seconds + score_seconds + update_seconds
        values = jax.device_get(values | stage_values | means) | {
            "verify_seconds": verify_seconds,
            "augment_seconds": augment_seconds,
            "sample_tokens_per_second": tokens / sample_seconds,
            "score_tokens_per_second": tokens / score_seconds,
            "update_tokens_per_second": tokens * self._batch.epochs / update_seconds,
            "tokens_per_second": tokens / seconds,
        }
        return Done(state, stages, asked, rollout, tokens, values, seconds, streak)
