"""Countdown: reach a target from given numbers; many answers are right, so a policy can be right in many ways.

    python -m experiments.train --config=configs/countdown.py --workdir=runs/countdown

Hardware, time and the numbers it reached: docs/results.md.
"""

from configs.common import base_config


def get_config():
    """GRPO on three numbers up to 9, from a base that imitates one solution of each training problem."""
    config = base_config()
    config.task.name = "countdown"
    config.task.options = dict(num_numbers=3, max_number=9, seed=0, size=1 << 20)
    config.sampling.max_prompt, config.sampling.max_response = 16, 16
    config.pretrain.max_length = 32
    config.pretrain.steps = 300
    config.steps = 100
    config.eval.every = 50
    config.log.rollouts_every = 50
    return config.lock()
