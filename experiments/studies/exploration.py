"""Study 1, continued: does a slowly falling entropy pay where exploration could?

    python -m experiments.studies.exploration --seeds=3
    python -m experiments.studies.exploration --seeds=5      # not yet run

Countdown with four numbers: the base policy samples a twelfth of the problems right and finds seven in eight within 64
tries, and every problem has many solutions. GRPO's accuracy levels off after about 800 steps; each run has 2400.
"""

import os
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags

from experiments.studies import grid

CONFIG = "configs/countdown.py"
STEPS = 2400
BAND: dict[str, Any] = {
    "methods": "entrocraft",
    "entrocraft.band": "linear",
    "entrocraft.low": (0.7, 0.2),
    "entrocraft.high": (0.73, 0.23),
}
CELLS = [
    grid.Cell("GRPO", CONFIG),
    grid.Cell(
        "controlled", CONFIG,
        BAND | {"entrocraft.select": "controlled", "entrocraft.proportional": 16.0, "entrocraft.integral": 1.0},
    ),
]  # fmt: skip
COMMON: dict[str, Any] = {"steps": STEPS, "optimizer.learning_rate": 2e-4, "eval.every": 400, "eval.problems": 384}


def figure(out: str, seeds: int, path: str) -> None:
    """Entropy over the steps; held-out accuracy over the steps; and where runs pass through (mean@16, pass@16)."""
    drawn, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    for cell, colour in zip(CELLS, ("#6b7280", "#2563eb"), strict=True):
        runs = [records for _, records in grid.finished_runs(out, cell, seeds)]
        if not runs:
            continue
        entropy = np.mean([[r["trainer_entropy"] for r in run if "trainer_entropy" in r] for run in runs], axis=0)
        left.plot(np.arange(1, len(entropy) + 1), entropy, color=colour, linewidth=1.0, label=cell.name)
        evaluated = [[r for r in run if "eval_mean@16" in r] for run in runs]
        steps = [r["step"] for r in evaluated[0]]
        mean, cover = (100 * np.array([[r[f"eval_{name}"] for r in run] for run in evaluated])
                       for name in ("mean@16", "pass@16"))  # fmt: skip
        for values, style, name in ((mean, "-", "mean@16"), (cover, "--", "pass@16")):
            middle.plot(
                steps, values.mean(0), style, color=colour, marker="o", markersize=3, label=f"{cell.name}, {name}"
            )
            middle.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
        right.plot(mean.mean(0), cover.mean(0), color=colour, marker="o", markersize=4, label=cell.name)
        for x, y, step in zip(mean.mean(0), cover.mean(0), steps, strict=True):
            right.annotate(str(step), (x, y), fontsize=7, color=colour, xytext=(3, 3), textcoords="offset points")
    at = np.arange(STEPS)
    (first, last), width = BAND["entrocraft.low"], BAND["entrocraft.high"][0] - BAND["entrocraft.low"][0]
    low = first + (last - first) * at / STEPS
    left.fill_between(at, low, low + width, color="#111827", alpha=0.15, linewidth=0, label="band")
    left.set(title="Entropy, nats per token", xlabel="step")
    middle.set(title="Held-out accuracy, %", xlabel="step")
    right.set(title="Coverage against accuracy, by step", xlabel="mean@16, %", ylabel="pass@16, %")
    for axis in (left, middle, right):
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    drawn.savefig(path, dpi=120)
    plt.close(drawn)


def main(argv) -> None:
    """Runs what is missing and writes the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    grid.run_study("exploration", CELLS, config=CONFIG, base=grid.COUNTDOWN, common=COMMON, columns=grid.ACCURACY)
    f = flags.FLAGS
    figure(f.out, f.seeds, os.path.join(f.out, "exploration.png"))


if __name__ == "__main__":
    grid.define_flags("runs/studies/exploration", seeds=3)
    app.run(main)
