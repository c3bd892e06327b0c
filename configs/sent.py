"""SENT: prompts from low to high semantic entropy, and a KL penalty on low-entropy tokens.

    python -m experiments.train --config=configs/sent.py --workdir=runs/sent

Source: https://arxiv.org/abs/2512.04359. On the embedded task (a CPU, three minutes) the base policy first ranks 2048
training problems. ``:r1_distill_1_5b`` is the paper's: DAPO-Math-17k, two stages, 256 prompts in minibatches of 128,
G = 8, 1024 + 2048 tokens, lr 1e-6; a TPU slice of at least 8 chips with 32 GiB each; not yet run.
"""

import functools
from typing import Any

from configs.common import use_recipe
from configs.sizes import paper, sized

SETTING: dict[str, Any] = dict(data="dapo_math", prompts=256, minibatch=128, samples=8, response=2048)


def get_config(arg: str = ""):
    """The embedded task, or the paper's setting."""
    config = sized(arg, {"r1_distill_1_5b": functools.partial(paper, "r1_distill_1_5b", **SETTING)})
    use_recipe(config, "grpo")
    config.methods = "sent"
    if arg == "r1_distill_1_5b":
        config.curriculum.problems = 17_000
    return config.lock()
