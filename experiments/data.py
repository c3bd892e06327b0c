"""What a config's task holds: counts, lengths by its tokenizer, sample rows, rows left out and why, train/test overlap.

    python -m experiments.data --config=configs/grpo.py:/models/Qwen3-0.6B --config.task.options.train=deepscaler:2,math

Lengths are in tokens of ``config.tokenizer.path``, or in characters where the config names no tokenizer. Overlap is by
runs of 13 words, signs and case aside (entropy_rl/data/overlap.py).
"""

import collections
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from entropy_rl.data.overlap import Overlap
from entropy_rl.data.tasks import Problem
from entropy_rl.verify.notation import parse_number
from experiments.building import make_task, make_tokenizer, one_sentence
from experiments.flags import parse

_MOST_GENERATED = 2048  # problems looked at of a task that generates them
_WIDTH = 40  # characters of a histogram's longest bar


def histogram(lengths: Sequence[int], limit: int | None) -> str:
    """Lengths as text: quantiles, ten bars, and how many are above ``limit``."""
    values = np.array(lengths)
    low, half, high, most = (int(np.quantile(values, q, method="inverted_cdf")) for q in (0, 0.5, 0.95, 1))
    lines = [f"    shortest {low}, median {half}, 95 % up to {high}, longest {most}"]
    if limit is not None and (above := int(np.sum(values > limit))):
        lines[0] += f"; {above} above the config's limit of {limit}"
    counts, edges = np.histogram(values, bins=10, range=(0, most + 1))
    for count, first, last in zip(counts, edges, edges[1:], strict=False):
        bar = "█" * max(round(_WIDTH * int(count) / int(counts.max())), int(count > 0))
        lines.append(f"    {int(np.ceil(first)):>6} to {int(np.ceil(last)) - 1:<6}{int(count):>8}  {bar}".rstrip())
    return "\n".join(lines)


def kind_of_answer(answer: str) -> str:
    """integer, number, text or expression."""
    number = parse_number(answer)
    if number is not None:
        return "integer" if number.denominator == 1 else "number"
    return "text" if re.fullmatch(r"(?:\\text\{)?[A-Za-z() ,.'-]+\}?", answer) else "expression"


def _one_line(text: str, most: int = 150) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def describe(
    name: str,
    problems: Sequence[Problem],
    *,
    prompt_length: Callable[[str], int],
    length: Callable[[str], int],
    unit: str,
    limit: int | None,
    samples: int,
) -> str:
    """A set's counts, lengths and first rows as text."""
    kinds = collections.Counter(kind_of_answer(problem.answer) for problem in problems)
    what = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in kinds.most_common())
    lines = [f"{name}: {len(problems)} problems; answers: {what}", f"  prompts, in {unit}:"]
    lines.append(histogram([prompt_length(problem.prompt) for problem in problems], limit))
    solutions = [length(problem.solution) for problem in problems if problem.solution]
    if solutions:
        lines += [f"  solutions ({len(solutions)} problems have one), in {unit}:", histogram(solutions, None)]
    for problem in [problems[i] for i in range(min(samples, len(problems)))]:
        lines.append(f"  [{problem.id}] {json.dumps(_one_line(problem.prompt), ensure_ascii=False)}")
        lines.append(f"      answer {json.dumps(_one_line(problem.answer), ensure_ascii=False)}")
    return "\n".join(lines)


def left_out(builder, samples: int) -> str:
    """The rows of a published set that are left out, by reason."""
    lines = []
    for reason, (count, rows) in builder.left_out().items():
        where = ", ".join(f"{file} row {number}" for file, number in rows[:samples])
        lines.append(f"  left out {count} with {reason}: {where}{', …' if count > samples else ''}")
    return "\n".join(lines) or "  no row left out"


def overlap_report(train: Sequence[str], test: Sequence[str], samples: int) -> str:
    """How many problems of two splits share a run of words, and which."""
    overlap = Overlap(test)
    pairs = [(i, match) for i, text in enumerate(train) for match in overlap.matches(text)]
    trained, tested = len({i for i, _ in pairs}), len({j for _, j in pairs})
    lines = [f"{trained} of {len(train)} training problems overlap with {tested} of {len(test)} test problems"]
    for i, j in pairs[:samples]:
        lines.append(f"  train {i}: {json.dumps(_one_line(train[i]), ensure_ascii=False)}")
        lines.append(f"  test {j}:  {json.dumps(_one_line(test[j]), ensure_ascii=False)}")
    return "\n".join(lines)


def _shares(task: Any, problems: Sequence[Problem]) -> str:
    """How many of a pass come from each set of a mixture."""
    bounds = np.cumsum([len(own) for _, own in task.parts("train")])
    counts = np.bincount([int(np.searchsorted(bounds, p.id, side="right")) for p in problems], minlength=len(bounds))
    names = [builder.set_name for builder, _ in task.parts("train")]
    return ": " + ", ".join(f"{count} of {name}" for name, count in zip(names, counts, strict=True))


def report(config, *, samples: int = 3) -> str:
    """The whole report of a config's task."""
    task: Any = make_task(config)
    if config.tokenizer.path or task.alphabet is not None:
        with tempfile.TemporaryDirectory() as nowhere:
            tokenizer = make_tokenizer(config, task, nowhere)
        length, unit = (lambda text: len(tokenizer.encode(text))), "tokens"
        prompt_length = lambda text: len(tokenizer.prompt_ids(text))  # noqa: E731
    else:
        length = prompt_length = len
        unit = "characters (the config names no tokenizer)"
    limit = config.sampling.max_prompt if unit == "tokens" else None
    common: dict[str, Any] = dict(prompt_length=prompt_length, length=length, unit=unit, limit=limit, samples=samples)
    sections, texts = [], {}
    for split in ("train", "test"):
        problems = task.problems(split)
        if hasattr(task, "parts"):
            parts = task.parts(split)
            for builder, own in parts:
                sections.append(describe(f"{builder.set_name}, {split}", own, **common))
                sections[-1] += "\n" + left_out(builder, samples)
            if split == "train":
                left = sum(len(own) for _, own in parts)
                if len(parts) > 1 or len(problems) != left:
                    sections.append(
                        f"train, as it is drawn from: {len(problems)} problems a pass{_shares(task, problems)}"
                    )
            texts[split] = [task.bare(problem) for _, own in parts for problem in own]
        else:
            if task.alphabet is not None:
                problems = problems[:_MOST_GENERATED]
                split = f"{split} (the first {len(problems)})"
            sections.append(describe(split, problems, **common))
            texts[split.partition(" ")[0]] = [problem.prompt for problem in problems]
    if task.alphabet is None:
        left_out_too = config.task.options.get("exclude_overlap", False)
        note = " (left out of training: exclude_overlap)" if left_out_too else ""
        sections.append(f"overlap{note}: " + overlap_report(texts["train"], texts["test"], samples))
    return "\n\n".join(sections)


def main(argv) -> None:
    """Runs the module."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    with one_sentence():
        print(report(flags.FLAGS.config, samples=flags.FLAGS.samples))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A file with get_config().", lock_config=True)
    flags.mark_flag_as_required("config")
    flags.DEFINE_integer("samples", 3, "Rows shown of each kind.", lower_bound=0)
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["config"])
    app.run(main, flags_parser=parse)
