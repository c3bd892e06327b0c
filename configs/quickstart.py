"""The embedded default: GRPO on chains of arithmetic, from noisy demonstrations, on a laptop's CPU.

    python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart

Hardware, time and the numbers it reached: docs/results.md.
"""

from configs.common import base_config


def get_config(arg: str = ""):
    """The quickstart; ``:tiny`` is a few seconds' version of it for tests."""
    config = base_config()
    config.task.options = dict(min_steps=3, max_steps=6, modulus=10, operators="+-*", noise=0.15, seed=0)
    config.log.rollouts_every = 40
    config.eval.every = 40
    if arg == "tiny":
        config.steps = 3
        config.optimizer.warmup_steps = 1
        config.pretrain.steps = 5
        config.pretrain.batch_size = 16
        config.pretrain.warmup_steps = 1
        config.batch.prompts, config.batch.samples = 8, 4
        config.sampling.slots_per_device = 16
        config.eval.problems, config.eval.samples, config.eval.batch, config.eval.every = 16, 2, 16, 2
        config.checkpoint.every = 1
    elif arg:
        raise ValueError(f"quickstart has no size {arg!r}; it has 'tiny' or none")
    return config.lock()
