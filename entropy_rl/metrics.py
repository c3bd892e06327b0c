"""Where a run's numbers go: a JSON line per record, TensorBoard, optionally Weights & Biases, and a live line."""

import json
import math
import os
import sys
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

WALL_CLOCK = ("seconds", "tokens_per_second", "device_memory_gib")


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Records of a metrics file, in order; a last line cut short by a crash is left out."""
    records = []
    if os.path.exists(path):
        with open(path) as file:
            for line in file:
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError:
                    break
    return records


def is_wall_clock(name: str) -> bool:
    """Whether a metric depends on the machine's speed or load rather than on seed and config."""
    return name.endswith(WALL_CLOCK)


class MetricsWriter:
    """Writes records of one run; on resuming, records past the checkpoint's step are dropped first.

    Args:
        directory: gets ``metrics.jsonl`` and ``tensorboard/``.
        resume_step: keep earlier records up to this step; None starts anew.
        tensorboard: whether to write event files.
        wandb_project: project name, or "" for none.
        config: shown by Weights & Biases.
    """

    def __init__(
        self,
        directory: str,
        *,
        resume_step: int | None = None,
        tensorboard: bool = True,
        wandb_project: str = "",
        config: dict[str, Any] | None = None,
    ):
        self.path = os.path.join(directory, "metrics.jsonl")
        kept = [] if resume_step is None else [r for r in read_metrics(self.path) if r["step"] <= resume_step]
        temporary = self.path + ".tmp"
        with open(temporary, "w") as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
        os.replace(temporary, self.path)
        self._file = open(self.path, "a")  # noqa: SIM115
        self._board = None
        if tensorboard:
            purge = None if resume_step is None else resume_step + 1
            self._board = SummaryWriter(os.path.join(directory, "tensorboard"), purge_step=purge)
        self._wandb = None
        if wandb_project:
            import wandb  # in the "wandb" extra

            self._wandb = wandb.init(project=wandb_project, dir=directory, config=config, resume="allow")

    def write(self, step: int, values: dict[str, float]) -> None:
        """One record; numbers that are not finite are written as null."""
        clean = {name: float(value) for name, value in values.items()}
        record = {name: value if math.isfinite(value) else None for name, value in clean.items()}
        self._file.write(json.dumps({"step": step} | record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in clean.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(clean, step=step)

    def close(self) -> None:
        """Flushes and closes everything."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class ProgressLine:
    """A live line on a terminal; elsewhere a plain line every ``every`` steps.

    Args:
        total: steps of the run.
        first: steps already done.
        every: steps between lines where standard error is no terminal.
        title: what is running.
    """

    def __init__(self, total: int, *, first: int = 0, every: int = 10, title: str = "train"):
        self._live = sys.stderr.isatty()
        self._every, self._title, self._total = every, title, total
        self._bar = tqdm(total=total, initial=first, desc=title, disable=not self._live, dynamic_ncols=True)

    def update(self, step: int, shown: dict[str, str]) -> None:
        """Shows ``shown`` for a finished step."""
        self._bar.update()
        text = "  ".join(f"{name} {value}" for name, value in shown.items())
        if self._live:
            self._bar.set_postfix_str(text)
        elif step % self._every == 0 or step == self._total:
            print(f"{self._title} {step}/{self._total}  {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Prints a line of its own without breaking the live one."""
        if self._live:
            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the live line."""
        self._bar.close()
