"""A whole GRPO step beside Tunix: sample, reward on the host, score with old and reference policy, one update.

    python -m experiments.benchmarks.grpo_step --peer_python=PEER/bin/python

Same weights, prompts, shapes (4 prompts x 4 samples, 64 + 64 tokens, k3 KL 0.04, AdamW); PEER as in
``experiments.benchmarks.sampler``. Our step computes the old policy's log-probs anew, Tunix's (one update per batch)
does not.
"""

import os
import sys
import tempfile

from absl import app, flags

from experiments.benchmarks import interleave, tiny_qwen3

PEER = os.path.join(os.path.dirname(__file__), "peers", "tunix_grpo_step.py")
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
    score = learner.make_score(model, max_response=SIZE, temperature=1.0)
    update = learner.make_update(
        model, optimizer, recipe.token_loss, reduction=recipe.reduction, max_response=SIZE, temperature=1.0
    )
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
        old_log_probs, old_entropy = score(state.params, rollout)
        rollout = rollout.fresh().replace(
            rewards=rewards,
            correct=rewards > 0,
            old_log_probs=old_log_probs,
            old_entropy=old_entropy,
            ref_log_probs=score(reference, rollout)[0],
            loss_mask=rollout.response_mask,
        )
        rollout, stages, _ = prepare(rollout, stages, 0, key)
        state, metrics = update(state, rollout.for_update(), rows)
        return jax.device_get(metrics)

    metrics = run()
    assert metrics["grad_norm"] > 0
    run()
    interleave.serve(run, {})


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
        if f.peer_python:
            workers["tunix"] = interleave.Worker([f.peer_python, PEER, "--weights", weights])
        seconds = interleave.interleaved(workers, f.repeats)
    title = f"GRPO step, {PROMPTS} x {SAMPLES} rows of {SIZE} + {SIZE} tokens, {f.repeats} interleaved runs"
    interleave.print_table(seconds, PROMPTS * SAMPLES * SIZE, title)
    for each in workers.values():
        each.close()


if __name__ == "__main__":
    flags.DEFINE_string("peer_python", "", "Interpreter of an environment with Tunix.")
    flags.DEFINE_integer("repeats", 9, "Runs of each.", lower_bound=1)
    flags.DEFINE_bool("worker", False, "Be a worker.")
    app.run(main)
