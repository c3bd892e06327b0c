"""What reading a prompt once for its samples saves: in prefill, in scoring and in an update, side by side.

    python -m experiments.benchmarks.sharing --samples=8 --max_prompt=64 --max_response=64

Prefill: of every prompt, and of every row. Score and update: rows that read their prompt together, and each its own;
scores are compared first. One process, in turn.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from entropy_rl import learner
from entropy_rl.objectives import make_recipe
from entropy_rl.rollout import sample
from entropy_rl.rollout.sampling import PREFILL_ROWS, prefill
from entropy_rl.types import PromptBatch
from experiments.benchmarks import interleave, tiny_qwen3


def prompt_batch(ids: Any) -> PromptBatch:
    """Whole prompts of the same length."""
    rows, size = ids.shape
    zeros = jnp.zeros(rows, jnp.int32)
    return PromptBatch(tokens=ids, length=zeros + size, ids=jnp.arange(rows), context=zeros, round=zeros)


def in_turn(run: Callable[[str], Any], repeats: int) -> dict[str, list[float]]:
    """Seconds of ``run("shared")`` and ``run("alone")``, after one of each that compiles."""
    seconds: dict[str, list[float]] = {"shared": [], "alone": []}
    for name in seconds:
        jax.block_until_ready(run(name))
    for _ in range(repeats):
        for name, values in seconds.items():
            start = time.perf_counter()
            jax.block_until_ready(run(name))
            values.append(time.perf_counter() - start)
    return seconds


def main(argv) -> None:
    """Runs the benchmark."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    f = flags.FLAGS
    interleave.describe_machine(["experiments.benchmarks.sharing", *sys.argv[1:]])
    model, params = tiny_qwen3.make_model()
    ids = jnp.asarray(tiny_qwen3.prompt_ids(f.prompts, f.max_prompt))
    prompts, rows = prompt_batch(ids), prompt_batch(jnp.repeat(ids, f.samples, axis=0))
    fill = jax.jit(lambda params, prompts: prefill(model, params, prompts, rows=PREFILL_ROWS))
    rollout = sample(
        model, params, prompts, jax.random.key(0), samples_per_prompt=f.samples, max_response=f.max_response
    ).fresh()
    shape: dict[str, Any] = dict(max_response=f.max_response, temperature=1.0)
    recipe, optimizer = make_recipe("grpo"), learner.make_optimizer(1e-6)
    scores, updates, states = {}, {}, {}
    for name, group_size in (("alone", 1), ("shared", f.samples)):
        scores[name] = learner.make_score(model, group_size=group_size, **shape)
        updates[name] = learner.make_update(
            model, optimizer, recipe.token_loss, reduction=recipe.reduction, group_size=group_size, **shape
        )
        states[name] = learner.init_state(jax.tree.map(jnp.copy, params), optimizer)
    gap = np.max(np.abs(scores["alone"](params, rollout)[0] - scores["shared"](params, rollout)[0]))
    print(f"largest difference of log-probs: {gap:.1e}")
    if not gap < 1e-4:
        sys.exit("error: rows that share their prompt are scored differently")
    batch = rollout.replace(
        old_log_probs=rollout.raw_log_probs, old_entropy=rollout.entropy, loss_mask=rollout.response_mask,
        advantages=jnp.where(rollout.response_mask, 1.0, 0.0),
    ).for_update()  # fmt: skip

    def update(name):
        states[name], metrics = updates[name](states[name], batch, jnp.arange(len(batch.tokens)))
        return states[name].params, metrics

    runs: dict[str, Callable[[str], Any]] = {
        "prefill": lambda name: fill(params, {"shared": prompts, "alone": rows}[name]),
        "score": lambda name: scores[name](params, rollout),
        "update": update,
    }
    size = f"{f.prompts} prompts x {f.samples} samples, {f.max_prompt} + {f.max_response} tokens, {f.repeats} runs"
    tokens = f.prompts * f.samples * (f.max_prompt + f.max_response)
    for name, run in runs.items():
        interleave.print_table(in_turn(run, f.repeats), tokens, f"{name}, {size}")


if __name__ == "__main__":
    flags.DEFINE_integer("prompts", 8, "Prompts.", lower_bound=1)
    flags.DEFINE_integer("samples", 8, "Responses to each.", lower_bound=2)
    flags.DEFINE_integer("max_prompt", 64, "Tokens of a prompt.", lower_bound=2)
    flags.DEFINE_integer("max_response", 64, "Tokens of a response.", lower_bound=1)
    flags.DEFINE_integer("repeats", 7, "Runs of each.", lower_bound=1)
    app.run(main)
