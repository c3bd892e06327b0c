"""DAPO: a higher upper clip, the mean over all tokens, and groups of equal rewards sampled again.

    python -m experiments.train --config=configs/dapo.py --workdir=runs/dapo

Source: Yu et al. 2025, https://arxiv.org/abs/2503.14476. A CPU and two minutes; ``:tiny`` is a test of seconds. The
numbers it reached beside the others are in docs/results.md.
"""

from configs.common import use_recipe
from configs.sizes import sized


def get_config(arg: str = ""):
    """The embedded task with this recipe's own defaults."""
    config = sized(arg)
    use_recipe(config, "dapo", overlong_buffer=config.sampling.max_response // 4)
    return config.lock()
