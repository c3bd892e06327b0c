"""Study 2: what erasing finds, what it is worth per token, and what training with it teaches.

    python -m experiments.studies.erasing --seeds=2
    python -m experiments.studies.erasing --seeds=5          # not yet run

First without training: the base policy samples held-out chains under many settings of E3RL, and every first attempt of
a segment is held against the truth: did it contain the first wrong step, and was it erased? Then with training, at
equal numbers of drawn tokens, erased ones counted.
"""

import dataclasses
import os
from typing import Any

import jax
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags

from entropy_rl.data.batching import encode_prompts
from entropy_rl.methods.e3rl import Erasing, RunningUncertainty
from entropy_rl.objectives.recipe import fresh_mask
from entropy_rl.rollout import sample
from entropy_rl.rollout.erasing import erased_attempts
from experiments.building import Parts, build
from experiments.pretrain import base_params
from experiments.studies import grid

CONFIG = "configs/e3rl.py"
TOKENS = 700_000  # of a training run
PROBLEMS, SAMPLES, BATCH, WARM_UP = 512, 8, 128, 4

SETTINGS: dict[str, dict[str, Any]] = {
    "plain sampler": {"kappa": float("inf")},
    "E3RL": {},
    "kappa 0.5": {"kappa": 0.5},
    "kappa 2": {"kappa": 2.0},
    "Erase@1": {"max_erasures": 1},
    "Erase@3": {"max_erasures": 3},
    "u = entropy": {"score": "entropy"},
    "no B": {"weights": (0.0, 0.2, 0.2)},
    "no X": {"weights": (0.6, 0.0, 0.2)},
    "no D": {"weights": (0.6, 0.2, 0.0)},
    "no growth": {"growth": 0.0},
    "no phi": {"modulate": 0.0},
    "group baseline": {"baseline": "group"},
}
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "GRPO": ("configs/grpo.py", {}),
    "erase, uniform": (CONFIG, {"e3rl.credit": "uniform"}),
    "erase, attention": (CONFIG, {}),
    "erase, uniform, negative": (CONFIG, {"e3rl.credit": "uniform", "e3rl.erased_loss": "negative"}),
    "erase, attention, negative": (CONFIG, {"e3rl.erased_loss": "negative"}),
    "attention alone": (CONFIG, {"e3rl.kappa": float("inf")}),
}


@dataclasses.dataclass
class Outcome:
    """What one setting did: fractions, but for tokens.

    Attributes:
        accuracy: of sampled responses.
        tokens: drawn per response, erased ones included.
        base_rate: of first attempts that held the first wrong step.
        erased: of first attempts that were erased.
        precision: of erased first attempts, those that held it; NaN where none was erased.
        recall: of first attempts that held it, those erased.
    """

    accuracy: float
    tokens: float
    base_rate: float
    erased: float
    precision: float
    recall: float


def _first_attempts(parts: Parts, problem, response: np.ndarray, segments, row: int) -> list[tuple[bool, bool]]:
    """(held the first wrong step, was erased) of the first attempt at each segment of a row."""
    ends = np.flatnonzero([parts.tokenizer.piece(int(t)) == ";" for t in response]) + 1
    starts = [0, *[int(e) for e in ends if e < len(response)]]
    attempts: dict[int, np.ndarray] = {}
    if segments is not None:
        for start, first, last in erased_attempts(segments.drawn_position[row], int(segments.draws[row])):
            attempts.setdefault(start, segments.drawn_tokens[row, first:last])
    found = []
    for number, start in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else len(response)
        tokens = attempts.get(start, response[start:end])
        text = parts.tokenizer.decode([*response[:start].tolist(), *tokens.tolist()])
        found.append((parts.task.first_wrong_step(problem, text) == number, start in attempts))  # type: ignore[attr-defined]
    return found


