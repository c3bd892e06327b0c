"""Sampling held-out problems and counting what is right; used during training and by ``experiments.evaluate``."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from entropy_rl.data.batching import decode_responses, encode_prompts
from entropy_rl.data.tasks import Problem, rewards_of
from entropy_rl.evaluate import Estimate, accuracy_estimates, estimate
from entropy_rl.methods.e3rl import Erasing, RunningUncertainty
from entropy_rl.parallel.mesh import row_sharding
from entropy_rl.parallel.multihost import gather_rows, local_rows, to_global
from entropy_rl.rollout.engine import make_sampler
from entropy_rl.types import Rollout
from experiments.building import Parts


def _correct(parts: Parts, sampler, params, problems: Sequence[Problem], batch: int, samples: int, key) -> np.ndarray:
    """[problems, samples] of 0 and 1; the last batch is filled up with repeats, which do not count."""
    correct = []
    for mine, rollout in sampled_ahead(parts, sampler, params, problems, batch, key):
        texts = decode_responses(local_rows(rollout.tokens), local_rows(rollout.response_mask), parts.tokenizer)
        rewards = rewards_of(parts.task, [problem for problem in mine for _ in range(samples)], texts)
        correct.append((np.array(rewards) >= 1.0).astype(np.float64).reshape(-1, samples))
    # Gathered, the shares of a batch's processes follow each other.
    return np.concatenate([gather_rows(own) for own in correct])[: len(problems)]


def sampled_ahead(
    parts: Parts, sampler, params, problems: Sequence[Problem], batch: int, key, start: int = 0
) -> Iterator[tuple[list[Problem], Rollout]]:
    """(this process's problems, their rollout) of each batch from problem ``start`` on.

    The next batch is already being sampled while the caller grades one. The last one is filled up with repeats.
    """
    shares = jax.process_count()

    def dispatched(first: int) -> tuple[list[Problem], Rollout]:
        chunk = [problems[i % len(problems)] for i in range(first, first + batch)]
        mine = chunk[jax.process_index() * batch // shares : (jax.process_index() + 1) * batch // shares]
        prompts = encode_prompts(mine, parts.tokenizer, parts.config.sampling.max_prompt)
        return mine, sampler(params, to_global(prompts, row_sharding(parts.mesh)), key)

    ahead = None
    for first in range(start, len(problems), batch):
        current, ahead = ahead, dispatched(first)
        if current is not None:
            yield current
    if ahead is not None:
        yield ahead


def make_evaluator(
    parts: Parts, problems: Sequence[Problem], erasing: Erasing | None = None
) -> Callable[..., dict[str, Estimate]]:
    """A function ``(params, running=None) -> estimates``: greedy accuracy, mean@k and pass@k, always the same noise.

    With ``erasing``, and statistics for it to go by, mean@k and pass@k of sampling with erasing are among them, with
    names that begin with "erasing_".
    """
    options = parts.config.eval
    common = dict(
        max_response=parts.config.sampling.max_response,
        slots_per_device=parts.config.sampling.slots_per_device,
        stop_tokens=parts.tokenizer.stop_ids,
    )
    greedy = make_sampler(parts.model, parts.mesh, samples_per_prompt=1, temperature=0.0, **common)
    sampled = make_sampler(
        parts.model,
        parts.mesh,
        samples_per_prompt=options.samples,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        **common,
    )
    key = jax.random.fold_in(jax.random.key(parts.config.seed), 2)
    erased = None
    if erasing is not None and options.temperature:  # greedy, it would draw the same again
        erased = make_sampler(
            parts.model, parts.mesh, samples_per_prompt=options.samples, temperature=options.temperature,
            top_k=options.top_k, top_p=options.top_p, min_p=options.min_p, erasing=erasing, **common,
        )  # fmt: skip

    def evaluate(params: Any, running: RunningUncertainty | None = None) -> dict[str, Estimate]:
        params = parts.for_sampling(params)
        once = _correct(parts, greedy, params, problems, options.batch, 1, key)
        many = _correct(parts, sampled, params, problems, options.batch, options.samples, key)
        estimates = {"greedy": estimate(once[:, 0])} | accuracy_estimates(many)
        if erased is not None and running is not None:
            with_erasing = lambda params, prompts, key: erased(params, prompts, key, running)  # noqa: E731
            again = _correct(parts, with_erasing, params, problems, options.batch, options.samples, key)
            estimates |= {f"erasing_{name}": e for name, e in accuracy_estimates(again).items()}
        return estimates

    return evaluate


def headline(config) -> str:
    """The name of the estimate a run is judged by."""
    return f"mean@{config.eval.samples}"


def comparison(before: dict[str, float], after: dict[str, float]) -> str:
    """A plain-text table of the evaluation entries of two metrics records, in percent."""
    names = [name for name in before if name.startswith("eval_") and name in after]
    width = max(10, *(len(name) - 4 for name in names))
    lines = [f"{'':<{width}}{'before':>10}{'after':>10}{'change':>10}"]
    for name in names:
        old, new = 100 * before[name], 100 * after[name]
        lines.append(f"{name.removeprefix('eval_'):<{width}}{old:>8.1f} %{new:>8.1f} %{new - old:>+10.1f}")
    return "\n".join(lines)
