"""W-REINFORCE: failures are pushed down, successes up only a little.

    python -m experiments.train --config=configs/w_reinforce.py --workdir=runs/w_reinforce

Source: Zhu et al. 2025, https://arxiv.org/abs/2506.01347. A CPU and two minutes; ``:tiny`` is a test of seconds. The
numbers it reached beside the others are in docs/results.md.
"""

from configs.common import use_recipe
from configs.sizes import sized


def get_config(arg: str = ""):
    """The embedded task with this recipe's own defaults."""
    config = sized(arg)
    use_recipe(config, "w_reinforce")
    return config.lock()
