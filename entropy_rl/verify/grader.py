"""A grader for mathematical answers: extracts the final answer, then decides whether it equals the gold one.

Exact numbers, texts and the structure of an answer are compared in the calling process by bounded string work; what
needs algebra goes to ``pool``'s workers. docs/grader.md lists the conventions and where other graders differ.
"""

import collections
import re
from collections.abc import Iterable, Sequence

from entropy_rl.verify.equivalence import quick_verdict
from entropy_rl.verify.extraction import EXTRACTORS, MAX_ANSWER, boxes, extract_answer, last_boxes
from entropy_rl.verify.notation import clean, tight
from entropy_rl.verify.pool import WorkerPool
from entropy_rl.verify.structure import Undecided, take_apart, too_wild

_MOST_REMEMBERED = 20_000
_SUBSTANCE = re.compile(r"[0-9A-Za-z]|\\[a-z]+|[^\x00-\x7f]")


def gold_answer(gold: str) -> str:
    """The answer of a gold text, which may be a whole solution: its boxes, else its "####" or "answer is", else all."""
    found = boxes(gold)
    if found:
        parts = [found[-1]]
        for box in reversed(found[:-1]):  # "\\boxed{1} and \\boxed{2}" is one answer in two parts
            if parts[0][0] - box[1] > 14:
                break
            parts.insert(0, box)
        return ", ".join(dict.fromkeys(contents for _, _, contents in parts))
    _, mark, unclosed = gold.rpartition("\\boxed{")
    if mark:
        return unclosed
    return (extract_answer(gold, extract=("####", "answer is")) or gold).strip()


