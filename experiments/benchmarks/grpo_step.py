"""A whole GRPO step beside Tunix and TRL: sample, reward on the host, score with the reference policy, one update.

    python -m experiments.benchmarks.grpo_step --tunix_python=A/bin/python --torch_python=B/bin/python

Same weights, prompts, shapes (4 prompts x 4 samples, 64 + 64 tokens, k3 KL 0.04, AdamW); A and B as in
``experiments.benchmarks.sampler``, B with trl==1.16.0 besides. Nobody computes the old policy's log-probs anew: the
others take the update's own (there is one per batch), ours the sampler's (``config.batch.old_stats="sampler"``). Ours
reads a prompt once for its samples (``config.batch.share_prompts``).
"""

import os
import sys
import tempfile
from typing import Any

from absl import app, flags

from experiments.benchmarks import interleave, tiny_qwen3

PEERS = os.path.join(os.path.dirname(__file__), "peers")
PROMPTS, SAMPLES, SIZE = 4, 4, 64


def worker() -> None:
    """Times our step on request."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from entropy_rl import learner
    from entropy_rl.objectives import make_recipe
    from entropy_rl.parallel.mesh import make_mesh
    from entropy_rl.rollout import sample
    from entropy_rl.types import PromptBatch

    model, reference = tiny_qwen3.make_model()
    optimizer = learner.make_optimizer(1e-6)
    recipe = make_recipe("grpo", kl_coef=0.04)
    state = learner.init_state(jax.tree.map(jnp.copy, reference), optimizer)
    forward: dict[str, Any] = dict(max_response=SIZE, temperature=1.0, group_size=SAMPLES)
    score = learner.make_score(model, **forward)
    update = learner.make_update(model, optimizer, recipe.token_loss, reduction=recipe.reduction, **forward)
    mesh = make_mesh(devices=jax.devices()[:1])
    prepare = learner.make_prepare(recipe, mesh, group_size=SAMPLES, max_response=SIZE)
    stages = recipe.init_states()
    zeros = jnp.zeros(PROMPTS, jnp.int32)
    prompts = PromptBatch(
        tokens=jnp.asarray(tiny_qwen3.prompt_ids(PROMPTS, SIZE)),
        length=jnp.full(PROMPTS, SIZE, jnp.int32),
        ids=jnp.arange(PROMPTS, dtype=jnp.int32),
        context=zeros,
        round=zeros,
    )
    rows = jnp.arange(PROMPTS * SAMPLES)
    steps = iter(range(1 << 30))

    def run():
        nonlocal state, stages
        key = jax.random.key(next(steps))
        rollout = sample(model, state.params, prompts, key, samples_per_prompt=SAMPLES, max_response=SIZE)
        texts = [" ".join(map(str, row)) for row in np.asarray(rollout.tokens)[:, SIZE:].tolist()]
        rewards = jnp.array([float(sum(map(int, text.split())) % 7) for text in texts])
        rollout = rollout.fresh().replace(
            rewards=rewards,
            correct=rewards > 0,
            old_log_probs=rollout.raw_log_probs,
            old_entropy=rollout.entropy,
            ref_log_probs=score(reference, rollout)[0],
            loss_mask=rollout.response_mask,
        )
        rollout, stages, _ = prepare(rollout, stages, 0, key)
        state, metrics = update(state, rollout.for_update(), rows)
        return jax.device_get(metrics)

    metrics = run()
    assert metrics["grad_norm"] > 0
    run()
    interleave.serve(run, {}, own=True)


def main(argv) -> None:
    """Runs the benchmark."""
    f = flags.FLAGS
    if f.worker:
        worker()
        return
    interleave.describe_machine(["experiments.benchmarks.grpo_step", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as directory:
        weights = os.path.join(directory, "weights.npz")
        tiny_qwen3.write_weights(weights)
        module = [sys.executable, "-m", "experiments.benchmarks.grpo_step", "--worker"]
        workers = {"entropy_rl": interleave.Worker(module)}
        for name, interpreter in (("tunix", f.tunix_python), ("trl", f.torch_python)):
            if interpreter:
                script = os.path.join(PEERS, f"{name}_grpo_step.py")
                workers[name] = interleave.Worker([interpreter, script, "--weights", weights])
        seconds = interleave.interleaved(workers, f.repeats)
    title = f"GRPO step, {PROMPTS} x {SAMPLES} rows of {SIZE} + {SIZE} tokens, {f.repeats} interleaved runs"
    interleave.print_table(seconds, PROMPTS * SAMPLES * SIZE, title)
    for each in workers.values():
        each.close()


if __name__ == "__main__":
    flags.DEFINE_string("tunix_python", "", "Interpreter of an environment with Tunix.")
    flags.DEFINE_string("torch_python", "", "Interpreter of an environment with torch, transformers and TRL.")
    flags.DEFINE_integer("repeats", 9, "Runs of each.", lower_bound=1)
    flags.DEFINE_bool("worker", False, "Be a worker.")
    app.run(main)
