"""Generated problems whose answers can be checked, and the interface every task has.

A task gives random access to problems (problem i never depends on having made i - 1), a reward for a response, and
demonstrations for pretraining. Held-out problems are those whose text falls in one sixteenth of a hash: no training
problem is ever one of them.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

_HELD_OUT_PART = 16
_MAX_TRIES = 2000  # the chance that a task with many problems needs more is 1e-56


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        id: non-negative, unique within its split; part of the random streams of its samples.
        prompt: what the policy reads.
        answer: what a response is checked against.
        solution: a correct demonstration, or "" where there is none.
    """

    id: int
    prompt: str
    answer: str
    solution: str = ""


@runtime_checkable
class Task(Protocol):
    """What the experiments need of a task; any object with these attributes serves."""

    def problems(self, split: str) -> Sequence[Problem]:
        """Problems of "train" or "test", by random access."""
        ...

    def reward(self, problem: Problem, response: str) -> float:
        """1 for a correct response, 0 for a wrong one (or a user's own scale)."""
        ...

    def demonstration(self, problem: Problem, seed: int) -> str:
        """A response to imitate in pretraining."""
        ...

    # A task may also have ``answer_span(problem, response) -> (first, past-the-last character) | None``, for segment
    # credit; ``same_answer(problem, first, second) -> bool`` or, faster, ``clusters(problem, responses) -> numbers``,
    # to cluster responses by meaning; and ``rewards(problems, responses) -> list``, where many at once are faster.

    @property
    def alphabet(self) -> str | None:
        """Characters a character tokenizer needs, or None where the task needs a trained vocabulary."""
        ...


def rewards_of(task: Task, problems: Sequence[Problem], responses: Sequence[str]) -> list[float]:
    """The task's reward of each pair, all at once where the task can."""
    many = getattr(task, "rewards", None)
    if many is not None:
        return list(many(problems, responses))
    return [task.reward(problem, response) for problem, response in zip(problems, responses, strict=True)]


def check_clusters(task: Any) -> None:
    """Raises ValueError for a task that cannot tell which responses mean the same."""
    if not (hasattr(task, "clusters") or hasattr(task, "same_answer")):
        raise ValueError("this task has no same_answer(problem, first, second), so its responses cannot be clustered")


def answer_clusters(task: Any, problem: Problem, responses: Sequence[str]) -> list[int]:
    """A number per response, equal for those with the same answer; a response without one is alone.

    Raises:
        ValueError: for a task that cannot tell.
    """
    if hasattr(task, "clusters"):
        return list(task.clusters(problem, responses))
    check_clusters(task)
    ids: list[int] = []
    for number, text in enumerate(responses):
        same = (i for i in dict.fromkeys(ids) if task.same_answer(problem, responses[i], text))
        ids.append(next(same, number))
    return ids


class GeneratedProblems(Sequence[Problem]):
    """``size`` problems of a task, each generated from (seed, split, its index)."""

    def __init__(self, task, split: str, size: int):
        if split not in ("train", "test"):
            raise ValueError(f"split {split!r} is not 'train' or 'test'")
        self._task, self._split, self._size = task, split, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        index = index + self._size if index < 0 else index
        if not 0 <= index < self._size:
            raise IndexError(index)
        is_test = self._split == "test"
        rng = np.random.default_rng([self._task.seed, int(is_test), int(index)])
        for _ in range(_MAX_TRIES):
            problem = self._task.generate(rng, int(index))
            part = hashlib.sha256(problem.prompt.encode()).digest()[0] % _HELD_OUT_PART
            if (part == 0) == is_test:
                return problem
        raise ValueError(f"{self._task} has too few distinct problems to hold some out; allow longer or larger ones")


