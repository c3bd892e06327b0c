"""Evaluates a checkpoint on held-out problems: greedy accuracy, mean@k and pass@k with 95 % intervals.

    python -m experiments.evaluate --workdir=runs/quickstart --step=best --samples=16

The config is the run's own (WORKDIR/config.json); flags change what is sampled.
"""

import json
import os
from typing import Any

import jax
from absl import app, flags, logging

from entropy_rl.checkpoint import Checkpointer
from experiments.building import (
    Parts,
    build,
    load_config,
    make_run_optimizer,
    make_run_recipe,
    one_sentence,
    random_params,
    sharded_state,
)
from experiments.evaluation import make_evaluator
from experiments.pretrain import base_params


def _step(checkpointer: Checkpointer, wanted: str) -> int:
    steps = checkpointer.steps()
    if not steps:
        raise ValueError("the workdir has no checkpoint yet; --step=base evaluates the policy before training")
    if wanted == "latest":
        return steps[-1]
    if wanted == "best":
        best = checkpointer.best_step()
        return steps[-1] if best is None else best
    if not wanted.isdigit() or int(wanted) not in steps:
        raise ValueError(f"--step={wanted} is not base, best, latest or one of the kept checkpoints {steps}")
    return int(wanted)


def policy_at(parts: Parts, workdir: str, step: str) -> tuple[Any, int, Any]:
    """(parameters, step, statistics to erase by or None) of a run at "base", "best", "latest" or a step's number."""
    recipe = make_run_recipe(parts.config, parts.tokenizer)
    if step == "base":
        return base_params(parts, workdir), 0, None
    checkpointer = Checkpointer(os.path.join(workdir, "checkpoints"))
    number = _step(checkpointer, step)
    template = sharded_state(parts, random_params(parts), make_run_optimizer(parts.config)[0])
    params = checkpointer.restore(template, number)[0].params
    running = None
    if recipe.erasing is not None:
        running = checkpointer.restore_stages(recipe.init_states(), number)["erasing"]
    checkpointer.close()
    return params, number, running


def evaluate(workdir: str, *, step: str, samples: int | None, problems: int | None, temperature: float | None) -> dict:
    """Evaluates, prints a table and adds the numbers to WORKDIR/evaluations.jsonl."""
    with one_sentence():
        config = load_config(workdir).copy_and_resolve_references()
        with config.unlocked():
            config.eval.samples = samples or config.eval.samples
            config.eval.problems = problems or config.eval.problems
            if temperature is not None:
                config.eval.temperature = temperature
        parts = build(config, workdir)
        recipe = make_run_recipe(config, parts.tokenizer)
        params, number, running = policy_at(parts, workdir, step)
        held_out = parts.problems("test")[: config.eval.problems]
    estimates = make_evaluator(parts, held_out, recipe.erasing)(params, running)
    record = {
        "step": number,
        "problems": len(held_out),
        "samples": config.eval.samples,
        "temperature": config.eval.temperature,
    }
    record |= {name: [e.mean, e.low, e.high] for name, e in estimates.items()}
    if jax.process_index() == 0:
        name = "base policy" if step == "base" else f"step {number}"
        print(f"{name}, {len(held_out)} held-out problems, T={config.eval.temperature:g}, 95 % intervals:")
        for name, value in estimates.items():
            print(f"{name:<{16 if running is not None else 10}}{value}")
        with open(os.path.join(workdir, "evaluations.jsonl"), "a") as file:
            file.write(json.dumps(record) + "\n")
    return record


def main(argv) -> None:
    """Runs the module."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    f = flags.FLAGS
    evaluate(f.workdir, step=f.step, samples=f.samples, problems=f.problems, temperature=f.temperature)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "A run.", required=True)
    flags.DEFINE_string("step", "latest", "A checkpoint's step, latest, best, or base (before training).")
    flags.DEFINE_integer("samples", None, "Samples per problem; default the run's.", lower_bound=1)
    flags.DEFINE_integer("problems", None, "Held-out problems; default the run's.", lower_bound=1)
    flags.DEFINE_float("temperature", None, "Sampling temperature; default the run's.", lower_bound=0.0)
    app.run(main)
