"""Semantic entropy of training problems, written once, for a curriculum from certain to uncertain.

    python -m experiments.rank_prompts --config=configs/sent.py --workdir=runs/ranking

For each of the first ``config.curriculum.problems`` training problems the base policy draws
``config.curriculum.samples`` responses; those with the same answer are one cluster. WORKDIR/semantic_entropy.jsonl
gets one line per problem, with the fraction of correct responses; a pass that was interrupted goes on where it
stopped. Training with more than one curriculum stage reads the file of ``config.curriculum.path``, or makes it first
under WORKDIR/ranking.
"""

import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.data.batching import decode_responses, encode_prompts
from entropy_rl.data.streams import ChosenProblems, ProblemStream, StagedStream
from entropy_rl.data.tasks import answer_clusters, check_clusters, rewards_of
from entropy_rl.masked import masked_mean
from entropy_rl.methods.sent import curriculum_stages, semantic_entropy
from entropy_rl.metrics import ProgressLine
from entropy_rl.objectives.recipe import Recipe
from entropy_rl.parallel.mesh import row_sharding
from entropy_rl.parallel.multihost import gather_rows, is_main, local_rows, to_global
from entropy_rl.rollout.engine import make_sampler
from experiments import flags
from experiments.building import Parts, build, one_sentence, remember_config
from experiments.pretrain import base_params, check_base

FILE = "semantic_entropy.jsonl"
WEIGHTINGS = ("counts", "log_prob")


def rank(parts: Parts, params: Any, workdir: str) -> str:
    """Writes what is missing of WORKDIR/semantic_entropy.jsonl and returns its path."""
    options, config = parts.config.curriculum, parts.config
    problems = parts.problems("train")
    count = min(options.problems, len(problems))
    path = os.path.join(workdir, FILE)
    if os.path.exists(path) and is_main():
        _repair(path)
    gather_rows(np.zeros(1))
    done = len(_lines(path)) if os.path.exists(path) else 0
    sampler = make_sampler(
        parts.model, parts.mesh, samples_per_prompt=options.samples, max_response=config.sampling.max_response,
        slots_per_device=config.sampling.slots_per_device, stop_tokens=parts.tokenizer.stop_ids,
        temperature=config.sampling.temperature,
    )  # fmt: skip
    key = jax.random.fold_in(jax.random.key(config.seed), 4)
    params = parts.for_sampling(params)
    progress = ProgressLine(count, first=done, every=count, title="rank")
    batch = config.eval.batch
    for first in range(done, count, batch):
        chunk = [problems[i % count] for i in range(first, first + batch)]
        values = _ranked(parts, sampler, params, chunk, key)[: count - first]
        if is_main():
            _append(path, [{"id": p.id} | record for p, record in zip(chunk, values, strict=False)])
        mean = np.mean([record["semantic_entropy"] for record in values])
        progress.update(min(first + batch, count), {"mean": f"{mean:.3f}"})
    progress.close()
    gather_rows(np.zeros(1))  # nobody reads the file before it is whole
    return path


def _ranked(parts: Parts, sampler, params, chunk, key) -> list[dict[str, float]]:
    """(semantic entropy, fraction correct) of each problem of a global batch."""
    options, shares = parts.config.curriculum, jax.process_count()
    size = len(chunk) // shares
    mine = chunk[jax.process_index() * size : (jax.process_index() + 1) * size]
    prompts = encode_prompts(mine, parts.tokenizer, parts.config.sampling.max_prompt)
    rollout = sampler(params, to_global(prompts, row_sharding(parts.mesh)), key)
    texts = decode_responses(local_rows(rollout.tokens), local_rows(rollout.response_mask), parts.tokenizer)
    groups = [texts[i : i + options.samples] for i in range(0, len(texts), options.samples)]
    ids = np.array([answer_clusters(parts.task, p, group) for p, group in zip(mine, groups, strict=True)], np.int32)
    mean = local_rows(masked_mean(rollout.raw_log_probs, rollout.response_mask, axis=1)).reshape(ids.shape)
    log_weights = mean if options.weighting == "log_prob" else np.zeros_like(mean)
    entropies = np.asarray(jax.vmap(semantic_entropy)(jnp.asarray(ids), jnp.asarray(log_weights)))
    rewards = rewards_of(parts.task, [p for p in mine for _ in range(options.samples)], texts)
    right = np.mean(np.array(rewards).reshape(ids.shape) >= 1.0, axis=1)
    values = gather_rows(np.stack([entropies, right.astype(np.float32)], axis=1))
    return [{"semantic_entropy": round(float(h), 6), "accuracy": round(float(a), 6)} for h, a in values]


