"""Problems to arrays: right-padded prompts, and demonstrations as rows to imitate."""

from collections.abc import Sequence

import numpy as np

from entropy_rl.data.tasks import Problem, Task
from entropy_rl.model.tokenizer import Tokenizer
from entropy_rl.types import PromptBatch, Rollout


def _pad(rows: Sequence[Sequence[int]], size: int) -> np.ndarray:
    padded = np.zeros((len(rows), size), np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def encode_prompts(problems: Sequence[Problem], tokenizer: Tokenizer, max_prompt: int) -> PromptBatch:
    """A PromptBatch of NumPy arrays, [P, max_prompt]; ``round`` counts earlier copies of a problem in the batch.

    Raises:
        ValueError: for a prompt without tokens, or longer than ``max_prompt``.
    """
    rows = [tokenizer.prompt_ids(problem.prompt) for problem in problems]
    for problem, row in zip(problems, rows, strict=True):
        if not row:
            raise ValueError(f"the prompt of problem {problem.id} is empty")
        if len(row) > max_prompt:
            raise ValueError(
                f"prompt of problem {problem.id} has {len(row)} tokens, max_prompt is {max_prompt}; "
                "raise config.sampling.max_prompt"
            )
    seen: dict[int, int] = {}
    rounds = []  # a small data set may come round within one batch: its copies must not draw the same noise
    for problem in problems:
        rounds.append(seen.get(problem.id, 0))
        seen[problem.id] = rounds[-1] + 1
    return PromptBatch(
        tokens=_pad(rows, max_prompt),
        length=np.array([len(row) for row in rows], np.int32),
        ids=np.array([problem.id for problem in problems], np.int32),
        context=np.zeros(len(rows), np.int32),
        round=np.array(rounds, np.int32),
    )


def encode_demonstrations(
    problems: Sequence[Problem],
    task: Task,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    seed: int,
    learn_prompt: bool = False,
) -> Rollout:
    """Prompt and demonstration as rows of a Rollout [B, max_length], NumPy; end id included, cut at ``max_length``.

    ``prompt_length`` is 1 throughout, so that a row's every later token may be scored; the mask covers the
    demonstration and, with ``learn_prompt``, the prompt too: language modelling of whole rows.
    """
    rows, starts = [], []
    for problem in problems:
        prompt = tokenizer.prompt_ids(problem.prompt)
        response = [*tokenizer.encode(task.demonstration(problem, seed)), tokenizer.eos_id]
        rows.append((prompt + response)[:max_length])
        starts.append(1 if learn_prompt else min(len(prompt), max_length - 1))
    length = np.array([len(row) for row in rows], np.int32)
    start = np.array(starts)
    at = np.arange(max_length)[None]
    mask = (at >= start[:, None]) & (at < length[:, None])
    zeros = np.zeros((len(rows), max_length), np.float32)
    return Rollout(
        tokens=_pad(rows, max_length),
        prompt_length=np.ones(len(rows), np.int32),
        length=length,
        response_mask=mask,
        sampler_log_probs=zeros,
        raw_log_probs=zeros,
        entropy=zeros,
        stopped=np.ones(len(rows), bool),
        loss_mask=mask,
    )


def decode_responses(tokens: np.ndarray, mask: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """Text of each row's response."""
    return [tokenizer.decode(row[keep].tolist()) for row, keep in zip(tokens, mask, strict=True)]


def shorter_than(problems: Sequence[Problem], tokenizer: Tokenizer, max_prompt: int) -> list[int]:
    """Indices of the problems whose prompt has at least one and at most ``max_prompt`` tokens."""
    return [i for i in range(len(problems)) if 1 <= len(tokenizer.prompt_ids(problems[i].prompt)) <= max_prompt]


def span_of_tokens(tokens: Sequence[int], span: tuple[int, int], tokenizer: Tokenizer) -> tuple[int, int]:
    """(first token, past the last token) of the characters ``span`` of the decoded text; decodes O(log T) prefixes."""

    def tokens_before(characters: int) -> int:
        low, high = 0, len(tokens)
        while low < high:  # the largest number of tokens whose text does not reach past ``characters``
            middle = (low + high + 1) // 2
            if len(tokenizer.decode(list(tokens[:middle]))) <= characters:
                low = middle
            else:
                high = middle - 1
        return low

    first = tokens_before(span[0])
    return first, max(tokens_before(span[1]), first)
