"""Responses graded a second, beside math-verify called directly in one process, interleaved.

    python -m experiments.benchmarks.grading --data=$ENTROPY_RL_DATA

Three loads: GSM8K solutions of OpenAI's models; the published solutions of MATH-500 graded against their own answers
and other problems'; and symbolic answers of MATH-500 against each other, where every pair needs the comparison of
expressions or is told apart by its structure. Each repeat has a new grader (nothing remembered) with started workers.
"""

import gzip
import json
import os
import random
import statistics
import sys
import time

from absl import app, flags, logging

from entropy_rl.verify import Grader
from experiments.benchmarks import interleave


def loads(data: str) -> dict[str, tuple[list[str], list[str], tuple[str, ...]]]:
    """Name -> golds, responses, and the marks to look for."""
    with gzip.open(os.path.join(data, "grader_cases", "gsm8k_model_solutions.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    with open(os.path.join(data, "math500", "test.jsonl")) as file:
        problems = [json.loads(line) for line in file]
    answers, solutions = [p["answer"] for p in problems], [p["solution"] for p in problems]
    symbolic = [answer for answer in answers if not answer.lstrip("-").isdigit()]
    rng = random.Random(0)
    pairs = [(a, f"so \\boxed{{{b}}}") for a in symbolic for b in rng.sample(symbolic, 4)]
    usual = ("boxed", "####", "answer is")
    return {
        "GSM8K": ([row["gold"] for row in rows], [row["pred"] for row in rows], ("A:",)),
        "MATH-500": (answers * 2, solutions + solutions[7:] + solutions[:7], usual),
        "MATH-500, symbolic": ([a for a, _ in pairs], [b for _, b in pairs], usual),
    }


def ours(golds: list[str], responses: list[str], marks: tuple[str, ...]) -> float:
    """Seconds of one pass."""
    with Grader(extract=marks) as grader:
        grader.grade("x+1", "\\boxed{1+x}")  # starts a worker
        grader.grade_many(["x+2", "x+3", "x+4"], ["\\boxed{2+x}", "\\boxed{3+x}", "\\boxed{4+x}"])  # and the other
        start = time.perf_counter()
        grader.grade_many(golds, responses)
        return time.perf_counter() - start


def theirs(golds: list[str], responses: list[str]) -> float:
    """Seconds of math-verify's parse and verify, with its own time limits, as its README has it."""
    import math_verify

    start = time.perf_counter()
    for gold, response in zip(golds, responses, strict=True):
        math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(response))
    return time.perf_counter() - start


def main(argv) -> None:
    """Runs the module."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    logging.set_verbosity(logging.ERROR)
    f = flags.FLAGS
    data = f.data or os.environ.get("ENTROPY_RL_DATA", "")
    if not os.path.isdir(os.path.join(data, "grader_cases")):
        sys.exit(f"error: no grader_cases in {data or 'the current directory'}; name the data with --data=DIR")
    interleave.describe_machine(["experiments.benchmarks.grading", *sys.argv[1:]])
    print(f"{'responses a second':<22}{'count':>7}{'ours':>10}{'math-verify':>13}{'ours / theirs':>15}")
    for name, (golds, responses, marks) in loads(data).items():
        few = slice(None, f.peer_rows)
        seconds: list[tuple[float, float]] = []
        for _ in range(f.repeats):
            mine = ours(golds, responses, marks) / len(golds)
            seconds.append((mine, theirs(golds[few], responses[few]) / len(golds[few])))
        ours_rate, their_rate = (1 / statistics.median(column) for column in zip(*seconds, strict=True))
        ratio = statistics.median(b / a for a, b in seconds)
        print(f"{name:<22}{len(golds):>7}{ours_rate:>10,.0f}{their_rate:>13,.0f}{ratio:>14.1f}x")


if __name__ == "__main__":
    flags.DEFINE_string("data", "", "Holds grader_cases and math500; default $ENTROPY_RL_DATA.")
    flags.DEFINE_integer("repeats", 3, "Interleaved passes.", lower_bound=1)
    flags.DEFINE_integer("peer_rows", 300, "Rows the peer grades of each load, the first ones.", lower_bound=1)
    app.run(main)