@dataclasses.dataclass(frozen=True)
class Chains:
    """Left-to-right chains of modular arithmetic, written out step by step.

    "3+4*2?" is answered by "3+4=7;7*2=4;#4" (modulus 10): operators apply strictly from left to right, each step
    starts from the last result, and the answer follows "#". One wrong step ruins the rest.

    Attributes:
        min_steps, max_steps: steps of a chain, drawn uniformly.
        modulus: results are taken modulo this; operands are below it.
        operators: any of "+-*".
        noise: in demonstrations, the chance that a step's result is replaced by a random one.
        seed: of the problems.
        size: number of training problems.
    """

    min_steps: int = 3
    max_steps: int = 6
    modulus: int = 10
    operators: str = "+-*"
    noise: float = 0.15
    seed: int = 0
    size: int = 1 << 20
    test_size: int = 4096

    def __post_init__(self):
        if not 1 <= self.min_steps <= self.max_steps:
            raise ValueError(f"chains need 1 <= min_steps <= max_steps, got {self.min_steps} and {self.max_steps}")
        if self.modulus < 2 or not self.operators or set(self.operators) - set("+-*"):
            raise ValueError(
                f"chains need modulus >= 2 and operators among + - *, got {self.modulus}, {self.operators!r}"
            )
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise={self.noise} is no probability")

    @property
    def alphabet(self) -> str:
        """Digits, operators and marks."""
        return "0123456789+-*=;#?"

    def problems(self, split: str) -> Sequence[Problem]:
        """Problems of "train" or "test"."""
        return GeneratedProblems(self, split, self.size if split == "train" else self.test_size)

    def generate(self, rng: np.random.Generator, index: int) -> Problem:
        """One random chain with its solution."""
        steps = int(rng.integers(self.min_steps, self.max_steps + 1))
        numbers = rng.integers(self.modulus, size=steps + 1)
        operators = rng.choice(list(self.operators), size=steps)
        prompt = str(numbers[0]) + "".join(f"{o}{n}" for o, n in zip(operators, numbers[1:], strict=True)) + "?"
        solution, answer = self._write_out(prompt, lambda result: result)
        return Problem(index, prompt, answer, solution)

    def demonstration(self, problem: Problem, seed: int) -> str:
        """The chain written out, each result replaced at random with chance ``noise`` and carried on from there."""
        rng = np.random.default_rng([self.seed, 2, problem.id, seed])

        def noisy(result):
            return int(rng.integers(self.modulus)) if rng.random() < self.noise else result

        return self._write_out(problem.prompt, noisy)[0]

    def _parse(self, prompt: str) -> tuple[int, list[tuple[str, int]]]:
        first, *rest = re.findall(r"[+\-*]?\d+", prompt)
        return int(first), [(step[0], int(step[1:])) for step in rest]

    def _apply(self, left: int, operator: str, right: int) -> int:
        return {"+": left + right, "-": left - right, "*": left * right}[operator] % self.modulus

    def _write_out(self, prompt: str, result_of) -> tuple[str, str]:
        value, steps = self._parse(prompt)
        written = []
        for operator, number in steps:
            result = result_of(self._apply(value, operator, number))
            written.append(f"{value}{operator}{number}={result};")
            value = result
        return "".join(written) + f"#{value}", str(value)

    def reward(self, problem: Problem, response: str) -> float:
        """1 where what follows the last "#" is the answer."""
        return float(response.rpartition("#")[2] == problem.answer and "#" in response)

    def answer_span(self, problem: Problem, response: str) -> tuple[int, int] | None:
        """Characters of the final answer; None where the response marks none."""
        del problem
        at = response.rfind("#")
        return None if at < 0 or at + 1 == len(response) else (at + 1, len(response))

    def same_answer(self, problem: Problem, first: str, second: str) -> bool:
        """Whether two responses give the same answer; responses without one never do."""
        spans = self.answer_span(problem, first), self.answer_span(problem, second)
        return None not in spans and first[slice(*spans[0])] == second[slice(*spans[1])]  # type: ignore[misc]

    def first_wrong_step(self, problem: Problem, response: str) -> int | None:
        """0-based index of the first step that is not the true chain's, None where all are right.

        A missing step counts as wrong at its index; a wrong or missing final answer counts as step ``steps``.
        """
        value, steps = self._parse(problem.prompt)
        body, mark, answer = response.rpartition("#")
        body = body if mark else response
        written = body.split(";")
        for i, (operator, number) in enumerate(steps):
            result = self._apply(value, operator, number)
            if i >= len(written) or written[i] != f"{value}{operator}{number}={result}":
                return i
            value = result
        is_complete = bool(mark) and answer == str(value) and written[len(steps) :] == [""]
        return None if is_complete else len(steps)