class Grader:
    """Grades responses against gold answers: 1.0 where the final answer is the same, else 0.0. A context manager.

    Any text gets a verdict: what cannot be read, or not within ``timeout`` seconds, is wrong. Worker processes start
    with the first answer that needs them and end with the grader.

    Args:
        num_workers: processes for what needs algebra.
        timeout: seconds for one answer, after which its worker is killed and replaced.
        extract: which marks are looked for, in order of precedence; see ``extract_answer``.
        allow_unboxed: whether the end of an unmarked response counts as its answer.

    Attributes:
        counts: how many answers were decided how: "quick" and "algebra"; or graded 0 for "no_answer", "too_wild",
            "timeout", "memory", "crash", "unfinished".

    Raises:
        ValueError: for no marks, an empty one, or numbers that are not positive.
    """

    def __init__(
        self,
        num_workers: int = 2,
        timeout: float = 3.0,
        extract: Sequence[str] = EXTRACTORS,
        allow_unboxed: bool = False,
    ):
        if (
            isinstance(extract, str)
            or not extract
            or not all(isinstance(kind, str) and kind.strip() for kind in extract)
        ):
            raise ValueError(
                f'extract={extract!r} names no marks; give a sequence such as ("boxed", "####", "answer is")'
            )
        for kind in extract:
            if kind != "boxed" and kind.isalnum():
                raise ValueError(
                    f'extract: {kind!r} is no mark; give "boxed" or a text an answer follows: "A:", "answer is"'
                )
        if num_workers < 1 or not 0 < timeout < float("inf"):
            raise ValueError(f"num_workers={num_workers} and timeout={timeout} must be positive")
        self.extract, self.allow_unboxed = tuple(extract), allow_unboxed
        self._pool = WorkerPool(num_workers, timeout=timeout)
        self._counts: collections.Counter[str] = collections.Counter()
        self._known: collections.OrderedDict[tuple[str, str], bool] = collections.OrderedDict()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()

    @property
    def counts(self) -> dict[str, int]:
        """Answers by how they were decided, since the grader was made."""
        return dict(self._counts + self._pool.counts)

    def answer(self, response: str) -> str | None:
        """The final answer as ``grade`` reads it, or None."""
        return extract_answer(response, extract=self.extract, allow_unboxed=self.allow_unboxed) or None

    def grade(self, gold: str, response: str) -> float:
        """1.0 or 0.0."""
        return self.grade_many([gold], [response])[0]

    def grade_many(self, golds: Iterable[str], responses: Iterable[str]) -> list[float]:
        """``grade`` of each pair; what needs algebra is spread over the workers.

        Raises:
            ValueError: for unequal numbers of golds and responses.
            TypeError: for anything but texts.
        """
        golds, responses = list(golds), list(responses)
        if len(golds) != len(responses):
            raise ValueError(f"there are {len(golds)} gold answers for {len(responses)} responses")
        for text in (*golds, *responses):
            if not isinstance(text, str):
                raise TypeError(f"gold answers and responses are texts, not {type(text).__name__}: {text!r}")
        candidates = [
            (gold_answer(gold), self._candidates(response)) for gold, response in zip(golds, responses, strict=True)
        ]
        verdicts = self._equal([(gold, answers[0]) for gold, answers in candidates if answers])
        grades, again = [], []
        for index, (gold, answers) in enumerate(candidates):
            grades.append(float(bool(answers) and verdicts.pop(0)))
            self._counts["no_answer"] += not answers
            if len(answers) > 1 and not grades[-1] and self._has_parts(gold):
                again.append((index, (gold, ", ".join(answers[1:]))))
        for (index, _), verdict in zip(again, self._equal([pair for _, pair in again]), strict=True):
            grades[index] = float(verdict)
        return grades

    def equal_many(self, pairs: Iterable[tuple[str, str]]) -> list[bool]:
        """Whether the two answers (not responses) of each pair are the same."""
        return self._equal([(gold_answer(first), second) for first, second in pairs])

    def clusters(self, responses: Sequence[str]) -> list[int]:
        """A number per response, equal for those with the same final answer; each without one is alone.

        A response joins the first cluster whose first member's answer it equals, as in semantic entropy (Kuhn et al.
        2023), with this grader's equivalence in place of entailment.
        """
        answers = [self.answer(response) for response in responses]
        numbers = [-1] * len(answers)
        heads: list[int] = []
        while -1 in numbers:
            head = numbers.index(-1)
            numbers[head] = len(heads)
            heads.append(head)
            rest = [i for i in range(head + 1, len(answers)) if numbers[i] < 0 and answers[i] is not None]
            if answers[head] is not None:
                pairs = [(answers[head] or "", answers[i] or "") for i in rest]
                for i, same in zip(rest, self._equal(pairs), strict=True):
                    numbers[i] = numbers[head] if same else -1
        return numbers

    def _candidates(self, response: str) -> list[str]:
        """The final answer, then, where several boxes in a row may be one answer, all of these."""
        answer = self.answer(response)
        if answer is None:
            return []
        run = last_boxes(response.rpartition("</think>")[2][-10 * MAX_ANSWER :]) if "boxed" in self.extract else []
        return [answer, *run] if len(run) > 1 and run[-1].strip() == answer else [answer]

    @staticmethod
    def _has_parts(gold: str) -> bool:
        try:
            return len(gold) <= MAX_ANSWER and take_apart(clean(gold)).kind in ("list", "set")
        except Undecided:
            return False

    def _equal(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        verdicts: list[bool | None] = [self._quick(gold, answer) for gold, answer in pairs]
        open_ = [index for index, verdict in enumerate(verdicts) if verdict is None]
        if open_:
            cleaned = {index: (clean(pairs[index][0]), clean(pairs[index][1])) for index in open_}
            wanted = list(dict.fromkeys(cleaned[index] for index in open_))
            found = dict(zip(wanted, self._pool.compare(wanted), strict=True))
            self._known |= {pair: verdict for pair, verdict in found.items() if verdict is not None}
            for index in open_:
                verdicts[index] = found[cleaned[index]]
            while len(self._known) > _MOST_REMEMBERED:
                self._known.popitem(last=False)
        return [bool(verdict) for verdict in verdicts]

    def _quick(self, gold: str, answer: str) -> bool | None:
        """A verdict without a worker, or None."""
        if len(answer) > MAX_ANSWER or len(gold) > 4 * MAX_ANSWER:
            self._counts["too_wild"] += 1
            return gold.strip() == answer.strip()
        try:
            return self._decided(clean(gold), clean(answer))
        except Exception:  # one text must not end a run; tests hold this count at 0
            self._counts["error"] += 1
            return False

    def _decided(self, gold: str, answer: str) -> bool | None:
        if not gold or not _SUBSTANCE.search(answer):
            self._counts["no_answer"] += 1
            return False
        if too_wild(answer) or too_wild(gold):
            self._counts["too_wild"] += 1
            return tight(gold) == tight(answer)
        verdict = quick_verdict(gold, answer)
        if verdict is None:
            verdict = self._known.get((gold, answer))
        self._counts["quick"] += verdict is not None
        return verdict
