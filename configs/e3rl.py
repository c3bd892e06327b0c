"""E3RL: uncertain segments are erased while generating and sampled again; credit by segment.

    python -m experiments.train --config=configs/e3rl.py --workdir=runs/e3rl

Source: https://arxiv.org/abs/2606.17735. On the embedded task (a CPU, three minutes) a segment is one step of a
chain. ``:qwen3_4b`` and ``:qwen3_8b`` are the paper's: 16 segments of 512 tokens, DeepMath; a TPU slice of at least
16 chips with 32 GiB each; not yet run.
"""

import functools
from typing import Any

from configs.common import use_recipe
from configs.sizes import paper, sized

SETTING: dict[str, Any] = dict(data="deepmath", prompts=256, minibatch=64, samples=8, response=8192)


def get_config(arg: str = ""):
    """The embedded task, or the paper's setting."""
    config = sized(arg, {name: functools.partial(paper, name, **SETTING) for name in ("qwen3_4b", "qwen3_8b")})
    use_recipe(config, "grpo")
    config.methods = "e3rl"
    if arg in ("", "tiny"):
        config.e3rl.segment_length, config.e3rl.delimiters = 12, (";",)
        config.e3rl.window = 4
    return config.lock()
