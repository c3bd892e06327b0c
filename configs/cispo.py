"""CISPO: the ratio is bounded and stopped, so that no token loses its gradient.

    python -m experiments.train --config=configs/cispo.py --workdir=runs/cispo

Source: MiniMax 2025, https://arxiv.org/abs/2506.13585. A CPU and two minutes; ``:tiny`` is a test of seconds. The
numbers it reached beside the others are in docs/results.md.
"""

from configs.common import use_recipe
from configs.sizes import sized


def get_config(arg: str = ""):
    """The embedded task with this recipe's own defaults."""
    config = sized(arg)
    use_recipe(config, "cispo")
    return config.lock()
