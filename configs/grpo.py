"""GRPO: the baseline everything here is compared with.

    python -m experiments.train --config=configs/grpo.py --workdir=runs/grpo
    python -m experiments.train --config=configs/grpo.py:qwen3_4b --workdir=/mnt/shared/grpo --multihost

Source: Shao et al. 2024, https://arxiv.org/abs/2402.03300. A CPU and two minutes; ``:tiny`` is a test of seconds.
``:qwen3_4b`` and ``:qwen3_8b`` are the baseline of https://arxiv.org/abs/2604.26326 (lr 1e-6, 1024 prompts in
minibatches of 256, G = 8, 1024 + 3072 tokens, k3 1e-3): a TPU slice of at least 16 chips with 32 GiB each; not yet
run.
"""

import functools
from typing import Any

from configs.common import use_recipe
from configs.sizes import paper, sized

SETTING: dict[str, Any] = dict(data="deepmath", prompts=1024, minibatch=256, samples=8, response=3072)


def get_config(arg: str = ""):
    """The embedded task, or the papers' setting."""
    config = sized(arg, {name: functools.partial(paper, name, **SETTING) for name in ("qwen3_4b", "qwen3_8b")})
    use_recipe(config, "grpo", kl_coef=0.0 if arg in ("", "tiny") else 1e-3)
    return config.lock()
