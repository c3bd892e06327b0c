"""KL-Cov: a KL penalty to the policy before the update, on the tokens of highest covariance.

    python -m experiments.train --config=configs/kl_cov.py --workdir=runs/kl_cov

Source: Cui et al. 2025, https://arxiv.org/abs/2505.22617. A CPU and two minutes; ``:tiny`` is a test of seconds. The
numbers it reached beside the others are in docs/results.md.
"""

from configs.common import use_recipe
from configs.sizes import sized


def get_config(arg: str = ""):
    """The embedded task with this recipe's own defaults."""
    config = sized(arg)
    use_recipe(config, "kl_cov")
    if arg in ("", "tiny"):  # a hundredth of the paper's tokens: a tenth of its share would be a handful
        config.recipe.options.fraction = 2e-2
    return config.lock()
