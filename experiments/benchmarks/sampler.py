"""Sampling speed beside Tunix and transformers: same weights, prompts and shapes, no early stop, greedy tokens equal.

    python -m experiments.benchmarks.sampler --tunix_python=A/bin/python --torch_python=B/bin/python --batch=8

A is an environment with google-tunix==0.1.7, jax==0.10.2 and transformers==5.12.1, B one with torch==2.13.0 and
transformers==5.12.1. Without either only our own sampler is timed.
"""

import os
import sys
import tempfile

import numpy as np
from absl import app, flags

from experiments.benchmarks import interleave, tiny_qwen3

PEERS = os.path.join(os.path.dirname(__file__), "peers")


def worker(batch: int, max_prompt: int, max_response: int) -> None:
    """Times our sampler on request."""
    import jax
    import jax.numpy as jnp

    from entropy_rl.rollout import sample
    from entropy_rl.types import PromptBatch

    model, params = tiny_qwen3.make_model()
    zeros = jnp.zeros(batch, jnp.int32)
    prompts = PromptBatch(
        tokens=jnp.asarray(tiny_qwen3.prompt_ids(batch, max_prompt)),
        length=jnp.full(batch, max_prompt, jnp.int32),
        ids=jnp.arange(batch, dtype=jnp.int32),
        context=zeros,
        round=zeros,
    )

    def run(seed: int, temperature: float = 1.0):
        key = jax.random.key(seed)
        return jax.device_get(sample(model, params, prompts, key, max_response=max_response, temperature=temperature))

    greedy = run(0, 0.0).tokens[:, max_prompt:]
    run(0)
    seeds = iter(range(1, 1 << 30))
    interleave.serve(lambda: run(next(seeds)), {"greedy": greedy.tolist()}, own=True)


def main(argv) -> None:
    """Runs the benchmark."""
    f = flags.FLAGS
    sizes = ["--batch", str(f.batch), "--max_prompt", str(f.max_prompt), "--max_response", str(f.max_response)]
    if f.worker:
        worker(f.batch, f.max_prompt, f.max_response)
        return
    interleave.describe_machine(["experiments.benchmarks.sampler", *sys.argv[1:]])
    module = [sys.executable, "-m", "experiments.benchmarks.sampler", "--worker"]
    with tempfile.TemporaryDirectory() as directory:
        weights = os.path.join(directory, "weights.npz")
        tiny_qwen3.write_weights(weights)
        workers = {"entropy_rl": interleave.Worker([*module, *sizes])}
        for name, interpreter in (("tunix", f.tunix_python), ("transformers", f.torch_python)):
            if not interpreter:
                continue
            script = os.path.join(PEERS, f"{name}_sampler.py")
            peer = workers[name] = interleave.Worker([interpreter, script, "--weights", weights, *sizes])
            same = np.mean(np.array(workers["entropy_rl"].ready["greedy"]) == np.array(peer.ready["greedy"]))
            print(f"greedy tokens equal: {100 * same:.2f} %; peer: {peer.ready['versions']}")
            if same < 0.99:  # not the same model: the times would mean nothing
                sys.exit(f"error: {name} does not run the same model")
        seconds = interleave.interleaved(workers, f.repeats)
    title = f"sampling, batch {f.batch}, prompt {f.max_prompt}, response {f.max_response}, {f.repeats} interleaved runs"
    interleave.print_table(seconds, f.batch * f.max_response, title)
    for each in workers.values():
        each.close()


if __name__ == "__main__":
    flags.DEFINE_string("tunix_python", "", "Interpreter of an environment with Tunix.")
    flags.DEFINE_string("torch_python", "", "Interpreter of an environment with torch and transformers.")
    flags.DEFINE_integer("batch", 8, "Rows.", lower_bound=1)
    flags.DEFINE_integer("max_prompt", 64, "Tokens.", lower_bound=2)
    flags.DEFINE_integer("max_response", 128, "Tokens.", lower_bound=1)
    flags.DEFINE_integer("repeats", 7, "Runs of each.", lower_bound=1)
    flags.DEFINE_bool("worker", False, "Be a worker.")
    app.run(main)
