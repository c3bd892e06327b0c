"""Trains a policy by reinforcement learning with verifiable rewards.

    python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart

Any key of the config can be set on the command line (``--config.optimizer.learning_rate=3e-4``). A workdir that holds
a checkpoint goes on from it, and ends bit for bit where a run that was never stopped ends.
"""

import json
import math
import os
import resource
import sys
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from entropy_rl.checkpoint import Checkpointer
from entropy_rl.data.batching import encode_prompts
from entropy_rl.metrics import MetricsWriter, ProgressLine, read_metrics
from entropy_rl.parallel.mesh import replicated
from entropy_rl.parallel.multihost import is_main, local_rows
from experiments import flags
from experiments.building import (
    build,
    check_rows,
    config_hash,
    make_run_optimizer,
    make_run_recipe,
    one_sentence,
    remember_config,
    sharded_state,
)
from experiments.evaluation import comparison, headline, make_evaluator
from experiments.line import Line
from experiments.pretrain import base_params, check_base
from experiments.rank_prompts import check_ranking, make_stream
from experiments.transcripts import save_rollouts


def _device_memory_gib() -> float:
    stats = jax.local_devices()[0].memory_stats()
    peak = stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak / 2**30


def _plan(config: ConfigDict, workdir: str):
    """Parts, recipe, optimizer and held-out problems of a run; what can be wrong with the input is found here."""
    parts = build(config, workdir)
    check_base(parts)
    recipe = make_run_recipe(config, parts.tokenizer)
    check_rows(config, recipe, parts.mesh)
    optimizer, rate = make_run_optimizer(config)
    held_out = parts.problems("test")[: config.eval.problems]
    encode_prompts([*held_out, *parts.problems("train")[:512]], parts.tokenizer, config.sampling.max_prompt)
    check_ranking(parts, recipe)
    return parts, recipe, (optimizer, rate), held_out


def train(config: ConfigDict, workdir: str, *, allow_config_change: bool = False) -> dict[str, Any]:
    """Runs ``config`` in ``workdir`` to its end and returns what WORKDIR/summary.json holds."""
    started = time.perf_counter()
    with one_sentence():
        parts, recipe, (optimizer, rate), held_out = _plan(config, workdir)
        line = Line(parts, recipe, optimizer)
        evaluate = make_evaluator(parts, held_out, recipe.erasing)
        base = base_params(parts, workdir) if config.base else None
        remember_config(config, workdir, allow_change=allow_config_change)
    if base is None:
        base = base_params(parts, workdir)
    state = sharded_state(parts, base, optimizer)
    stages = jax.device_put(recipe.init_states(), replicated(parts.mesh))
    reference = base if recipe.needs_reference else None
    with one_sentence():
        stream = make_stream(parts, recipe, base, workdir)
    del base

    # --- Where the run stands.
    replayer = line.collector.replayer
    checkpointer = Checkpointer(
        os.path.join(workdir, "checkpoints"), keep=config.checkpoint.keep, keep_best=config.checkpoint.keep_best
    )
    first, sampled_tokens, earlier_seconds = checkpointer.latest_step(), 0, 0.0
    if first is not None:
        with one_sentence():
            state, meta = checkpointer.restore(state)
            stages = checkpointer.restore_stages(stages)
            if replayer is not None:
                replayer.buffer.restore(checkpointer.restore_own())
        stream.restore(meta["stream"])
        sampled_tokens, earlier_seconds = meta["sampled_tokens"], meta["seconds"]
    writer = None
    if is_main():
        writer = MetricsWriter(
            workdir,
            resume_step=first,
            tensorboard=config.log.tensorboard,
            wandb_project=config.log.wandb_project,
            config=config.to_dict(),
        )
    progress = ProgressLine(config.steps, first=first or 0, every=config.log.every)
    if first:
        progress.say(f"going on from step {first} of {config.steps}" if first < config.steps else "already finished")
    run_key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def write(step, values):
        if writer is not None:
            writer.write(step, values)

    def evaluate_and_write(step):
        estimates = evaluate(state.params, stages.get("erasing"))
        write(step, {f"eval_{name}": e.mean for name, e in estimates.items()})
        progress.say(f"step {step}: held-out {headline(config)} {estimates[headline(config)]}")
        return estimates

    def save(step, estimates):
        meta = {
            "stream": stream.state(),
            "sampled_tokens": sampled_tokens,
            "seconds": earlier_seconds + time.perf_counter() - started,
            "config_hash": config_hash(config),
        }
        score_of = None if estimates is None else {"score": estimates[headline(config)].mean}
        own = None if replayer is None else replayer.buffer.state()
        checkpointer.save(step, state, meta, score_of, stages=stages, own=own)

    if first is None:
        save(0, evaluate_and_write(0))

    # --- The steps.
    enough = config.stop_at_tokens or float("inf")
    for step in range(first or 0, config.steps):
        if sampled_tokens >= enough:
            break
        if config.profile and step == (first or 0) + 2:
            jax.profiler.start_trace(os.path.join(workdir, "profile"))
        epoch, problems = stream.epoch, stream.next_batch()  # the epoch before the batch is taken
        made = line.step(
            state, stages, problems, number=step, epoch=epoch, key=jax.random.fold_in(run_key, step),
            reference=reference,
        )  # fmt: skip
        state, stages = made.state, made.stages
        done, sampled_tokens = step + 1, sampled_tokens + made.tokens
        values = made.values | {
            "learning_rate": float(rate(max(int(state.updates) - int(state.skipped) - 1, 0))),
            "skipped_updates": int(state.skipped),
            "sampled_tokens": sampled_tokens,
            "device_memory_gib": _device_memory_gib(),
        }
        write(done, values)
        progress.update(
            done,
            {
                "reward": f"{values['reward']:.3f}",
                "entropy": f"{values['trainer_entropy']:.3f}",
                "tokens/s": f"{values['tokens_per_second']:,.0f}",
                "left": f"{made.seconds * (config.steps - done):,.0f} s",
            },
        )
        if config.profile and step >= (first or 0) + 2 and done == min((first or 0) + 5, config.steps):
            jax.profiler.stop_trace()
        if config.log.rollouts_every and (step == 0 or done % config.log.rollouts_every == 0):
            save_rollouts(
                workdir, done, made.asked.problems, made.rollout, parts.tokenizer, config,
                texts=made.asked.texts, group_size=line.group_size, ends=recipe.segments_of(made.rollout),
            )  # fmt: skip
        if made.skipped_in_a_row >= config.optimizer.max_skipped_in_a_row:
            _stop_on_nonfinite(workdir, done, made.skipped_in_a_row, made.rollout, checkpointer)
        last = done == config.steps or sampled_tokens >= enough
        evaluated = last or (config.eval.every and done % config.eval.every == 0)
        estimates = evaluate_and_write(done) if evaluated else None
        if evaluated or done % config.checkpoint.every == 0:
            save(done, estimates)

    progress.close()
    checkpointer.close()
    if writer is not None:
        writer.close()
    seconds = earlier_seconds + time.perf_counter() - started
    return _summarise(config, workdir, seconds=seconds, sampled_tokens=sampled_tokens, num_problems=len(held_out))


