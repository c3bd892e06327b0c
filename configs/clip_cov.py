"""Clip-Cov: a few tokens of high covariance lose their gradient.

    python -m experiments.train --config=configs/clip_cov.py --workdir=runs/clip_cov

Source: Cui et al. 2025, https://arxiv.org/abs/2505.22617. A CPU and two minutes; ``:tiny`` is a test of seconds. The
numbers it reached beside the others are in docs/results.md.
"""

from configs.common import use_recipe
from configs.sizes import sized


def get_config(arg: str = ""):
    """The embedded task with this recipe's own defaults."""
    config = sized(arg)
    use_recipe(config, "clip_cov")
    if arg in ("", "tiny"):  # the paper's 2e-4 of some hundred thousand tokens would be one token here
        config.recipe.options.fraction = 2e-3
    return config.lock()
