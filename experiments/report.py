"""Draws curves and writes transcripts of finished or running experiments.

    python -m experiments.report --workdir=runs/quickstart
    python -m experiments.report --workdir=runs/a --workdir=runs/b --out=runs/comparison

Curves of all workdirs are overlaid (runs that differ in their seed alone become a mean with a band); transcripts are
written for each workdir that has saved rollouts (``config.log.rollouts_every``).
"""

import os

from absl import app, flags

from entropy_rl.report import group_runs, plot_curves, write_transcripts
from experiments.building import one_sentence


def report(workdirs: list[str], out: str) -> list[str]:
    """Writes everything into ``out`` and returns the paths."""
    group_runs(workdirs)  # before anything is made
    os.makedirs(out, exist_ok=True)
    written = [plot_curves(workdirs, os.path.join(out, "curves.png"))]
    for number, workdir in enumerate(workdirs, start=1):
        single = f"transcripts_{number}_{os.path.basename(os.path.normpath(workdir))}.html"
        name = "transcripts.html" if len(workdirs) == 1 else single
        page = write_transcripts(workdir, os.path.join(out, name))
        written += [page] if page else []
    return written


def main(argv) -> None:
    """Runs the module."""
    workdirs = [*flags.FLAGS.workdir, *argv[1:]]
    with one_sentence():
        if not workdirs:
            raise ValueError("name at least one --workdir")
        for path in report(workdirs, flags.FLAGS.out or workdirs[0]):
            print(path)


if __name__ == "__main__":
    flags.DEFINE_multi_string("workdir", [], "A run; may be given several times.")
    flags.DEFINE_string("out", None, "Directory for the files; default the first workdir.")
    app.run(main)
