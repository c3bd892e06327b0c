"""Writes a run's policy as a Hugging Face directory, which transformers, vLLM and ``config.base`` open.

    python -m experiments.export --workdir=runs/mine --step=best --out=exported

Where the run started from such a directory, or ``--like`` names one of the same architecture, its config.json and
tokenizer files go along.
"""

import os

import jax
import jax.numpy as jnp
from absl import app, flags, logging

from entropy_rl.data.tasks import Chains
from entropy_rl.model import is_hf_directory, save_hf
from experiments.building import build, load_config, one_sentence
from experiments.evaluate import policy_at


def export(workdir: str, out: str, *, step: str, dtype: str | None, like: str | None = None) -> None:
    """Reads the checkpoint and writes ``out``."""
    with one_sentence():
        config = load_config(workdir)
        # A tokenizer of its own is all the model needs to know of the task, whose data may not be here.
        parts = build(config, workdir, task=Chains() if config.tokenizer.path else None)
        params, number, _ = policy_at(parts, workdir, step)
        if dtype is not None:
            params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params)
        if like is None and is_hf_directory(config.base):
            like = config.base
        if like is None and config.base and not os.path.isdir(config.base):
            raise ValueError(f"config.base={config.base} is not there; name its directory with --like")
        save_hf(parts.model.config, params, out, like=like)
    print(f"{'base policy' if step == 'base' else f'step {number}'} of {workdir} is in {os.path.abspath(out)}")
    if like is None:
        print("it has no tokenizer files: the run did not start from a Hugging Face directory, and --like names none")


def main(argv) -> None:
    """Runs the module."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    f = flags.FLAGS
    export(f.workdir, f.out, step=f.step, dtype=f.dtype, like=f.like)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "A run.", required=True)
    flags.DEFINE_string("out", None, "The directory to write; it must be empty or new.", required=True)
    flags.DEFINE_string("step", "latest", "A checkpoint's step, latest, best, or base (before training).")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of the written parameters; default the run's.")
    flags.DEFINE_string(
        "like", None, "A directory to take config.json and tokenizer files from; default the run's base."
    )
    app.run(main)
