"""RLOO: each response against the mean of the others, plain REINFORCE.

    python -m experiments.train --config=configs/rloo.py --workdir=runs/rloo

Source: Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740. A CPU and two minutes; ``:tiny`` is a test of seconds.
The numbers it reached beside the others are in docs/results.md.
"""

from configs.common import use_recipe
from configs.sizes import sized


def get_config(arg: str = ""):
    """The embedded task with this recipe's own defaults."""
    config = sized(arg)
    use_recipe(config, "rloo")
    return config.lock()
