"""What the entropy of every token costs, what watching costs where nothing is erased, and erasing per token drawn.

    python -m experiments.benchmarks.erasing

Four samplers of one process run in turn: plain; the same program without the entropy; with erasing and thresholds that
nothing ever reaches (all three draw the same tokens, which is checked); and with erasing that erases.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from entropy_rl.methods.e3rl import Erasing, RunningUncertainty
from entropy_rl.rollout import sample, sampling
from entropy_rl.types import PromptBatch
from experiments.benchmarks import interleave, tiny_qwen3


def statistics_of(erasing: Erasing, max_response: int, mean: float) -> RunningUncertainty:
    """As if every segment index had been seen with this mean U."""
    ones = jnp.ones(erasing.num_segments(max_response))
    return RunningUncertainty(ones, ones * mean, ones * mean**2, jnp.ones(()), jnp.full((), mean))


def compiled(function, *args, with_entropy: bool = True):
    """``function`` compiled for these arguments, if asked for with a sampler that computes no entropy."""
    draw = sampling.draw

    def bare(*args, **options):
        tokens, log_probs, stats = draw(*args, **options)
        return tokens, log_probs, stats.replace(entropy=jnp.zeros_like(stats.entropy))

    jax.clear_caches()  # what was traced of the sampler before
    sampling.draw = draw if with_entropy else bare
    try:
        return jax.jit(function).lower(*args).compile()
    finally:
        sampling.draw = draw


def main(argv) -> None:
    """Runs the benchmark."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    f = flags.FLAGS
    model, params = tiny_qwen3.make_model()
    zeros = jnp.zeros(f.batch, jnp.int32)
    prompts = PromptBatch(
        tokens=jnp.asarray(tiny_qwen3.prompt_ids(f.batch, f.prompt)), length=zeros + f.prompt,
        ids=jnp.arange(f.batch, dtype=jnp.int32), context=zeros, round=zeros,
    )  # fmt: skip
    erasing = Erasing(f.segment, window=max(1, f.segment // 16), kappa=0.0)
    # A random model's surprisal is about ln V: half of all segments are above this mean, none above the other.
    means = {"watching": 1e6, "erasing": float(np.log(tiny_qwen3.SIZES["vocab_size"])) * 0.6}
    key = jax.random.key(0)

    def sampler(**options):
        return lambda params, key: sample(model, params, prompts, key, max_response=f.max_response, **options)

    calls: dict[str, Callable[..., Any]] = {"plain": compiled(sampler(), params, key)}
    calls["no entropy"] = compiled(sampler(), params, key, with_entropy=False)
    for name, mean in means.items():
        watched = sampler(erasing=erasing, running=statistics_of(erasing, f.max_response, mean))
        calls[name] = compiled(watched, params, key)

    def run(name: str):
        return jax.block_until_ready(calls[name](params, key))

    interleave.describe_machine(["experiments.benchmarks.erasing", *sys.argv[1:]])
    rollouts = {name: run(name) for name in calls}
    if np.any(rollouts["no entropy"].entropy):
        sys.exit("error: the sampler without entropy has one")
    for name in ("no entropy", "watching"):
        if not np.array_equal(rollouts["plain"].tokens, rollouts[name].tokens):
            sys.exit(f"error: {name!r} draws other tokens")
    drawn = {
        name: int(np.sum(r.response_mask if r.segments is None else r.segments.draws)) for name, r in rollouts.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(f.repeats):
        for name in calls:
            start = time.perf_counter()
            run(name)
            seconds[name].append(time.perf_counter() - start)
    print(
        f"\n{f.batch} rows of {f.prompt} + {f.max_response} tokens, segments of {f.segment}, {f.repeats} runs in turn"
    )
    print(f"{'':<12}{'median s':>10}{'drawn':>10}{'time / plain':>14}{'per token / plain':>19}")
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds["plain"], strict=True))
        per_token = ratio * drawn["plain"] / drawn[name]
        print(f"{name:<12}{statistics.median(values):>10.4f}{drawn[name]:>10,}{ratio:>13.3f}x{per_token:>18.3f}x")


if __name__ == "__main__":
    flags.DEFINE_integer("batch", 64, "Rows decoded at once.", lower_bound=1)
    flags.DEFINE_integer("prompt", 64, "Prompt tokens.", lower_bound=2)
    flags.DEFINE_integer("max_response", 256, "Response tokens.", lower_bound=2)
    flags.DEFINE_integer("segment", 16, "Tokens of a segment.", lower_bound=1)
    flags.DEFINE_integer("repeats", 7, "Runs of each.", lower_bound=1)
    app.run(main)
