"""80/20: the policy loss only on the fifth of tokens of highest entropy.

    python -m experiments.train --config=configs/top_entropy.py --workdir=runs/top_entropy

Source: Wang et al. 2025, https://arxiv.org/abs/2506.01939. A CPU and two minutes; ``:tiny`` is a test of seconds. The
numbers it reached beside the others are in docs/results.md.
"""

from configs.common import use_recipe
from configs.sizes import sized


def get_config(arg: str = ""):
    """The embedded task with this recipe's own defaults."""
    config = sized(arg)
    use_recipe(config, "top_entropy")
    return config.lock()
