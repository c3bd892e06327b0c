"""R3: replayed responses in groups without signal, reflection on failures, and a ranking reward.

    python -m experiments.train --config=configs/r3.py --workdir=runs/r3

Source: https://arxiv.org/abs/2601.19620. On the embedded task (a CPU, three minutes) the training split is small, so
that prompts come again. ``:r1_distill_1_5b`` is the paper's: DeepScaleR-40k, G = 16 (batch, length and rate are ours:
not public); a TPU slice of at least 16 chips with 32 GiB each; not yet run.
"""

import functools
from typing import Any

from configs.common import use_recipe
from configs.sizes import paper, sized

SETTING: dict[str, Any] = dict(data="deepscaler", prompts=128, minibatch=64, samples=16, response=8192)
TEMPLATE = (
    "{problem}\nAn earlier answer was wrong:\n{failure}\nFind the mistake, solve the problem again and put the final "
    "answer in \\boxed{}.\n"
)


def get_config(arg: str = ""):
    """The embedded task, or the paper's setting."""
    config = sized(arg, {"r1_distill_1_5b": functools.partial(paper, "r1_distill_1_5b", **SETTING)})
    use_recipe(config, "grpo", advantage_epsilon=1.0)  # ranked failures stay small beside successes
    config.methods = "r3"
    if arg in ("", "tiny"):
        config.task.options = dict(config.task.options.to_dict(), size=512 if not arg else 16)
        config.sampling.max_prompt = 64  # a problem and a failure to reflect on
        config.r3.reflections, config.r3.reflection_template = 4, "{problem}{failure}?"
    else:
        config.sampling.max_prompt = 4096
        config.r3.reflections, config.r3.reflection_template = 32, TEMPLATE
        config.batch.microbatches = 30  # of 160 prompts x 18 rows: places for reflections and replays too
    return config.lock()
