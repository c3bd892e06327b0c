"""Writes a run's policy as a Hugging Face directory, which transformers, vLLM and ``config.base`` open.

    python -m experiments.export --workdir=runs/mine --step=best --out=exported

Where the run started from such a directory, its config.json and tokenizer files go along.
"""

import os

import jax
import jax.numpy as jnp
from absl import app, flags, logging

from entropy_rl.data.tasks import Chains
from entropy_rl.model import is_hf_directory, save_hf
from experiments.building import build, load_config, one_sentence
from experiments.evaluate import policy_at


def export(workdir: str, out: str, *, step: str, dtype: str | None) -> None:
    """Reads the checkpoint and writes ``out``."""
    with one_sentence():
        config = load_config(workdir)
        # A tokenizer of its own is all the model needs to know of the task, whose data may not be here.
        parts = build(config, workdir, task=Chains() if config.tokenizer.path else None)
        params, number, _ = policy_at(parts, workdir, step)
        if dtype is not None:
            params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params)
        like = config.base if is_hf_directory(config.base) else None
        save_hf(parts.model.config, params, out, like=like)
    print(f"{'base policy' if step == 'base' else f'step {number}'} of {workdir} is in {os.path.abspath(out)}")


def main(argv) -> None:
    """Runs the module."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    f = flags.FLAGS
    export(f.workdir, f.out, step=f.step, dtype=f.dtype)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "A run.", required=True)
    flags.DEFINE_string("out", None, "The directory to write; it must not hold weights yet.", required=True)
    flags.DEFINE_string("step", "latest", "A checkpoint's step, latest, best, or base (before training).")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of the written parameters; default the run's.")
    app.run(main)
