"""Study 3: SENT and its halves beside GRPO and the covariance methods.

    python -m experiments.studies.curriculum --seeds=2
    python -m experiments.studies.curriculum --seeds=5       # not yet run

The base policy ranks 2048 problems once; every cell then trains on equal numbers of drawn tokens.
"""

from typing import Any

from absl import app

from experiments.studies import grid

NO_KL = {"sent.beta_low": 0.0, "sent.beta_high": 0.0}
CELLS = [
    grid.Cell("GRPO", "configs/grpo.py"),
    grid.Cell("SENT", "configs/sent.py"),
    grid.Cell("curriculum alone", "configs/sent.py", NO_KL),
    grid.Cell("token KL alone", "configs/sent.py", {"sent.stages": 1}),
    grid.Cell(
        "SENT, released", "configs/sent.py", {"sent.variant": "released", "recipe.options.policy_loss": "unclipped"}
    ),
    grid.Cell("Clip-Cov", "configs/clip_cov.py"),
    grid.Cell("KL-Cov", "configs/kl_cov.py"),
]
COMMON: dict[str, Any] = {"steps": 160, "stop_at_tokens": 900_000}


def ranking(out: str, base: str) -> dict[str, Any]:
    """Ranks the problems once for all cells."""
    overrides = grid.POLICY | {"base": base}
    return {"curriculum.path": grid.make_ranking(out, "configs/sent.py", overrides)}


def main(argv) -> None:
    """Runs what is missing and writes the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    columns = [*grid.ACCURACY, ("KL to base, nats", grid.final("kl_ref"), 1.0, 3)]
    grid.run_study("curriculum", CELLS, base=grid.POLICY, common=COMMON, columns=columns, before=ranking)


if __name__ == "__main__":
    grid.define_flags("runs/studies/curriculum")
    app.run(main)
