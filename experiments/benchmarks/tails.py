"""Continuous batching: responses of very different lengths beside as many tokens in responses of one length.

    python -m experiments.benchmarks.tails

2,048 responses of 8 to 512 tokens on 64 slots, their lengths log-normal, and 2,048 of the mean length; both in the same
program, told apart by ``response_limit`` alone. A sampler that waits for its slowest row takes several times as long on
the first: that of waiting for batches of 64 is printed beside them, in decode steps.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from entropy_rl.rollout import sample
from entropy_rl.types import PromptBatch
from experiments.benchmarks import interleave, tiny_qwen3

SAMPLES = 8


def lengths(rows: int, longest: int) -> np.ndarray:
    """Log-normal around 48 tokens, between 8 and ``longest``."""
    drawn = np.random.default_rng(0).lognormal(np.log(48), 1.0, rows)
    return np.clip(drawn, 8, longest).astype(np.int32)


def main(argv) -> None:
    """Runs the benchmark."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    f = flags.FLAGS
    model, params = tiny_qwen3.make_model()
    count = f.rows // SAMPLES
    zeros = jnp.zeros(count, jnp.int32)
    prompts = PromptBatch(
        tokens=jnp.asarray(tiny_qwen3.prompt_ids(count, f.prompt)), length=zeros + f.prompt,
        ids=jnp.arange(count, dtype=jnp.int32), context=zeros, round=zeros,
    )  # fmt: skip
    tail = lengths(count * SAMPLES, f.max_response)
    equal = np.full(len(tail), tail.sum() // len(tail), np.int32)
    equal[: tail.sum() - equal.sum()] += 1
    limits = {"equal lengths": equal, "heavy tail": tail}

    def run(limit):
        rollout = sample(
            model, params, prompts, jax.random.key(0), samples_per_prompt=SAMPLES, max_response=f.max_response,
            slots=f.slots, response_limit=jnp.asarray(limit),
        )  # fmt: skip
        return np.asarray(jax.block_until_ready(rollout.response_mask)).sum()

    interleave.describe_machine(["experiments.benchmarks.tails", *sys.argv[1:]])
    for name, limit in limits.items():
        if run(limit) != limit.sum():
            sys.exit(f"error: {name}: rows did not end at their limits")
    seconds: dict[str, list[float]] = {name: [] for name in limits}
    for _ in range(f.repeats):
        for name, limit in limits.items():
            start = time.perf_counter()
            run(limit)
            seconds[name].append(time.perf_counter() - start)
    waiting = sum(int(part.max()) for part in np.array_split(tail, -(-len(tail) // f.slots)))
    print(f"\n{len(tail)} rows, {tail.sum():,} tokens, {tail.min()} to {tail.max()}, {f.slots} slots, {f.repeats} runs")
    print(f"decode steps: {tail.sum() / f.slots:,.0f} at least; {waiting:,} if batches waited for their longest row")
    interleave.print_table(seconds, int(tail.sum()), "time beside equal lengths")


if __name__ == "__main__":
    flags.DEFINE_integer("rows", 2048, "Responses.", lower_bound=SAMPLES)
    flags.DEFINE_integer("slots", 64, "Rows decoded at once.", lower_bound=1)
    flags.DEFINE_integer("prompt", 64, "Prompt tokens.", lower_bound=2)
    flags.DEFINE_integer("max_response", 512, "Tokens of the longest response.", lower_bound=8)
    flags.DEFINE_integer("repeats", 3, "Runs of each.", lower_bound=1)
    app.run(main)
