"""EntroPIC: positives and negatives are weighed by a PI controller of entropy.

    python -m experiments.train --config=configs/entropic.py --workdir=runs/entropic

Source: as restated by Entrocraft, https://arxiv.org/abs/2604.26326. A CPU and two minutes; ``:tiny`` is a test of
seconds. The numbers it reached beside the others are in docs/results.md.
"""

from configs.common import use_recipe
from configs.sizes import sized


def get_config(arg: str = ""):
    """The embedded task with this recipe's own defaults."""
    config = sized(arg)
    use_recipe(config, "entropic")
    if arg in ("", "tiny"):  # the embedded base starts at .13 nats, far below the paper's .2
        config.recipe.options.target = 0.1
    return config.lock()