@dataclasses.dataclass(frozen=True)
class Countdown:
    """Reach a target from given numbers, each used once, with + - *.

    "2 3 7=13?" is answered by any expression of exactly these numbers whose value is 13, for instance "2*3+7"
    (usual precedence, brackets allowed). Many answers are right, so a policy can be right in many ways.

    Attributes:
        num_numbers: how many numbers a problem gives.
        max_number: largest of them.
        seed: of the problems.
        size: number of training problems.
    """

    num_numbers: int = 3
    max_number: int = 9
    seed: int = 0
    size: int = 1 << 20
    test_size: int = 4096

    def __post_init__(self):
        if not 2 <= self.num_numbers <= 6 or self.max_number < 1:
            raise ValueError(f"countdown needs 2 to 6 numbers of at least 1, got {self.num_numbers}, {self.max_number}")

    @property
    def alphabet(self) -> str:
        """Digits, operators, brackets and marks."""
        return "0123456789+-*()= ?"

    def problems(self, split: str) -> Sequence[Problem]:
        """Problems of "train" or "test"."""
        return GeneratedProblems(self, split, self.size if split == "train" else self.test_size)

    def generate(self, rng: np.random.Generator, index: int) -> Problem:
        """Random numbers and the value of a random bracketed expression of them, shown in sorted order."""
        while True:
            numbers = rng.integers(1, self.max_number + 1, size=self.num_numbers)
            expression = str(numbers[0])
            for number in numbers[1:]:
                operator = "+-*"[rng.integers(3)]
                expression = f"{expression}{operator}{number}"
                if rng.random() < 0.3:
                    expression = f"({expression})"
            value = evaluate_expression(expression)[0]
            if value >= 0:
                break
        shown = " ".join(str(n) for n in sorted(numbers))
        return Problem(index, f"{shown}={value}?", str(value), expression)

    def demonstration(self, problem: Problem, seed: int) -> str:
        """The expression the problem was made from."""
        del seed
        return problem.solution

    def reward(self, problem: Problem, response: str) -> float:
        """1 where the response is an expression of exactly the given numbers with the wanted value."""
        try:
            value, numbers = evaluate_expression(response)
        except ValueError:
            return 0.0
        given = sorted(int(n) for n in problem.prompt.partition("=")[0].split())
        return float(value == int(problem.answer) and sorted(numbers) == given)

    def answer_span(self, problem: Problem, response: str) -> tuple[int, int] | None:
        """All of the response: it is the answer."""
        del problem
        return (0, len(response)) if response else None

    def same_answer(self, problem: Problem, first: str, second: str) -> bool:
        """Whether two responses are expressions of the same value over the same numbers."""
        del problem
        try:
            (a, numbers_a), (b, numbers_b) = evaluate_expression(first), evaluate_expression(second)
        except ValueError:
            return False
        return a == b and sorted(numbers_a) == sorted(numbers_b)


def evaluate_expression(text: str) -> tuple[int, list[int]]:
    """Value of an integer expression of + - * and brackets, and the numbers in it, by recursive descent.

    Raises:
        ValueError: for anything else, and for expressions of more than 200 characters.
    """
    if len(text) > 200 or re.fullmatch(r"[0-9+\-*() ]+", text) is None:
        raise ValueError("no expression of digits, + - * and brackets")
    parts = re.findall(r"\d+|[+\-*()]", text)
    numbers: list[int] = []

    def atom(at):
        if at < len(parts) and parts[at] == "(":
            value, at = total(at + 1)
            if at >= len(parts) or parts[at] != ")":
                raise ValueError("a bracket is not closed")
            return value, at + 1
        if at >= len(parts) or not parts[at].isdigit():
            raise ValueError("a number is missing")
        numbers.append(int(parts[at]))
        return numbers[-1], at + 1

    def product(at):
        value, at = atom(at)
        while at < len(parts) and parts[at] == "*":
            right, at = atom(at + 1)
            value *= right
        return value, at

    def total(at):
        value, at = product(at)
        while at < len(parts) and parts[at] in "+-":
            sign = 1 if parts[at] == "+" else -1
            right, at = product(at + 1)
            value += sign * right
        return value, at

    value, at = total(0)
    if at != len(parts):
        raise ValueError("something follows the expression")
    return value, numbers
