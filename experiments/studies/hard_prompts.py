"""Study 4: R3 and each of its parts on prompts the base solves at most once in sixteen tries.

    python -m experiments.studies.hard_prompts --seeds=2
    python -m experiments.studies.hard_prompts --seeds=5     # not yet run

Countdown with four numbers, of which the base policy samples a twelfth right; it tries 1024 problems sixteen times
each, and training sees only those it solved at most once. Held-out problems are not filtered.
"""

from typing import Any

from absl import app

from experiments.studies import grid

CONFIG = "configs/countdown.py"
RANKED: dict[str, Any] = {
    "curriculum.problems": 1024,
    "curriculum.samples": 16,
    "curriculum.max_accuracy": 1 / 16,
}
R3: dict[str, Any] = {
    "methods": "r3",
    "r3.max_reward": 0.5,
    "r3.reflections": 4,
    "r3.reflection_template": "{problem}{failure}?",
    "sampling.max_prompt": 40,  # a problem and a failure to reflect on
}
OFF: dict[str, Any] = R3 | {"r3.replays": 0, "r3.reflections": 0, "r3.max_reward": 0.0, "r3.length_bonus": 0.0}
DAPO: dict[str, Any] = {
    "recipe.options.clip_high": 0.28,
    "recipe.options.reduction": "token_mean",
    "recipe.options.resample_rounds": 3,
}
# Ranked failures differ by a tenth at most, and lambda = 1 keeps their group's deviation from blowing that up.
GENTLE: dict[str, Any] = {"r3.max_reward": 0.1, "recipe.options.advantage_epsilon": 1.0}
CELLS = [
    grid.Cell("GRPO", CONFIG),
    grid.Cell("DAPO", CONFIG, DAPO),
    grid.Cell("R3", CONFIG, R3),
    grid.Cell("replay alone", CONFIG, OFF | {"r3.replays": 2}),
    grid.Cell("reflection alone", CONFIG, OFF | {"r3.reflections": 4}),
    grid.Cell("ranking alone", CONFIG, OFF | {"r3.max_reward": 0.5}),
    grid.Cell("R3 without ranking", CONFIG, R3 | {"r3.max_reward": 0.0}),
    grid.Cell("gentle ranking alone", CONFIG, OFF | GENTLE),
    grid.Cell("R3 with gentle ranking", CONFIG, R3 | GENTLE),
]
COMMON: dict[str, Any] = {
    "steps": 500,
    "stop_at_tokens": 750_000,
    "task.options.size": 1024,
    "optimizer.learning_rate": 2e-4,
}


def ranking(out: str, base: str) -> dict[str, Any]:
    """Finds the hard prompts once for all cells."""
    overrides = grid.COUNTDOWN | RANKED | {"base": base, "task.options.size": 1024}
    return RANKED | {"curriculum.path": grid.make_ranking(out, CONFIG, overrides)}


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
    grid.run_study(
        "hard_prompts", CELLS, config=CONFIG, base=grid.COUNTDOWN, common=COMMON, columns=columns, before=ranking
    )


if __name__ == "__main__":
    grid.define_flags("runs/studies/hard_prompts")
    app.run(main)
