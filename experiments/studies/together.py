"""Study 5: all four methods together, against each alone and GRPO.

    python -m experiments.studies.together --seeds=2
    python -m experiments.studies.together --seeds=5         # not yet run

One config (``all_four``: lambda = 1 for all), one set of 1024 training problems; a cell is the subset of methods on.
"""

from typing import Any

from absl import app

from experiments.studies import grid

CONFIG = "configs/all_four.py"
SUBSETS = {
    "GRPO": "",
    "Entrocraft": "entrocraft",
    "E3RL": "e3rl",
    "SENT": "sent",
    "R3": "r3",
    "all four": "r3,e3rl,sent,entrocraft",
}
CELLS = [grid.Cell(name, CONFIG, {"methods": methods}) for name, methods in SUBSETS.items()]
COMMON: dict[str, Any] = {
    "steps": 200,
    "stop_at_tokens": 800_000,
    "task.options.size": 1024,
    "curriculum.problems": 1024,
    "entrocraft.num_steps": 150,
}


def ranking(out: str, base: str) -> dict[str, Any]:
    """Ranks the problems once for all cells."""
    overrides = grid.POLICY | {"base": base, "task.options.size": 1024, "curriculum.problems": 1024}
    return {"curriculum.path": grid.make_ranking(out, CONFIG, overrides)}


def main(argv) -> None:
    """Runs what is missing and writes the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    columns: list[grid.Column] = [
        *grid.ACCURACY,
        ("erasing mean@16 %", grid.final("eval_erasing_mean@16"), 100.0, 1),
        ("steps", lambda _, summary: summary["steps"], 1.0, 0),
    ]
    grid.run_study("together", CELLS, base=grid.POLICY, common=COMMON, columns=columns, before=ranking)


if __name__ == "__main__":
    grid.define_flags("runs/studies/together")
    app.run(main)
