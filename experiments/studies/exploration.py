"""Study 1, continued: does a slowly falling entropy pay where exploration could?

    python -m experiments.studies.exploration --seeds=3
    python -m experiments.studies.exploration --seeds=5      # not yet run

Countdown with four numbers: the base policy samples a twelfth of the problems right and finds seven in eight within 64
tries, and every problem has many solutions. GRPO's accuracy levels off after about 800 steps; each run has 2400.
"""

from typing import Any

from absl import app

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


def main(argv) -> None:
    """Runs what is missing and writes the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    grid.run_study("exploration", CELLS, config=CONFIG, base=grid.COUNTDOWN, common=COMMON, columns=grid.ACCURACY)


if __name__ == "__main__":
    grid.define_flags("runs/studies/exploration", seeds=3)
    app.run(main)
