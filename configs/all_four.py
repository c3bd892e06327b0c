"""All four methods together: SENT orders prompts, E3RL erases, R3 replays and ranks, Entrocraft holds the band.

    python -m experiments.train --config=configs/all_four.py --workdir=runs/all_four
    python -m experiments.train --config=configs/all_four.py --workdir=runs/two --config.methods=e3rl,sent

Any subset of them by ``config.methods``. A CPU and four minutes; ``:tiny`` is a test of seconds.
"""

from configs import e3rl, entrocraft, r3
from configs.common import use_recipe
from configs.sizes import sized


def get_config(arg: str = ""):
    """The embedded task, with each method's options as in its own config."""
    config = sized(arg)
    use_recipe(config, "grpo", advantage_epsilon=1.0)  # for R3's ranking
    config.methods = "r3,e3rl,sent,entrocraft"
    own = {"entrocraft": entrocraft.get_config(arg), "e3rl": e3rl.get_config(arg), "r3": r3.get_config(arg)}
    for name, method in own.items():
        config[name] = method[name]
    config.task.options = own["r3"].task.options.to_dict()
    config.sampling.max_prompt = own["r3"].sampling.max_prompt
    return config.lock()
