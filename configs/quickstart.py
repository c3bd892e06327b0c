"""The embedded default: GRPO on chains of arithmetic, from noisy demonstrations, on a laptop's CPU.

    python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart

Hardware, time and the numbers it reached: docs/results.md.
"""

from configs.sizes import sized


def get_config(arg: str = ""):
    """The quickstart; ``:tiny`` is a few seconds' version of it for tests."""
    config = sized(arg)
    if not arg:
        config.batch.old_stats = "auto"  # the sampler's: the trainer's would be the same, for one more forward pass
    return config.lock()
