"""GSPO: the ratio of whole sequences, clipped close to 1.

    python -m experiments.train --config=configs/gspo.py --workdir=runs/gspo

Source: Zheng et al. 2025, https://arxiv.org/abs/2507.18071. A CPU and two minutes; ``:tiny`` is a test of seconds.
The numbers it reached beside the others are in docs/results.md.
"""

from configs.common import use_recipe
from configs.sizes import sized


def get_config(arg: str = ""):
    """The embedded task with this recipe's own defaults."""
    config = sized(arg)
    use_recipe(config, "gspo")
    return config.lock()
