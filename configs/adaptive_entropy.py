"""An entropy bonus whose coefficient follows a target.

    python -m experiments.train --config=configs/adaptive_entropy.py --workdir=runs/adaptive_entropy

Source: He et al. 2025, Skywork-OR1, https://arxiv.org/abs/2505.22312. A CPU and two minutes; ``:tiny`` is a test of
seconds. The numbers it reached beside the others are in docs/results.md.
"""

from configs.common import use_recipe
from configs.sizes import sized


def get_config(arg: str = ""):
    """The embedded task with this recipe's own defaults."""
    config = sized(arg)
    use_recipe(config, "adaptive_entropy")
    if arg in ("", "tiny"):  # the embedded base starts at .13 nats, far below the paper's .2
        config.recipe.options.target = 0.1
    return config.lock()
