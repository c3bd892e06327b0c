"""Rollouts on disk, one JSON line per response, with the text and entropy of every token and what was erased."""

import gzip
import json
import os
from typing import Any

import jax

from entropy_rl.data.tasks import Problem
from entropy_rl.model.tokenizer import Tokenizer
from entropy_rl.parallel.multihost import is_main, local_rows
from entropy_rl.rollout.erasing import erased_attempts
from entropy_rl.types import FRESH, REPLAYED, Rollout

_PER_TOKEN = ("entropy", "sampler_log_probs", "raw_log_probs", "old_log_probs", "advantages")


def _rounded(values: Any) -> list[float]:
    return [round(float(x), 5) for x in values]


def _segments(segments: Any, row: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Scores of a row's segments, and its erased attempts as far as they were recorded."""
    count = int(segments.count[row])
    attempts = []
    for start, first, last in erased_attempts(segments.drawn_position[row], int(segments.draws[row])):
        drawn = slice(first, last)
        attempts.append(
            {
                "start": start,
                "pieces": [tokenizer.piece(int(token)) for token in segments.drawn_tokens[row, drawn]],
                "entropy": _rounded(segments.drawn_entropy[row, drawn]),
                "raw_log_probs": _rounded(segments.drawn_log_probs[row, drawn]),
            }
        )
    return {
        "uncertainty": _rounded(segments.uncertainty[row, :count]),
        "threshold": _rounded(segments.threshold[row, :count]),
        "erasures": segments.erasures[row, :count].tolist(),
        "attempts": attempts,
    }


def save_rollouts(
    workdir: str, step: int, problems: list[Problem], rollout: Rollout, tokenizer: Tokenizer, config, *,
    texts: list[str], group_size: int, ends: Any = None,
) -> None:  # fmt: skip
    """Writes the first ``config.log.rollouts_prompts`` groups of a step to WORKDIR/rollouts.

    ``texts`` are the prompts as the policy read them; ``ends`` is the index of each token's segment [B, T], where
    responses are cut into some.
    """
    if not is_main():
        return
    names = ("tokens", "response_mask", "stopped", "context", "rewards", "correct", "origin", *_PER_TOKEN)
    arrays = {name: local_rows(getattr(rollout, name)) for name in names}
    segments = jax.tree.map(local_rows, rollout.segments)
    directory = os.path.join(workdir, "rollouts")
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, f"step_{step:06d}.jsonl.gz")
    with gzip.open(path + ".tmp", "wt", encoding="utf-8") as file:
        for row in range(min(config.log.rollouts_prompts, len(problems)) * group_size):
            if arrays["origin"][row] not in (FRESH, REPLAYED):
                continue
            problem, mask = problems[row // group_size], arrays["response_mask"][row]
            tokens = arrays["tokens"][row][mask]
            record = {
                "step": step,
                "problem": problem.id,
                "context": int(arrays["context"][row - row % group_size]),
                "sample": row % group_size,
                "prompt": texts[row // group_size],
                "answer": problem.answer,
                "reward": float(arrays["rewards"][row]),
                "correct": bool(arrays["correct"][row]),
                "replayed": bool(arrays["origin"][row] == REPLAYED),
                "stopped": bool(arrays["stopped"][row]),
                "tokens": tokens.tolist(),
                "pieces": [tokenizer.piece(int(token)) for token in tokens],
            }
            record |= {name: _rounded(arrays[name][row][mask]) for name in _PER_TOKEN}
            if segments is not None:
                record |= _segments(segments, row, tokenizer)
            if ends is not None:
                record["segment_ids"] = local_rows(ends)[row][mask].tolist()
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    os.replace(path + ".tmp", path)
