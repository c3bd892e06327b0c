"""Study 4: R3 and each of its parts on prompts the base solves at most once in sixteen tries.

    python -m experiments.studies.hard_prompts --seeds=2
    python -m experiments.studies.hard_prompts --seeds=5     # not yet run

Chains of 6 to 8 steps; the base policy tries 1024 of them sixteen times each, and training sees only those it solved at
most once. Held-out problems are not filtered.
"""

from typing import Any

from absl import app

from experiments.studies import grid

LONG: dict[str, Any] = {
    "task.options.min_steps": 6,
    "task.options.max_steps": 8,
    "sampling.max_response": 56,
    "sampling.max_prompt": 80,
    "pretrain.max_length": 80,
}
RANKED: dict[str, Any] = {
    "curriculum.problems": 1024,
    "curriculum.samples": 16,
    "curriculum.max_accuracy": 1 / 16,
}
OFF: dict[str, Any] = {"r3.replays": 0, "r3.reflections": 0, "r3.max_reward": 0.0, "r3.length_bonus": 0.0}
CELLS = [
    grid.Cell("GRPO", "configs/r3.py", {"methods": ""}),
    grid.Cell("DAPO", "configs/dapo.py", {"recipe.options.overlong_buffer": 0, "recipe.options.resample_rounds": 3}),
    grid.Cell("R3", "configs/r3.py"),
    grid.Cell("replay alone", "configs/r3.py", OFF | {"r3.replays": 2}),
    grid.Cell("reflection alone", "configs/r3.py", OFF | {"r3.reflections": 4}),
    grid.Cell("ranking alone", "configs/r3.py", OFF | {"r3.max_reward": 0.5}),
]
COMMON: dict[str, Any] = {"steps": 160, "stop_at_tokens": 1_300_000, "task.options.size": 1024}


def ranking(out: str, base: str) -> dict[str, Any]:
    """Finds the hard prompts once for all cells."""
    overrides = grid.POLICY | LONG | RANKED | {"base": base, "task.options.size": 1024}
    return RANKED | {"curriculum.path": grid.make_ranking(out, "configs/r3.py", overrides)}


def _tokens_per_success(records: list[dict[str, Any]], summary: dict[str, Any]) -> float:
    """Tokens drawn in the whole run per correct response among them."""
    correct = sum(r["accuracy"] * 24 * 8 for r in records if "accuracy" in r)
    return summary["sampled_tokens"] / max(correct, 1.0)


def main(argv) -> None:
    """Runs what is missing and writes the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    columns: list[grid.Column] = [
        *grid.ACCURACY,
        ("training accuracy %", grid.average("accuracy"), 100.0, 1),
        ("groups of equal reward %", grid.average("equal_groups"), 100.0, 1),
        ("tokens per correct answer", _tokens_per_success, 1.0, 0),
    ]
    grid.run_study("hard_prompts", CELLS, base=grid.POLICY | LONG, common=COMMON, columns=columns, before=ranking)


if __name__ == "__main__":
    grid.define_flags("runs/studies/hard_prompts")
    app.run(main)