def _stop_on_nonfinite(workdir, step, count, rollout, checkpointer):
    """Saves the step's rollout and ends the run with what to look at."""
    path = os.path.join(workdir, f"nonfinite_step_{step:06d}.npz")
    arrays = {k: local_rows(v) for k, v in vars(rollout).items() if isinstance(v, jax.Array)}
    np.savez_compressed(path, **arrays)
    checkpointer.close()
    sys.exit(
        f"error: {count} updates in a row had a gradient that is not finite; stopped at step {step}, its rollout is in "
        f"{path}; try a smaller config.optimizer.learning_rate or --config.debug_nans"
    )


def _summarise(
    config: ConfigDict, workdir: str, *, seconds: float, sampled_tokens: int, num_problems: int
) -> dict[str, Any]:
    """Writes WORKDIR/summary.json from the metrics file and prints the table before and after."""
    records = read_metrics(os.path.join(workdir, "metrics.jsonl"))
    evaluations = [r for r in records if f"eval_{headline(config)}" in r]
    steps = [r for r in records if "trainer_entropy" in r]
    before, after = evaluations[0], evaluations[-1]
    summary = {
        "accuracy_before": before[f"eval_{headline(config)}"],
        "accuracy_after": after[f"eval_{headline(config)}"],
        "greedy_before": before["eval_greedy"],
        "greedy_after": after["eval_greedy"],
        "entropy_first": steps[0]["trainer_entropy"] if steps else None,
        "entropy_last": steps[-1]["trainer_entropy"] if steps else None,
        "steps": after["step"],
        "sampled_tokens": sampled_tokens,
        "seconds": round(seconds, 1),
        "config_hash": config_hash(config),
    }
    if is_main():
        with open(os.path.join(workdir, "summary.json"), "w") as file:
            json.dump(summary, file, indent=2)
        print(f"\n{num_problems} held-out problems, steps {before['step']} and {after['step']}:")
        print(comparison(before, after))
        first, last = (math.nan if summary[k] is None else summary[k] for k in ("entropy_first", "entropy_last"))
        print(f"entropy {first:.3f} -> {last:.3f} nats per token;", end=" ")
        print(f"{sampled_tokens:,} tokens sampled, {seconds:,.0f} s in all; everything is in {workdir}")
    return summary


if __name__ == "__main__":
    flags.run(train)
