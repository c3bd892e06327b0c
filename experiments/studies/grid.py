"""What the studies share: cells of a grid, run in parallel and resumed, and tables of what they reached."""

import dataclasses
import itertools
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

from entropy_rl.metrics import read_metrics

# 97.5 % quantiles of Student's t by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One line of a study's table.

    Attributes:
        name: unique in the study; also the folder of its runs.
        config: the config file, and its size.
        overrides: config keys (without "config.") and values.
    """

    name: str
    config: str
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)


def define_flags(out: str, seeds: int = 2) -> None:
    """The flags of every study."""
    flags.DEFINE_string("out", out, "Where runs, table and figures go.")
    flags.DEFINE_integer("seeds", seeds, "Seeds per cell.", lower_bound=1)
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "Runs at once, each on a core of its own.", lower_bound=1)
    flags.DEFINE_list("only", [], "Names of cells to run; default all.")


def _arguments(values: dict[str, Any]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in values.items()]


def _environment(out: str) -> dict[str, str]:
    """One thread each, and one compilation cache for all: many small runs at once beat one after another."""
    env = dict(os.environ)
    env["JAX_COMPILATION_CACHE_DIR"] = os.path.join(out, "compilation_cache")
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    return env


def _run(arguments: list[str], log: str, core: int | None, out: str) -> int:
    """The exit status of a module, its output in ``log``; on one core where that can be chosen."""

    def pin():
        if core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {core})

    os.makedirs(os.path.dirname(log), exist_ok=True)
    with open(log, "a") as file:
        return subprocess.run([sys.executable, "-m", *arguments], stdout=file, stderr=subprocess.STDOUT, check=False,
                              env=_environment(out), preexec_fn=pin).returncode  # fmt: skip


def make_base(out: str, config: str, overrides: dict[str, Any], name: str = "base") -> str:
    """A pretrained policy that all cells start from; made once."""
    workdir = os.path.join(out, name)
    arguments = ["experiments.pretrain", f"--config={config}", f"--workdir={workdir}", *_arguments(overrides)]
    status = _run(arguments, os.path.join(out, "logs", f"{name}.log"), None, out)
    if status:
        sys.exit(f"error: pretraining failed; see {os.path.join(out, 'logs', f'{name}.log')}")
    return workdir


def make_ranking(out: str, config: str, overrides: dict[str, Any]) -> str:
    """Semantic entropies and accuracies of training problems by the base policy; made once."""
    workdir, log = os.path.join(out, "ranking"), os.path.join(out, "logs", "ranking.log")
    arguments = ["experiments.rank_prompts", f"--config={config}", f"--workdir={workdir}", *_arguments(overrides)]
    if _run(arguments, log, None, out):
        sys.exit(f"error: ranking failed; see {log}")
    return os.path.join(workdir, "semantic_entropy.jsonl")


def run_cells(
    cells: Sequence[Cell], out: str, *, seeds: int, workers: int, common: dict[str, Any], only: Sequence[str] = ()
) -> list[Cell]:
    """Trains every cell with every seed, ``workers`` at once; what is finished is not run again. Returns the cells run.

    Seeds are the outer loop, so that a study that is stopped has whole seeds. A run that failed is named and left out.
    """
    names = [cell.name for cell in cells]
    if unknown := set(only) - set(names):
        sys.exit(f"error: no cell {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [cell for cell in cells if not only or cell.name in only]
    jobs: queue.Queue = queue.Queue()
    for seed, cell in itertools.product(range(seeds), chosen):
        if not os.path.exists(os.path.join(run_dir(out, cell, seed), "summary.json")):
            jobs.put((seed, cell))
    total, started, failed, ended = jobs.qsize(), time.monotonic(), [], itertools.count(1)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    def work(number: int) -> None:
        core = cores[number % len(cores)] if cores else None
        while True:
            try:
                seed, cell = jobs.get_nowait()
            except queue.Empty:
                return
            workdir = run_dir(out, cell, seed)
            values = common | {"seed": seed} | cell.overrides
            arguments = ["experiments.train", f"--config={cell.config}", f"--workdir={workdir}", *_arguments(values)]
            log = os.path.join(out, "logs", f"{cell.name}-{seed}.log")
            status = _run(arguments, log, core, out)
            if status:
                failed.append(log)
            minutes = (time.monotonic() - started) / 60
            what = "failed" if status else "done"
            print(f"{minutes:6.1f} min  {next(ended)} of {total}  {cell.name} seed {seed} {what}", flush=True)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in failed:
        print(f"failed: see {log}", file=sys.stderr)
    return chosen


def run_dir(out: str, cell: Cell, seed: int) -> str:
    """Where a cell's run with ``seed`` is."""
    return os.path.join(out, "runs", f"{cell.name}-{seed}")


def finished_runs(out: str, cell: Cell, seeds: int) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(summary, metrics) of each finished run of a cell."""
    found = []
    for seed in range(seeds):
        workdir = run_dir(out, cell, seed)
        path = os.path.join(workdir, "summary.json")
        if os.path.exists(path):
            with open(path) as file:
                found.append((json.load(file), read_metrics(os.path.join(workdir, "metrics.jsonl"))))
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of the 95 % interval over seeds by Student's t; NaN for one value)."""
    count = len(values)
    if count < 2:
        return float(np.mean(values)) if count else math.nan, math.nan
    quantile = _T.get(count - 1, 1.96)
    return float(np.mean(values)), quantile * float(np.std(values, ddof=1)) / math.sqrt(count)


def shown(values: Sequence[float], scale: float = 100.0, digits: int = 1) -> str:
    """Mean and half width, as text for a table."""
    mean, half = interval([scale * value for value in values])
    if math.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


