"""Rollouts on disk, one JSON line per response, with the text and entropy of every token."""

import gzip
import json
import os

from entropy_rl.data.tasks import Problem
from entropy_rl.model.tokenizer import Tokenizer
from entropy_rl.parallel.multihost import is_main, local_rows
from entropy_rl.types import Rollout

_ARRAYS = (
    "tokens",
    "response_mask",
    "stopped",
    "entropy",
    "sampler_log_probs",
    "raw_log_probs",
    "old_log_probs",
    "rewards",
)


def save_rollouts(
    workdir: str, step: int, problems: list[Problem], rollout: Rollout, tokenizer: Tokenizer, config
) -> None:
    """Writes the first ``config.log.rollouts_prompts`` groups of a step to WORKDIR/rollouts."""
    if not is_main():
        return
    arrays = {name: local_rows(getattr(rollout, name)) for name in _ARRAYS}
    directory = os.path.join(workdir, "rollouts")
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, f"step_{step:06d}.jsonl.gz")
    with gzip.open(path + ".tmp", "wt", encoding="utf-8") as file:
        samples = config.batch.samples
        for row in range(min(config.log.rollouts_prompts, len(problems)) * samples):
            problem, mask = problems[row // samples], arrays["response_mask"][row]
            tokens = arrays["tokens"][row][mask]
            per_token = {
                name: [round(float(x), 5) for x in arrays[name][row][mask]]
                for name in ("entropy", "sampler_log_probs", "raw_log_probs", "old_log_probs")
            }
            record = {
                "step": step,
                "problem": problem.id,
                "sample": row % samples,
                "prompt": problem.prompt,
                "answer": problem.answer,
                "reward": float(arrays["rewards"][row]),
                "stopped": bool(arrays["stopped"][row]),
                "tokens": tokens.tolist(),
                "pieces": [tokenizer.piece(int(token)) for token in tokens],
            }
            file.write(json.dumps(record | per_token, ensure_ascii=False) + "\n")
    os.replace(path + ".tmp", path)
