"""Sampling benchmarks with every response kept: resumable, and scored from what was kept.

A benchmark's directory entry is NAME.jsonl, a line per response, written batch by batch; a pass that was killed goes on
after the last whole batch and ends with the same lines. Scores are computed from the lines alone.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from entropy_rl.data.batching import decode_responses
from entropy_rl.data.datasets import GradedTask
from entropy_rl.data.tasks import Problem, answer_clusters, rewards_of
from entropy_rl.evaluate import accuracy_estimates, estimate, majority_at_k
from entropy_rl.metrics import ProgressLine
from entropy_rl.model.tokenizer import Tokenizer
from entropy_rl.parallel.mesh import row_shards
from entropy_rl.parallel.multihost import gather_rows, is_main, local_rows
from entropy_rl.rollout.engine import make_sampler
from experiments.building import Parts
from experiments.evaluation import sampled_ahead


def sample_benchmark(
    parts: Parts,
    task: GradedTask,
    params: Any,
    problems: Sequence[Problem],
    path: str,
    *,
    name: str,
    samples: int,
    seed: int,
) -> None:
    """Writes what is missing of ``path``: ``samples`` responses to each problem, decoded as ``config.eval`` says.

    A line holds the problem's and the sample's number, prompt and gold answer, the response, the answer that was read,
    whether it is correct, its cluster among the problem's responses (equal answers, equal numbers; -1: no answer), its
    tokens and whether it ended by itself.
    """
    options, sampling = parts.config.eval, parts.config.sampling
    sampler = make_sampler(
        parts.model, parts.mesh, samples_per_prompt=samples, max_response=sampling.max_response,
        slots_per_device=sampling.slots_per_device, stop_tokens=parts.tokenizer.stop_ids,
        temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p,
    )  # fmt: skip
    shards = row_shards(parts.mesh)
    batch = min(options.batch, -(-len(problems) // shards) * shards)
    start = _whole_batches(path, [problem.id for problem in problems], samples, batch)
    if 0 < start < len(problems) and is_main():
        print(f"{name}: going on from problem {start} of {len(problems)}", file=sys.stderr)
    progress = ProgressLine(len(problems), first=start, every=max(1, len(problems) // 10), title=name)
    key = jax.random.key(seed)
    for _, rollout in sampled_ahead(parts, sampler, params, problems, batch, key, start):
        gathered = [gather_rows(local_rows(x)) for x in (rollout.tokens, rollout.response_mask, rollout.stopped)]
        chunk = problems[start : start + batch]
        start += len(chunk)
        correct = 0.0
        if is_main():
            lines = _lines(
                task, parts.tokenizer, chunk, *(x[: len(chunk) * samples] for x in gathered), samples=samples
            )
            with open(path, "a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
            correct = sum(line["correct"] for line in lines) / len(lines)
        progress.update(start, {"correct": f"{correct:.3f}"})
    progress.close()
    gather_rows(np.zeros(1))  # nobody reads the file before it is whole


def _lines(
    task: GradedTask, tokenizer: Tokenizer, problems: Sequence[Problem], tokens: np.ndarray, mask: np.ndarray,
    stopped: np.ndarray, *, samples: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """What is kept of each response to ``problems``, prompt-major."""
    texts = decode_responses(tokens, mask, tokenizer)
    rows = [problem for problem in problems for _ in range(samples)]
    groups = [texts[i : i + samples] for i in range(0, len(texts), samples)]
    clusters = [n for p, group in zip(problems, groups, strict=True) for n in answer_clusters(task, p, group)]
    answers = [task.grader.answer(text) for text in texts]
    rewards = rewards_of(task, rows, texts)
    return [
        {
            "problem": problem.id,
            "sample": row % samples,
            "prompt": problem.prompt,
            "gold": problem.answer,
            "response": texts[row],
            "answer": answers[row],
            "correct": int(rewards[row] >= 1.0),
            "cluster": -1 if answers[row] is None else clusters[row],
            "tokens": int(mask[row].sum()),
            "stopped": int(stopped[row]),
        }
        for row, problem in enumerate(rows)
    ]


def _whole_batches(path: str, ids: Sequence[int], samples: int, batch: int) -> int:
    """Problems whose responses ``path`` holds, in whole batches; what is behind them, or not theirs, is cut off."""
    if is_main() and os.path.exists(path):
        with open(path) as file:
            lines = file.read().splitlines(keepends=True)
        wanted = [(problem, sample) for problem in ids for sample in range(samples)]
        good = 0
        while good < min(len(lines), len(wanted)) and _place(lines[good]) == wanted[good]:
            good += 1
        done = good // samples
        done = done if done == len(ids) else done // batch * batch
        with open(path + ".tmp", "w") as file:
            file.writelines(lines[: done * samples])
        os.replace(path + ".tmp", path)
    gather_rows(np.zeros(1))
    if not os.path.exists(path):
        return 0
    with open(path) as file:
        return sum(1 for _ in file) // samples


def _place(line: str) -> tuple[int, int] | None:
    """(problem, sample) of a whole line, None for a broken one."""
    try:
        record = json.loads(line) if line.endswith("\n") else {}
        return record["problem"], record["sample"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None


def score(path: str, samples: int) -> dict[str, Any]:
    """mean@n, pass@k and maj@k (each "mean", "low", "high" over problems), mean tokens, fraction cut by the limit."""
    with open(path) as file:
        lines = [json.loads(line) for line in file]

    def column(name: str) -> np.ndarray:
        return np.array([line[name] for line in lines]).reshape(-1, samples)

    correct, clusters = column("correct"), column("cluster")
    estimates = accuracy_estimates(correct)
    for k in sorted({4, 8, 16, 32, 64, samples}):
        if 2 < k <= samples:
            estimates[f"maj@{k}"] = estimate(majority_at_k(correct, clusters, k))
    return {name: dataclasses.asdict(value) for name, value in estimates.items()} | {
        "tokens": float(np.mean(column("tokens"))),
        "truncated": float(np.mean(1 - column("stopped"))),
    }


def check_settings(settings: dict[str, Any], sets: dict[str, str], out: str) -> None:
    """Writes OUT/settings.json, where the settings and the sets' fingerprints may grow by further sets.

    Raises:
        ValueError: where OUT holds an evaluation with other settings, or responses to other problems.
    """
    path, known = os.path.join(out, "settings.json"), dict[str, str]()
    if os.path.exists(path):
        with open(path) as file:
            try:
                old = json.load(file)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} is no JSON ({error}); choose another --out") from None
        known = old.pop("sets", {})
        changed = "; ".join(f"{k}: {old.get(k)} -> {v}" for k, v in settings.items() if old.get(k) != v)
        if changed:
            raise ValueError(f"{out} holds an evaluation with other settings ({changed}); choose another --out")
    for name, fingerprint in sets.items():
        if name in known and known[name] != fingerprint:
            raise ValueError(f"{out} holds responses to other problems of {name}; choose another --out")
        if name not in known and os.path.exists(os.path.join(out, f"{name}.jsonl")):
            raise ValueError(f"{out}/{name}.jsonl is there without its settings; move it away or choose another --out")
    if is_main():
        _write(path, settings | {"sets": known | sets})


def _write(path: str, what: dict[str, Any]) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".tmp", "w") as file:
        json.dump(what, file, indent=2)
    os.replace(path + ".tmp", path)


def add_result(settings: dict[str, Any], name: str, result: dict[str, Any], out: str) -> None:
    """Puts a benchmark's scores into OUT/results.json, beside the settings and the scores that are there."""
    path, found = os.path.join(out, "results.json"), dict[str, Any]()
    if os.path.exists(path):
        with open(path) as file:
            found = json.load(file)["benchmarks"]
    found[name] = result
    _write(path, {"settings": settings, "benchmarks": {key: found[key] for key in sorted(found)}})


