"""GRPO with an entropy bonus in the loss.

    python -m experiments.train --config=configs/entropy_bonus.py --workdir=runs/entropy_bonus

Source: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 9. A CPU and two minutes; ``:tiny`` is a test of
seconds. The numbers it reached beside the others are in docs/results.md.
"""

from configs.common import use_recipe
from configs.sizes import sized


def get_config(arg: str = ""):
    """The embedded task with this recipe's own defaults."""
    config = sized(arg)
    use_recipe(config, "entropy_bonus")
    return config.lock()
