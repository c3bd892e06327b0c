"""Makes a base policy by supervised learning on demonstrations.

    python -m experiments.pretrain --config=configs/quickstart.py --workdir=runs/base

``experiments.train`` does the same by itself, under WORKDIR/base, where ``config.base`` names no finished one.
"""

import os
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from entropy_rl.checkpoint import Checkpointer
from entropy_rl.data.batching import encode_demonstrations
from entropy_rl.data.streams import ProblemStream
from entropy_rl.learner import make_optimizer, make_update
from entropy_rl.metrics import MetricsWriter, ProgressLine
from entropy_rl.model import is_hf_directory, load_hf, read_hf_config
from entropy_rl.parallel.mesh import row_sharding
from entropy_rl.parallel.multihost import is_main, to_global
from entropy_rl.schedules import learning_rate_schedule
from experiments import flags
from experiments.building import (
    Parts,
    build,
    one_sentence,
    random_params,
    remember_config,
    sharded_state,
    state_shardings,
)


def imitation_loss(log_probs, entropy, rollout):
    """-log pi of every demonstrated token."""
    del entropy, rollout
    return -log_probs, {"cross_entropy": -log_probs}


def _optimizer(config):
    pre = config.pretrain
    sizes = dict(peak=pre.learning_rate, num_steps=max(pre.steps, 1), warmup_steps=pre.warmup_steps)
    try:
        rate = learning_rate_schedule("cosine", end_fraction=0.1, **sizes)
    except ValueError as error:
        raise ValueError(f"config.pretrain: {error}") from None
    return make_optimizer(rate, weight_decay=pre.weight_decay, b2=0.95)


def pretrain(parts: Parts, workdir: str) -> Any:
    """Trains to ``config.pretrain.steps`` (or goes on from where it stopped) and returns the parameters."""
    config, pre = parts.config, parts.config.pretrain
    if pre.steps == 0:
        return random_params(parts)
    os.makedirs(workdir, exist_ok=True)
    optimizer = _optimizer(config)
    state = sharded_state(parts, random_params(parts), optimizer)
    problems = parts.task.problems("train")
    stream = ProblemStream(
        problems,
        batch_size=pre.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    checkpointer = Checkpointer(os.path.join(workdir, "checkpoints"), keep=1, keep_best=0)
    first = checkpointer.latest_step() or 0
    if first:
        state, meta = checkpointer.restore(state)
        stream.restore(meta["stream"])
    if first >= pre.steps:
        checkpointer.close()
        return state.params
    update = make_update(
        parts.model,
        optimizer,
        imitation_loss,
        reduction="token_mean",
        max_response=pre.max_length - 1,
        temperature=1.0,
        num_microbatches=pre.microbatches,
        chunk_size=config.head_chunk,
        state_shardings=state_shardings(parts, optimizer),
    )
    rows = jnp.arange(pre.batch_size)
    writer = MetricsWriter(workdir, resume_step=first, tensorboard=config.log.tensorboard) if is_main() else None
    progress = ProgressLine(pre.steps, first=first, every=max(config.log.every, pre.steps // 10), title="pretrain")
    start, mesh = time.perf_counter(), parts.mesh

    def report(done, metrics):
        if int(metrics["skipped_in_a_row"]) >= config.optimizer.max_skipped_in_a_row:
            checkpointer.close()
            sys.exit(f"error: pretraining stopped at step {done}: gradients are not finite; lower its learning rate")
        values = {name: float(metrics[name]) for name in ("cross_entropy", "entropy", "grad_norm")}
        if writer is not None:
            writer.write(done, values | {"seconds": time.perf_counter() - start})
            shown = {"loss": f"{values['cross_entropy']:.3f}", "entropy": f"{values['entropy']:.3f}"}
            progress.update(done, shown)

    running = None  # the step on the devices, while this host reports the one before and encodes the next
    for step in range(first, pre.steps):
        batch = encode_demonstrations(
            stream.next_batch(),
            parts.task,
            parts.tokenizer,
            max_length=pre.max_length,
            seed=config.seed,
            learn_prompt=pre.learn_prompt,
        )
        state, metrics = update(state, to_global(batch, row_sharding(mesh)), rows)
        if running is not None:
            report(*running)
        running = (step + 1, metrics)
        if running[0] % pre.checkpoint_every == 0 or running[0] == pre.steps:
            report(*running)
            checkpointer.save(running[0], state, {"stream": stream.state()})
            running = None
    progress.close()
    checkpointer.close()
    if writer is not None:
        writer.close()
    return state.params


def check_base(parts: Parts) -> None:
    """Raises ValueError where ``config.base`` names no pretraining run, or pretraining could not run."""
    config = parts.config
    if not config.base and config.pretrain.steps:
        _optimizer(config)
        parts.task.demonstration(parts.task.problems("train")[0], config.seed)
    if is_hf_directory(config.base):
        stored, own = read_hf_config(config.base), parts.model.config
        free = ("dtype", "param_dtype", "remat")
        other = [n for n, x in vars(stored).items() if n not in free and x != getattr(own, n)]
        if other:
            stated = "; ".join(f"{n}: {getattr(own, n)}, there {getattr(stored, n)}" for n in other)
            raise ValueError(
                f"config.model is not the model of {config.base} ({stated}); name the directory behind the config "
                f"file instead: --config=FILE.py:{config.base}"
            )
    elif config.base and not os.path.isdir(os.path.join(config.base, "checkpoints")):
        raise ValueError(
            f"config.base={config.base} holds no checkpoints and is no Hugging Face directory; make one with "
            "experiments.pretrain"
        )


def base_params(parts: Parts, workdir: str) -> Any:
    """The policy training starts from: of ``config.base``, else pretrained (once) under WORKDIR/base."""
    config = parts.config
    if not config.base:
        return pretrain(parts, os.path.join(workdir, "base"))
    check_base(parts)
    if is_hf_directory(config.base):
        return load_hf(config.base, sharding=parts.param_shardings, dtype=config.model.param_dtype)[1]
    checkpointer = Checkpointer(os.path.join(config.base, "checkpoints"), keep=1, keep_best=0)
    state = sharded_state(parts, random_params(parts), _optimizer(config))
    state, _ = checkpointer.restore(state)
    checkpointer.close()
    return state.params


def main(config, workdir: str, *, allow_config_change: bool = False) -> None:
    """Runs the module."""
    with one_sentence():
        parts = build(config, workdir)
        if config.pretrain.steps < 1:
            raise ValueError("config.pretrain.steps is 0: there is nothing to train")
        remember_config(config, workdir, allow_change=allow_config_change)
    pretrain(parts, workdir)


if __name__ == "__main__":
    flags.run(main)