def measure(parts: Parts, params: Any, options: dict[str, Any], seed: int) -> Outcome:
    """Samples held-out problems under one setting, after a few batches that only fill the running statistics."""
    size = parts.config.sampling.max_response
    delimiter = parts.tokenizer.encode(";")[0]
    # 20 draws of the response limit: no attempt goes unrecorded.
    erasing = Erasing(12, delimiters=(delimiter,), window=4, recorded_draws=20, running_rate=0.5, **options)
    running = RunningUncertainty.empty(erasing.num_segments(size))
    common = dict(samples_per_prompt=SAMPLES, max_response=size, stop_tokens=parts.tokenizer.stop_ids, slots=256)
    correct, tokens, attempts = [], 0, []
    train, test = parts.problems("train"), parts.problems("test")
    for number in range(-WARM_UP, PROBLEMS // BATCH):
        first = (number % WARM_UP if number < 0 else number) * BATCH
        problems = (train if number < 0 else test)[first : first + BATCH]
        prompts = encode_prompts(problems, parts.tokenizer, parts.config.sampling.max_prompt)
        prompts = jax.tree.map(jax.numpy.asarray, prompts)
        key = jax.random.fold_in(jax.random.key(seed), number + WARM_UP)
        rollout = sample(parts.model, params, prompts, key, erasing=erasing, running=running, **common)
        if number < 0:
            if rollout.segments is not None:
                index = np.arange(running.weight.shape[0])[None]
                seen = index < np.asarray(rollout.segments.count)[:, None]
                s = rollout.segments
                running = running.update(s.first_uncertainty, s.first_level, jax.numpy.asarray(seen), rate=0.5)
            continue
        mask = np.asarray(fresh_mask(rollout.fresh()))
        segments = jax.tree.map(np.asarray, rollout.segments)
        tokens += int(mask.sum() if segments is None else segments.draws.sum())
        for row in range(len(mask)):
            response, problem = np.asarray(rollout.tokens[row])[mask[row]], problems[row // SAMPLES]
            correct.append(parts.task.reward(problem, parts.tokenizer.decode(response.tolist())))
            attempts += _first_attempts(parts, problem, response, segments, row)
    held, erased = np.array(attempts, bool).T
    return Outcome(
        accuracy=float(np.mean(correct)),
        tokens=tokens / len(correct),
        base_rate=float(held.mean()),
        erased=float(erased.mean()),
        precision=float(held[erased].mean()) if erased.any() else float("nan"),
        recall=float(erased[held].mean()),
    )


def sampling_table(parts: Parts, params: Any, seeds: int) -> tuple[str, dict[str, list[Outcome]]]:
    """Every setting without training, as Markdown and as numbers."""
    outcomes = {name: [measure(parts, params, o, seed) for seed in range(seeds)] for name, o in SETTINGS.items()}
    lines = [
        "| setting | accuracy % | tokens per response | correct per 1000 tokens | erased % | base rate % | "
        "precision % | recall % |",
        "|---" * 8 + "|",
    ]
    for name, runs in outcomes.items():

        def column(f, scale=100.0, digits=1, runs=runs):
            return grid.shown([f(o) for o in runs], scale, digits)

        precision = "–" if np.isnan(runs[0].precision) else column(lambda o: o.precision)
        lines.append(
            f"| {name} | {column(lambda o: o.accuracy)} | {column(lambda o: o.tokens, 1.0)} | "
            f"{column(lambda o: 1000 * o.accuracy / o.tokens, 1.0)} | {column(lambda o: o.erased)} | "
            f"{column(lambda o: o.base_rate)} | {precision} | {column(lambda o: o.recall)} |"
        )
    return "\n".join(lines), outcomes


def figure(outcomes: dict[str, list[Outcome]], path: str) -> None:
    """A bar per setting: accuracy, with the tokens it cost; and precision and recall of first wrong steps."""
    mean = lambda runs, name: float(np.mean([getattr(o, name) for o in runs]))  # noqa: E731
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained", sharey=True)
    at = np.arange(len(outcomes))
    accuracy = [100 * mean(runs, "accuracy") for runs in outcomes.values()]
    colours = ["#dc2626" if name == "plain sampler" else "#2563eb" for name in outcomes]
    left.barh(at, accuracy, color=colours, height=0.7)
    plain = mean(outcomes["plain sampler"], "tokens")
    for y, x, runs in zip(at, accuracy, outcomes.values(), strict=True):
        left.annotate(f"{x:.0f} %, {mean(runs, 'tokens') / plain - 1:+.0%} tokens", (x, y), fontsize=8,
                      xytext=(4, -3), textcoords="offset points")  # fmt: skip
    left.set(xlabel="accuracy, %", title="What erasing is worth while sampling", xlim=(0, max(accuracy) * 1.3))
    left.set_yticks(at, list(outcomes))
    left.invert_yaxis()
    for name, colour, shift in (("precision", "#2563eb", -0.19), ("recall", "#93c5fd", 0.19)):
        right.barh(at + shift, [100 * mean(r, name) for r in outcomes.values()], color=colour, height=0.36, label=name)
    base = 100 * mean(outcomes["E3RL"], "base_rate")
    right.axvline(base, color="#dc2626", linewidth=1, linestyle="--", label="base rate")
    right.set(xlabel="%", title="Does it erase the first wrong step?")
    right.legend(frameon=False, fontsize=8, loc="lower right")
    for axis in (left, right):
        axis.grid(alpha=0.25, linewidth=0.6, axis="x")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def memory_line(parts: Parts, params: Any) -> str:
    """Temporaries of the compiled sampler, plain and with erasing."""
    problems = parts.problems("test")[:32]
    prompts = encode_prompts(problems, parts.tokenizer, parts.config.sampling.max_prompt)
    prompts = jax.tree.map(jax.numpy.asarray, prompts)
    size = parts.config.sampling.max_response
    mib = []
    for kappa in (float("inf"), 1.0):
        erasing = Erasing(12, kappa=kappa, window=4)
        running = RunningUncertainty.empty(erasing.num_segments(size))
        call = jax.jit(lambda p, b, k, erasing=erasing, running=running: sample(
            parts.model, p, b, k, samples_per_prompt=8, max_response=size, slots=64, erasing=erasing, running=running
        ))  # fmt: skip
        analysis: Any = call.lower(params, prompts, jax.random.key(0)).compile().memory_analysis()
        mib.append(analysis.temp_size_in_bytes / 2**20)
    plain, erasing_too = mib
    return f"Temporaries of the sampler (32 x 8 rows, 64 slots): plain {plain:.2f} MiB, erasing {erasing_too:.2f} MiB."


def main(argv) -> None:
    """Samples, trains what is missing, and writes tables and a figure."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    f = flags.FLAGS
    base = grid.make_base(f.out, "configs/quickstart.py", grid.POLICY)
    from configs import e3rl

    config = e3rl.get_config().unlock()
    config.update_from_flattened_dict(grid.POLICY | {"base": base})
    parts = build(config.lock(), os.path.join(f.out, "sampling"))
    params = base_params(parts, os.path.join(f.out, "sampling"))
    text, outcomes = sampling_table(parts, params, f.seeds)
    text = f"Without training, {PROBLEMS} held-out problems x {SAMPLES}.\n\n{text}\n\n{memory_line(parts, params)}"
    grid.write(f.out, "erasing_sampling.md", text)
    figure(outcomes, os.path.join(f.out, "erasing.png"))
    if f.sampling_only:
        return
    cells = [grid.Cell(name, config_file, overrides) for name, (config_file, overrides) in TRAINED.items()]
    common = grid.COMMON | grid.POLICY | {"base": base, "steps": 300, "stop_at_tokens": TOKENS}
    chosen = grid.run_cells(cells, f.out, seeds=f.seeds, workers=f.workers, common=common, only=f.only)
    columns: list[grid.Column] = [
        *grid.ACCURACY,
        ("erasing mean@16 %", grid.final("eval_erasing_mean@16"), 100.0, 1),
        ("erasing pass@16 %", grid.final("eval_erasing_pass@16"), 100.0, 1),
        ("erased tokens %", grid.average("erased_token_fraction"), 100.0, 1),
        ("steps", lambda _, summary: summary["steps"], 1.0, 0),
    ]
    grid.write(f.out, "erasing_training.md", grid.table(chosen, f.out, f.seeds, columns))


if __name__ == "__main__":
    grid.define_flags("runs/studies/erasing")
    flags.DEFINE_bool("sampling_only", False, "Leave the training out.")
    app.run(main)
