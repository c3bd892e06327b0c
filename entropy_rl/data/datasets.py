"""Real problems: TFDS builders for files of (problem, answer).

No TensorFlow is needed. A builder writes ArrayRecord files once; ``as_data_source`` reads them by random access.
"""

import gzip
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds
from absl import logging

from entropy_rl.data.tasks import Problem
from entropy_rl.data.templates import prompt_template
from entropy_rl.verify.grader import Grader

GSM8K_URL = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/{split}.jsonl"


def read_rows(path: str | os.PathLike) -> Iterator[tuple[int, dict]]:
    """(row number from 1, row) of a .jsonl or .parquet file, either also as .gz.

    Raises:
        ValueError: naming the file and, for a row that is no JSON object, its number.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"no data file at {path}")
    try:
        yield from _read_rows(path)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _read_rows(path: str) -> Iterator[tuple[int, dict]]:
    plain = path.removesuffix(".gz")
    if plain.endswith(".parquet"):
        import pyarrow.parquet

        with gzip.open(path) if plain != path else open(path, "rb") as file:
            try:
                table = pyarrow.parquet.read_table(file)
            except pyarrow.ArrowException as error:
                raise ValueError(f"{path} is no Parquet file: {error}") from None
        yield from enumerate(table.to_pylist(), start=1)
    elif plain.endswith((".jsonl", ".json")):
        with gzip.open(path) if plain != path else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"{path} row {number} is no JSON: {error.msg}, character {error.pos + 1}"
                    ) from None
                except UnicodeDecodeError as error:
                    raise ValueError(f"{path} row {number} is no UTF-8: {error}") from None
                if not isinstance(row, dict):
                    raise ValueError(f"{path} row {number} is a {type(row).__name__}, not an object with fields")
                yield number, row
    else:
        raise ValueError(f"{path} ends in neither .jsonl nor .parquet (or either with .gz)")


def text_field(path: str, number: int, row: dict, field: str) -> str:
    """``row[field]`` as text; ValueError names file, row and what is wrong."""
    if field not in row:
        raise ValueError(f"{path} row {number} has no field {field!r}; it has {', '.join(sorted(row))}")
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{path} row {number} field {field!r} is a {type(value).__name__}, not text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} row {number} field {field!r} is {value}, not a number")
    text = str(value).strip()
    if not text:
        raise ValueError(f"{path} row {number} field {field!r} is empty")
    return text


class ProblemFiles(tfds.core.GeneratorBasedBuilder):
    """(problem, answer) rows of any JSONL or Parquet files, in file order.

    Args:
        paths: split name -> file.
        problem_field, answer_field: names of the fields.
        solution_field: a field with a worked solution, or "".
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        paths: dict[str, str],
        problem_field: str = "problem",
        answer_field: str = "answer",
        solution_field: str = "",
        data_dir: str | None = None,
    ):
        self._paths = {split: os.path.abspath(path) for split, path in paths.items()}
        self._fields = (problem_field, answer_field, solution_field)
        stats = [(p, os.path.getmtime(p), os.path.getsize(p)) if os.path.exists(p) else p for p in self._paths.values()]
        # Prepared files are reused only while the sources and the field names stay as they are.
        digest = hashlib.sha256(json.dumps([self._paths, self._fields, stats]).encode()).hexdigest()[:16]
        config = tfds.core.BuilderConfig(name=digest, version=self.VERSION, description=", ".join(self._paths.values()))
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
        return {split: self._generate_examples(path) for split, path in self._paths.items()}

    def _generate_examples(self, path):
        number = 0
        for number, row in read_rows(path):
            yield number, self._example(path, number, row)
        if not number:
            raise ValueError(f"{path} holds no rows")

    def _example(self, path: str, number: int, row: dict) -> dict[str, str]:
        problem, answer, solution = self._fields
        return {
            "problem": text_field(path, number, row, problem),
            "answer": text_field(path, number, row, answer),
            "solution": text_field(path, number, row, solution) if solution else "",
        }


class Gsm8k(ProblemFiles):
    """GSM8K (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168): 7,473 training and 1,319 test problems.

    Args:
        directory: holds train.jsonl and test.jsonl, each also as .gz; "" downloads the published files.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, directory: str = "", data_dir: str | None = None):
        self._directory = directory
        paths = {}
        if directory:
            for split in ("train", "test"):
                choices = [os.path.join(directory, f"{split}.jsonl{ending}") for ending in ("", ".gz")]
                present = [path for path in choices if os.path.isfile(path)]
                if not present:
                    raise ValueError(f"no {split}.jsonl or {split}.jsonl.gz in {os.path.abspath(directory)}")
                paths[split] = present[0]
        super().__init__(paths=paths, problem_field="question", answer_field="answer", data_dir=data_dir)

    def _split_generators(self, dl_manager):
        if not self._paths:
            urls = {split: GSM8K_URL.format(split=split) for split in ("train", "test")}
            self._paths = {split: os.fspath(path) for split, path in dl_manager.download(urls).items()}
        return super()._split_generators(dl_manager)

    def _example(self, path, number, row):
        solution = text_field(path, number, row, "answer")
        body, mark, answer = solution.rpartition("####")
        if not mark or not body.strip() or not answer.strip():
            raise ValueError(f"{path} row {number} has no '#### answer' at the end of its solution")
        problem = text_field(path, number, row, "question")
        return {"problem": problem, "answer": answer.strip().replace(",", ""), "solution": solution}


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


class FileTask:
    """A task over prepared files: rewards are the grader's, demonstrations the files' own solutions."""

    alphabet = None

    def __init__(self, builder: ProblemFiles, *, template: str = "{problem}\n", grader: Grader | None = None):
        template = prompt_template(template)
        tfds.disable_progress_bar()
        builder.download_and_prepare()
        self._builder, self._template, self._grader = builder, template, grader or Grader()
        self._sources: dict[str, FileProblems] = {}

    def problems(self, split: str) -> FileProblems:
        """Problems of a split, in file order."""
        if split not in self._builder.info.splits:
            raise ValueError(f"there is no split {split!r}, only {', '.join(self._builder.info.splits)}")
        if split not in self._sources:
            self._sources[split] = FileProblems(self._builder.as_data_source(split=split), self._template)
        return self._sources[split]

    def reward(self, problem: Problem, response: str) -> float:
        """The grader's verdict."""
        return self._grader.grade(problem.answer, response)

    def answer_span(self, problem: Problem, response: str) -> tuple[int, int] | None:
        """Characters of the final answer the grader reads; None where it reads none."""
        del problem
        answer = self._grader.answer(response)
        at = response.rfind(answer) if answer else -1
        return None if at < 0 else (at, at + len(answer or ""))

    def same_answer(self, problem: Problem, first: str, second: str) -> bool:
        """Whether the grader takes one response's answer for the other's."""
        del problem
        answer = self._grader.answer(first)
        return bool(answer) and self._grader.grade(answer or "", second) >= 1.0

    def demonstration(self, problem: Problem, seed: int) -> str:
        """The file's solution; ValueError where it has none."""
        del seed
        if not problem.solution:
            raise ValueError(
                f"problem {problem.id} has no solution to imitate; name a solution_field or start from weights"
            )
        return problem.solution