def fingerprint(problems: Sequence[Problem]) -> str:
    """16 hex digits of the prompts and answers."""
    text = json.dumps([[problem.prompt, problem.answer] for problem in problems])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def table(settings: dict[str, Any], results: dict[str, Any]) -> str:
    """The scores of several benchmarks, with the settings they were sampled at."""
    n = settings["num_samples"]
    columns = [name for name in (f"mean@{n}", f"pass@{n}", f"maj@{n}") if any(name in r for r in results.values())]
    decoding = f"T={settings['temperature']:g}, top_p={settings['top_p']:g}, top_k={settings['top_k'] or 'all'}"
    if settings["min_p"]:
        decoding += f", min_p={settings['min_p']:g}"
    width = max(len(name) for name in [*results, "benchmark"])
    heads = [*(f"{column:>22}" for column in columns), f"{'tokens':>9}", f"{'cut off':>9}"]
    lines = [
        settings["model"],
        f"{n} response{'s' if n > 1 else ''} a problem, {decoding}, up to {settings['max_response']} tokens, "
        f"{'chat' if settings['chat'] else 'no chat'} template, prompt {settings['template']!r}; 95 % intervals",
        f"{'benchmark':<{width}}{'problems':>10}" + "".join(heads),
    ]
    for name, found in results.items():
        values = [[100 * found[column][name] for name in ("mean", "low", "high")] for column in columns]
        cells = "".join(f"{mean:>7.1f} [{low:5.1f},{high:6.1f}]" for mean, low, high in values)
        lines.append(
            f"{name:<{width}}{found['problems']:>10}{cells}{found['tokens']:>9.0f}{100 * found['truncated']:>7.0f} %"
        )
    return "\n".join(lines)