def _append(path: str, records: list[dict]) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def _repair(path: str) -> None:
    """Takes away a record that was cut off by a kill."""
    with open(path) as file:
        text = file.read()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        with open(path, "w") as file:
            file.write(whole)


def _lines(path: str) -> list[dict]:
    """The records of a ranking; ValueError where the file holds something else."""
    try:
        with open(path) as file:
            return [
                {"id": int(r["id"])} | {name: float(r[name]) for name in ("semantic_entropy", "accuracy")}
                for r in (json.loads(line) for line in file if line.strip())
            ]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no file of semantic entropies: {type(error).__name__}: {error}") from None


def _is_ranked(parts: Parts, recipe: Recipe) -> bool:
    return recipe.curriculum_stages > 1 or parts.config.curriculum.max_accuracy < 1


def check_ranking(parts: Parts, recipe: Recipe) -> None:
    """Raises ValueError where a curriculum is wanted and could not be made."""
    options = parts.config.curriculum
    if options.weighting not in WEIGHTINGS:
        raise ValueError(f"config.curriculum.weighting {options.weighting!r} is not one of {', '.join(WEIGHTINGS)}")
    if options.path and not os.path.isfile(options.path):
        raise ValueError(f"config.curriculum.path={options.path} is no file; experiments.rank_prompts makes one")
    if not 0 <= options.max_accuracy <= 1:
        raise ValueError(f"config.curriculum.max_accuracy={options.max_accuracy} must lie in [0, 1]")
    if recipe.curriculum_stages > parts.config.steps:
        raise ValueError(
            f"config.sent.stages={recipe.curriculum_stages} is more than the run's {parts.config.steps} steps"
        )
    ranked = len(_lines(options.path)) if options.path else min(options.problems, len(parts.problems("train")))
    if recipe.curriculum_stages > ranked:
        raise ValueError(f"{ranked} ranked problems cannot be split into config.sent.stages={recipe.curriculum_stages}")
    if _is_ranked(parts, recipe) and not options.path:
        check_clusters(parts.task)


def make_stream(parts: Parts, recipe: Recipe, params: Any, workdir: str) -> ProblemStream | StagedStream:
    """The problems a run trains on, in order: shuffled, or by stages of ascending semantic entropy."""
    config, problems = parts.config, parts.problems("train")
    common = dict(batch_size=config.batch.prompts, process_index=jax.process_index(), process_count=jax.process_count())
    if not _is_ranked(parts, recipe):
        return ProblemStream(problems, seed=config.seed + 1, **common)
    path = config.curriculum.path or rank(parts, params, os.path.join(workdir, "ranking"))
    limit = config.curriculum.max_accuracy
    by_id = {record["id"]: record["semantic_entropy"] for record in _lines(path) if record["accuracy"] <= limit}
    if not by_id:
        raise ValueError(f"no problem of {path} has an accuracy of at most config.curriculum.max_accuracy={limit}")
    rows = [i for i in range(min(len(problems), max(by_id, default=0) + 1)) if problems[i].id in by_id]
    values = np.array([by_id[problems[i].id] for i in rows])
    stages = curriculum_stages(values, recipe.curriculum_stages)
    streams = [
        ProblemStream(ChosenProblems(problems, [rows[i] for i in stage]), seed=config.seed + 1 + number, **common)
        for number, stage in enumerate(stages)
    ]
    return StagedStream(streams, num_batches=config.steps)


def main(config, workdir: str, *, allow_config_change: bool = False) -> None:
    """Runs the module."""
    with one_sentence():
        parts = build(config, workdir)
        check_base(parts)
        check_clusters(parts.task)
        remember_config(config, workdir, allow_change=allow_config_change)
    path = rank(parts, base_params(parts, workdir), workdir)
    values = np.array([record["semantic_entropy"] for record in _lines(path)])
    span = f"{values.min():.3f} to {values.max():.3f}"
    print(f"{len(values)} problems, semantic entropy {values.mean():.3f} nats on average, {span}; written to {path}")


if __name__ == "__main__":
    flags.run(main)
