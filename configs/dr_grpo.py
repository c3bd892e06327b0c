"""Dr. GRPO: advantages without division by the deviation, a sum over tokens of fixed denominator.

    python -m experiments.train --config=configs/dr_grpo.py --workdir=runs/dr_grpo

Source: Liu et al. 2025, https://arxiv.org/abs/2503.20783. A CPU and two minutes; ``:tiny`` is a test of seconds. The
numbers it reached beside the others are in docs/results.md.
"""

from configs.common import use_recipe
from configs.sizes import sized


def get_config(arg: str = ""):
    """The embedded task with this recipe's own defaults."""
    config = sized(arg)
    use_recipe(config, "dr_grpo")
    return config.lock()