Column = tuple[str, Callable[[list[dict[str, Any]], dict[str, Any]], float], float, int]


def final(name: str) -> Callable[[list[dict[str, Any]], dict[str, Any]], float]:
    """The last value of a metric, NaN where a run has none."""

    def value(records, summary):
        del summary
        values = [r[name] for r in records if r.get(name) is not None]
        return values[-1] if values else math.nan

    return value


def average(name: str) -> Callable[[list[dict[str, Any]], dict[str, Any]], float]:
    """The mean of a metric over the steps, NaN where a run has none."""

    def value(records, summary):
        del summary
        values = [r[name] for r in records if r.get(name) is not None]
        return float(np.mean(values)) if values else math.nan

    return value


ACCURACY: list[Column] = [
    ("mean@16 %", final("eval_mean@16"), 100.0, 1),
    ("pass@16 %", final("eval_pass@16"), 100.0, 1),
    ("greedy %", final("eval_greedy"), 100.0, 1),
    ("last entropy", final("trainer_entropy"), 1.0, 3),
]
# The studies' policy: a tenth of a million parameters, and a base that samples about a third of the chains right.
POLICY: dict[str, Any] = {
    "model.embed_dim": 64,
    "model.mlp_dim": 176,
    "model.head_dim": 16,
    "sampling.max_response": 40,
    "pretrain.steps": 345,
    "pretrain.learning_rate": 3e-3,
}
# Countdown with four numbers, for which the same policy imitates for 300 steps: it samples a twelfth of them right, and
# finds seven in eight within 64 tries.
COUNTDOWN: dict[str, Any] = {
    "model.embed_dim": 64,
    "model.mlp_dim": 176,
    "model.head_dim": 16,
    "task.options.num_numbers": 4,
    "pretrain.steps": 300,
    "pretrain.learning_rate": 3e-3,
}
# What every study changes of a config: smaller batches, one update a step, and evaluation at the end only.
COMMON: dict[str, Any] = {
    "batch.prompts": 24,
    "batch.minibatches": 1,
    "optimizer.learning_rate": 1e-4,
    "eval.every": 0,
    "eval.samples": 16,
    "eval.problems": 192,
    "checkpoint.every": 1000,
    "checkpoint.keep_best": 0,
    "checkpoint.keep": 1,
    "log.rollouts_every": 0,
    "log.tensorboard": False,
}


def table(cells: Sequence[Cell], out: str, seeds: int, columns: Sequence[Column]) -> str:
    """A Markdown table: a line per cell, a column per measure, mean ± half width of the 95 % interval over seeds."""
    lines = ["| run | seeds | " + " | ".join(c[0] for c in columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for cell in cells:
        runs = finished_runs(out, cell, seeds)
        entries = []
        for _, value, scale, digits in columns:
            values = [value(records, summary) for summary, records in runs]
            entries.append(shown([v for v in values if not math.isnan(v)], scale, digits))
        lines.append(f"| {cell.name} | {len(runs)} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def write(out: str, name: str, text: str) -> None:
    """Writes OUT/name and prints it."""
    path = os.path.join(out, name)
    with open(path, "w") as file:
        file.write(text + "\n")
    print(f"\n{text}\n\nwritten to {path}")


def curves(cells: Sequence[Cell], out: str, seeds: int, panels: Sequence[tuple[str, str]], path: str) -> None:
    """A panel per (metric, title): means over seeds against tokens drawn, a line per cell, smoothed over ten steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.2), layout="constrained", squeeze=False)
    colours = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    for axis, (metric, title) in zip(axes[0], panels, strict=True):
        for number, cell in enumerate(cells):
            series = []
            for _, records in finished_runs(out, cell, seeds):
                points = [
                    (r["sampled_tokens"], r[metric]) for r in records if r.get(metric) is not None and "reward" in r
                ]
                if len(points) > 10:
                    x, y = np.array(points, np.float64).T
                    series.append((x[9:] / 1e6, np.convolve(y, np.ones(10) / 10, "valid")))
            if series:
                size = min(len(x) for x, _ in series)
                x, y = (np.mean([pair[i][:size] for pair in series], axis=0) for i in (0, 1))
                axis.plot(x, y, label=cell.name, color=colours[number % 10], linewidth=1.3)
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axis.set_xlabel("million tokens drawn", fontsize=9)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 5) or 1, frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


PANELS = (("accuracy", "Sampled accuracy in training"), ("trainer_entropy", "Entropy, nats per token"),
          ("equal_groups", "Groups of equal rewards"))  # fmt: skip


def run_study(
    name: str, cells: Sequence[Cell], *, base: dict[str, Any], common: dict[str, Any], columns: Sequence[Column],
    config: str = "configs/quickstart.py", before: Callable[[str, str], dict[str, Any]] | None = None,
) -> None:  # fmt: skip
    """A study of one table: the base policy of ``config``, its cells, OUT/NAME.md and OUT/NAME.png.

    ``before`` gets (out, the base's workdir) and returns more config keys that all cells share.
    """
    f = flags.FLAGS
    workdir = make_base(f.out, config, base)
    shared = COMMON | base | common | {"base": workdir}
    if before is not None:
        shared |= before(f.out, workdir)
    chosen = run_cells(cells, f.out, seeds=f.seeds, workers=f.workers, common=shared, only=f.only)
    curves(chosen, f.out, f.seeds, PANELS, os.path.join(f.out, f"{name}.png"))
    write(f.out, f"{name}.md", table(chosen, f.out, f.seeds, columns))
