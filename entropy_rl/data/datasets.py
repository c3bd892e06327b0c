"""Real problems: TFDS builders for files of (problem, answer), and tasks that grade answers to them.

No TensorFlow is needed. A builder writes ArrayRecord files once; ``as_data_source`` reads them by random access.
"""

import abc
import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from entropy_rl.data.rows import read_rows, text_field
from entropy_rl.data.tasks import Problem
from entropy_rl.data.templates import prompt_template
from entropy_rl.verify.grader import Grader


class ProblemBuilder(tfds.core.GeneratorBasedBuilder):
    """Problems, answers and solutions of some files, prepared once for as long as the files stay as they are.

    Args:
        paths: split name -> files, read in this order. Files that are still to be downloaded need not exist.
        options: what else the prepared records depend on.
        data_dir: where TFDS keeps them; None: its default.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, paths: Mapping[str, Sequence[str]], options: Any = None, data_dir: str | None = None):
        self._paths = {split: [os.path.abspath(path) for path in files] for split, files in paths.items()}
        every = [path for files in self._paths.values() for path in files]
        stats = [(p, os.path.getmtime(p), os.path.getsize(p)) if os.path.exists(p) else p for p in every]
        digest = hashlib.sha256(json.dumps([self._paths, options, stats]).encode()).hexdigest()[:16]
        config = tfds.core.BuilderConfig(name=digest, version=self.VERSION, description=", ".join(every))
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # TFDS warns of every config that is not built in
        super().__init__(file_format="array_record", data_dir=data_dir, config=config)
        logging.set_verbosity(verbosity)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"problem": text, "answer": text, "solution": text}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(split, files) for split, files in self._paths.items()}

    def _generate_examples(self, split, files):
        number = -1
        for number, example in enumerate(self.examples(split, files)):
            yield number, example
        if number < 0:
            raise ValueError(f"{', '.join(files)} holds no problems")

    @abc.abstractmethod
    def examples(self, split: str, files: Sequence[str]) -> Iterable[dict[str, str]]:
        """The "problem", "answer" and "solution" of each row of a split."""


class ProblemFiles(ProblemBuilder):
    """(problem, answer) rows of any JSON or Parquet files, in file order.

    Args:
        paths: split name -> file.
        problem_field, answer_field: names of the fields.
        solution_field: a field with a worked solution, or "".
    """

    def __init__(
        self,
        *,
        paths: Mapping[str, str],
        problem_field: str = "problem",
        answer_field: str = "answer",
        solution_field: str = "",
        data_dir: str | None = None,
    ):
        self._fields = (problem_field, answer_field, solution_field)
        files = {split: [path] for split, path in paths.items()}
        super().__init__(paths=files, options=self._fields, data_dir=data_dir)

    def examples(self, split, files):
        """Every row; a row that lacks a field ends the preparation with its number."""
        del split
        problem, answer, solution = self._fields
        for path in files:
            for number, row in read_rows(path):
                yield {
                    "problem": text_field(path, number, row, problem),
                    "answer": text_field(path, number, row, answer),
                    "solution": text_field(path, number, row, solution) if solution else "",
                }


class FileProblems(Sequence[Problem]):
    """Problems of a prepared TFDS split, prompts made by a template with a place for ``{problem}``."""

    def __init__(self, source, template: str, rows: Sequence[int] | None = None):
        self._source, self._template = source, template
        self._rows = range(len(source)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self._rows[index]
        fields = {
            name: value.decode() if isinstance(value, bytes) else value for name, value in self._source[row].items()
        }
        # Not str.format: a problem may hold braces.
        prompt = self._template.replace("{problem}", fields["problem"])
        return Problem(int(row), prompt, fields["answer"], fields["solution"])


class MixedProblems(Sequence[Problem]):
    """Several sequences of problems in given proportions; one pass holds about as many as all of them together.

    A sequence whose share is larger than its own size comes round again within a pass, one whose share is smaller gives
    a random part of its problems, always the same. Ids are unique over all sequences; copies of a problem share one.

    Args:
        problems: the sequences.
        weights: of each, positive; a sequence's share of a pass is its weight over the sum.
        seed: of which problems come more often than others.
        id_ranges: ids of each sequence lie below this; None: below its length.

    The sequences are interleaved, so that the first part of a pass has about the same shares.

    Raises:
        ValueError: for weights that are not positive, or not one a sequence.
    """

    def __init__(
        self,
        problems: Sequence[Sequence[Problem]],
        weights: Sequence[float],
        *,
        seed: int = 0,
        id_ranges: Sequence[int] | None = None,
    ):
        if len(weights) != len(problems) or not problems or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"{len(problems)} sets of problems need as many positive weights, not {list(weights)}")
        sizes = [len(own) for own in problems]
        scaled = np.array(weights, float) / max(weights)
        total, share = sum(sizes), scaled / scaled.sum()
        self._problems = problems
        ranges = list(id_ranges or sizes)
        self._offsets = [sum(ranges[:i]) for i in range(len(ranges))]
        rng = np.random.default_rng(seed)
        rows: list[tuple[float, int, int]] = []
        for index, (size, count) in enumerate(zip(sizes, np.round(share * total).astype(int), strict=True)):
            whole, rest = divmod(max(int(count), 1), size)
            part = sorted(rng.permutation(size)[:rest].tolist())
            own = [*list(range(size)) * whole, *part]
            rows += [((place + 0.5) / len(own), index, row) for place, row in enumerate(own)]
        self._rows = [(index, row) for _, index, row in sorted(rows)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        which, row = self._rows[index]
        problem = self._problems[which][row]
        return Problem(self._offsets[which] + problem.id, problem.prompt, problem.answer, problem.solution)


class GradedTask(abc.ABC):
    """A task whose answers are graded by a ``Grader``; subclasses say where the problems come from."""

    alphabet = None

    def __init__(self, grader: Grader | None = None):
        self.grader = grader or Grader()

    @abc.abstractmethod
    def problems(self, split: str) -> Sequence[Problem]:
        """Problems of "train" or "test"."""

    def reward(self, problem: Problem, response: str) -> float:
        """The grader's verdict."""
        return self.grader.grade(problem.answer, response)

    def rewards(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[float]:
        """``reward`` of each pair, spread over the grader's workers."""
        return self.grader.grade_many([problem.answer for problem in problems], responses)

    def answer_span(self, problem: Problem, response: str) -> tuple[int, int] | None:
        """Characters of the final answer the grader reads; None where it reads none."""
        del problem
        answer = self.grader.answer(response)
        at = response.rfind(answer) if answer else -1
        return None if at < 0 else (at, at + len(answer or ""))

    def clusters(self, problem: Problem, responses: Sequence[str]) -> list[int]:
        """A number per response, equal for those with the same final answer."""
        del problem
        return self.grader.clusters(responses)

    def demonstration(self, problem: Problem, seed: int) -> str:
        """The file's solution; ValueError where it has none."""
        del seed
        if not problem.solution:
            raise ValueError(
                f"problem {problem.id} has no solution to imitate; name a solution_field or start from weights"
            )
        return problem.solution


def prepared(builder: ProblemBuilder, template: str) -> dict[str, FileProblems]:
    """Problems of each of a builder's splits, in file order, prepared where they are not yet.

    TFDS says "downloading" of local files too, so it says nothing.
    """
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            builder.download_and_prepare()
        except FileExistsError:  # another process was faster; what it wrote is the same
            builder.info.read_from_directory(builder.data_dir)
    return {split: FileProblems(builder.as_data_source(split=split), template) for split in builder.info.splits}


class FileTask(GradedTask):
    """A task over a builder's splits: rewards are the grader's, demonstrations the files' own solutions."""

    def __init__(self, builder: ProblemBuilder, *, template: str = "{problem}\n", grader: Grader | None = None):
        super().__init__(grader)
        self._problems = prepared(builder, prompt_template(template))

    def problems(self, split: str) -> FileProblems:
        """Problems of a split, in file order."""
        if split not in self._problems:
            raise ValueError(f"there is no split {split!r}, only {', '.join(self._problems)}")
        return self._problems[split]
