"""The published sets of mathematical problems, by name: where files are, which field holds what, what is left out.

    MathSetFiles("deepscaler", "train", directory="/data")  # reads /data/deepscaler/*.json

A set is found under ``directory`` in a folder of its name, in any of the formats it is published in; without one it is
downloaded. Rows without a usable problem or answer, and repeated ones, are left out, each with a reason.
"""

import dataclasses
import glob
import json
import math
import os
import re
import socket
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from entropy_rl.data.datasets import ProblemBuilder
from entropy_rl.data.rows import read_rows, writable
from entropy_rl.verify.extraction import MAX_ANSWER, boxes

_QWEN = "https://raw.githubusercontent.com/QwenLM/Qwen2.5-Math/main/evaluation/data"
_HUB = "https://huggingface.co/datasets"


class Rejected(Exception):
    """A row that is left out; its argument says why."""


def _text(row: Mapping[str, Any], fields: Sequence[str]) -> str:
    """The first of ``fields`` a row has, as text; "" where it has none. 27.0 is 27."""
    for field in fields:
        value = row.get(field)
        if isinstance(value, float):
            value = int(value) if value.is_integer() else value if math.isfinite(value) else None
        if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
    return ""


@dataclasses.dataclass(frozen=True)
class MathSet:
    """A published set.

    Attributes:
        source: paper or page.
        splits: the files' splits; a set has "train", "test" or both.
        urls: split -> published files; a set without any needs a directory.
        problem, answer, solution: names its fields have in the formats it is published in; the first present counts.
        folders: other names its folder may have.
        read: row -> (problem, answer, solution) for a set that needs more than field names.
    """

    source: str
    splits: tuple[str, ...] = ("train",)
    urls: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    problem: tuple[str, ...] = ("problem", "question", "Problem", "Question")
    answer: tuple[str, ...] = ("answer", "expected_answer", "final_answer", "Answer")
    solution: tuple[str, ...] = ("solution", "reference_solution", "Solution")
    folders: tuple[str, ...] = ()
    read: Callable[["MathSet", Mapping[str, Any]], tuple[str, str, str]] | None = None

    def example(self, row: Mapping[str, Any]) -> dict[str, str]:
        """The row's "problem", "answer" and "solution".

        Raises:
            Rejected: with the reason it is left out.
        """
        problem, answer, solution = (self.read or _plain)(self, row)
        if not all(map(writable, (problem, answer, solution))):
            raise Rejected("half a surrogate pair, which is no text")
        if not problem:
            raise Rejected("no problem")
        if not answer:
            raise Rejected("no answer")
        if len(answer) > MAX_ANSWER:
            raise Rejected(f"an answer of more than {MAX_ANSWER} characters")
        return {"problem": problem, "answer": answer, "solution": solution}


def _plain(own: MathSet, row: Mapping[str, Any]) -> tuple[str, str, str]:
    """By field names; an answer that is not stated is the solution's last box."""
    solution = _text(row, own.solution)
    answer = _text(row, own.answer)
    if not answer and (found := boxes(solution)):
        answer = found[-1][2].strip()
    elif not answer and (bare := re.findall(r"\\boxed\s+([^\s${}]+)", solution)):
        answer = bare[-1].rstrip(".,")
    return _text(row, own.problem), answer, solution


def _gsm8k(own: MathSet, row: Mapping[str, Any]) -> tuple[str, str, str]:
    solution = _text(row, ("answer",))
    _, mark, answer = solution.rpartition("####")
    if not mark:
        raise Rejected("no '#### answer' at the end of its solution")
    return _text(row, own.problem), answer.strip().replace(",", ""), solution


_DAPO_BEFORE = re.compile(r"Solve the following math problem step by step\..*?\n\n", re.S)
_DAPO_AFTER = re.compile(r"\s*Remember to put your answer on its own line after \"Answer:\"\.\s*$")


def _dapo(own: MathSet, row: Mapping[str, Any]) -> tuple[str, str, str]:
    """The published rows wrap the problem in a prompt, {"role", "content"}; the processed ones hold the bare text."""
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        problem = "\n".join(str(message.get("content", "")) for message in prompt if isinstance(message, Mapping))
        model = row.get("reward_model")
        answer = _text(model, ("ground_truth",)) if isinstance(model, Mapping) else ""
    else:
        problem, answer = _text(row, ("prompt", *own.problem)), _text(row, ("solution", *own.answer))
    problem = _DAPO_AFTER.sub("", _DAPO_BEFORE.sub("", problem, count=1)).strip()
    return problem, answer, ""


def _numina(own: MathSet, row: Mapping[str, Any]) -> tuple[str, str, str]:
    problem, answer, solution = _plain(own, row)
    if answer.lower() == "proof" or _text(row, ("question_type",)) == "proof":
        raise Rejected("a proof, which has no answer to compare")
    if answer.lower() in ("notfound", "not found"):
        raise Rejected("no answer")
    if any(row.get(field) not in (None, "Yes") for field in ("problem_is_valid", "solution_is_valid")):
        raise Rejected("a mark of its authors that it is not valid")
    return problem, answer, solution


def _olympiad(own: MathSet, row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Answers are a list; several of them are one answer with several parts. A context stands before the question.

    The fields "unit" and "error" (a tolerance) are not used: a unit may be missing from an answer anyway, and answers
    are compared exactly.
    """
    answers = row.get("final_answer") or row.get("answer")
    answers = [answers] if isinstance(answers, str) else answers
    answers = [a for a in answers if a is not None] if isinstance(answers, list) else []
    if not answers:
        raise Rejected("no final answer (a proof)")
    solutions = row.get("solution")
    solution = solutions[0] if isinstance(solutions, list) and solutions else _text(row, own.solution)
    parts = [_text(row, ("context",)), _text(row, own.problem)]
    return "\n".join(filter(None, parts)), ", ".join(str(a).strip().strip("$") for a in answers), str(solution)


MATH_SETS: dict[str, MathSet] = {
    "gsm8k": MathSet(
        "Cobbe et al. 2021, https://arxiv.org/abs/2110.14168", ("train", "test"),
        {split: (f"https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/{split}.jsonl",)
         for split in ("train", "test")}, read=_gsm8k,
    ),
    "math": MathSet(
        "Hendrycks et al. 2021, https://arxiv.org/abs/2103.03874", ("train", "test"),
        {split: (f"{_HUB}/DigitalLearningGmbH/MATH-lighteval/resolve/main/data/{split}-00000-of-00001.parquet",)
         for split in ("train", "test")}, folders=("math_train", "MATH", "MATH-lighteval", "hendrycks_math"),
    ),
    "math500": MathSet(
        "Lightman et al. 2023, https://arxiv.org/abs/2305.20050", ("test",),
        {"test": (f"{_HUB}/HuggingFaceH4/MATH-500/resolve/main/test.jsonl",)}, folders=("math_500", "MATH-500"),
    ),
    "deepscaler": MathSet(
        "https://huggingface.co/datasets/agentica-org/DeepScaleR-Preview-Dataset (40k)", ("train",),
        {"train": (f"{_HUB}/agentica-org/DeepScaleR-Preview-Dataset/resolve/main/deepscaler.json",)},
        folders=("DeepScaleR-Preview-Dataset",),
    ),
    "dsr_sub": MathSet("1,209 problems of deepscaler: Wang et al. 2025, https://arxiv.org/abs/2504.20571"),
    "aime_train": MathSet("AIME 1983 to 2023, as in deepscaler"),
    "deepmath": MathSet(
        "He et al. 2025, https://arxiv.org/abs/2504.11456 (103k)", ("train",),
        {"train": tuple(f"{_HUB}/zwhe99/DeepMath-103K/resolve/main/data/train-{i:05}-of-00010.parquet"
                        for i in range(10))},
        solution=("solution", "r1_solution_1"), folders=("deepmath_103k", "DeepMath-103K"),
    ),
    "dapo_math": MathSet(
        "Yu et al. 2025, https://arxiv.org/abs/2503.14476 (17k, each about 100 times in the file)", ("train",),
        {"train": (f"{_HUB}/BytedTsinghua-SIA/DAPO-Math-17k/resolve/main/data/dapo-math-17k.parquet",)},
        folders=("dapo_math_17k", "DAPO-Math-17k", "DAPO-Math-17k-Processed"), read=_dapo,
    ),
    "numinamath": MathSet(
        "Li et al. 2024, https://huggingface.co/datasets/AI-MO/NuminaMath-CoT", ("train", "test"),
        {"train": tuple(f"{_HUB}/AI-MO/NuminaMath-CoT/resolve/main/data/train-{i:05}-of-00005.parquet"
                        for i in range(5)),
         "test": (f"{_HUB}/AI-MO/NuminaMath-CoT/resolve/main/data/test-00000-of-00001.parquet",)},
        folders=("NuminaMath-CoT", "NuminaMath-1.5"), read=_numina,
    ),
    "aime24": MathSet(
        "AIME I and II of 2024", ("test",), {"test": (f"{_QWEN}/aime24/test.jsonl",)},
        folders=("AIME_2024", "aime_2024"),
    ),
    "aime25": MathSet(
        "AIME I and II of 2025", ("test",), {"test": (f"{_HUB}/math-ai/aime25/resolve/main/test.jsonl",)},
        folders=("AIME2025", "aime_2025"),
    ),
    "aime26": MathSet(
        "AIME I and II of 2026; no address to download it from is known here", ("test",), folders=("aime_2026",)
    ),
    "amc23": MathSet("AMC 12 of 2023", ("test",), {"test": (f"{_QWEN}/amc23/test.jsonl",)}),
    "minerva": MathSet(
        "Lewkowycz et al. 2022, https://arxiv.org/abs/2206.14858 (272 of OCW)", ("test",),
        {"test": (f"{_QWEN}/minerva_math/test.jsonl",)}, folders=("minerva_math", "minervamath"),
    ),
    "olympiadbench": MathSet(
        "He et al. 2024, https://arxiv.org/abs/2402.14008 (675 in English, text only)", ("test",),
        {"test": (f"{_QWEN}/olympiadbench/test.jsonl",)}, folders=("OlympiadBench",),
        read=_olympiad,
    ),
}  # fmt: skip
_PLACES = "$ENTROPY_RL_DATA, --data (experiments.evaluate) or config.task.options.directory"
_LEFT_OUT, _ROWS_KEPT = "left_out.json", 100
_ENDINGS = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz", ".parquet.gz")


def math_set(name: str) -> MathSet:
    """The set of that name; ValueError names all there are."""
    if name not in MATH_SETS:
        raise ValueError(f"{name!r} is not one of the sets {', '.join(MATH_SETS)}")
    return MATH_SETS[name]


_INNER = ("", "data", "main", "default", "en", "all", "OE_TO_maths_en_COMP")  # folders inside a published set's


def local_files(name: str, split: str, directory: str, *, direct: bool = False) -> list[str]:
    """The files of a set's split under ``directory``: in a folder of the set's name, as it is laid out when published.

    A file belongs to a split if it is named for it ("train.jsonl", "train-00000-of-00010.parquet") or lies in a folder
    that is ("train/algebra/1.json"); in a set of one split every data file does.

    Args:
        name, split: of the set.
        directory: holds a folder per set.
        direct: whether the files may lie in ``directory`` itself, whatever it is called.

    Raises:
        ValueError: where there are none, with the folders that were looked into.
    """
    own = math_set(name)
    names = (name, *own.folders)
    folders = [os.path.join(directory, folder, inner) for folder in names for inner in _INNER]
    if direct or os.path.basename(os.path.abspath(directory)) in names:
        folders += [os.path.join(directory, inner) for inner in _INNER]
    for folder in map(os.path.normpath, folders):
        if not os.path.isdir(folder):
            continue
        files = sorted(f for f in os.listdir(folder) if f.endswith(_ENDINGS) and not f.startswith("."))
        named = re.compile(rf"{split}(?:[-_]?[0-9]+(?:-of-[0-9]+)?)?\.(?:jsonl?|parquet)(?:\.gz)?")
        chosen = [f for f in files if named.fullmatch(f)]
        if not chosen and len(own.splits) == 1 and not direct:
            chosen = files
        stems = {file.removesuffix(".gz") for file in chosen}
        if chosen:  # a file that is there twice, packed and not, counts once
            return [os.path.join(folder, f if f in chosen else f + ".gz") for f in sorted(stems)]
        tree = sorted(glob.glob(os.path.join(glob.escape(folder), split, "**", "*.json"), recursive=True))
        if tree:
            return tree
    where = ", ".join(os.path.join(os.path.abspath(directory), folder) for folder in names)
    raise ValueError(f"no {split}*.jsonl, .json or .parquet of the set {name!r} in {where}")


def key(problem: str) -> str:
    """A problem without case and spacing: what makes two rows the same problem."""
    return " ".join(problem.lower().split())


def read_set(
    name: str, files: Sequence[str], rejected: Callable[[str, int, str], None] | None = None
) -> Iterator[dict[str, str]]:
    """Examples of a set's files, in order; ``rejected(path, row number, reason)`` is told of rows left out.

    Of the rows with the same problem the first counts; the others are left out, with their own reason where the answer
    is another one.
    """
    own = math_set(name)
    seen: dict[str, str] = {}
    for path in files:
        for number, row in read_rows(path):
            try:
                example = own.example(row)
                problem = key(example["problem"])
                if problem in seen:
                    other = " with another answer" if seen[problem] != example["answer"] else ""
                    raise Rejected(f"a repeated problem{other}")
                seen[problem] = example["answer"]
            except Rejected as reason:
                if rejected is not None:
                    rejected(path, number, str(reason))
                continue
            yield example


class MathSetFiles(ProblemBuilder):
    """A split of a published set, from local files or downloaded.

    Args:
        name: of the set, see ``MATH_SETS``.
        split: "train" or "test".
        directory: with a folder of the set's name (see ``local_files``); "" downloads the published files.
        data_dir: where TFDS keeps what it prepared.
        direct: whether the files may lie in ``directory`` itself.

    Raises:
        ValueError: for a set or split there is not, files that are missing, or a set that cannot be downloaded.
    """

    def __init__(
        self, name: str, split: str, *, directory: str = "", data_dir: str | None = None, direct: bool = False
    ):
        own = math_set(name)
        if split not in own.splits:
            raise ValueError(f"the set {name!r} has no split {split!r}, only {', '.join(own.splits)}")
        if not directory and split not in own.urls:
            raise ValueError(
                f"the set {name!r} cannot be downloaded; name a directory with a folder {name!r}: {_PLACES}"
            )
        self.set_name, self.split = name, split
        files = local_files(name, split, directory, direct=direct) if directory else list(own.urls[split])
        options = [name, split, files, directory == ""]
        super().__init__(paths={split: files if directory else []}, options=options, data_dir=data_dir)
        self._urls = [] if directory else files
        self._left_out: dict[str, list] | None = None

    def _split_generators(self, dl_manager):
        if self._urls:
            (split,) = self._paths
            self._check_network()
            paths = [os.fspath(path) for path in dl_manager.download(self._urls)]
            # Downloads have names of their own; what a file is, its URL's ending says.
            self._paths = {split: [_with_ending(path, url) for path, url in zip(paths, self._urls, strict=True)]}
        return super()._split_generators(dl_manager)

    def _check_network(self) -> None:
        """Raises ValueError where a host is out of reach: TFDS would try for minutes."""
        for host in {urllib.parse.urlparse(url).hostname or "" for url in self._urls}:
            try:
                socket.create_connection((host, 443), timeout=10).close()
            except OSError:
                raise ValueError(f"{host} is out of reach; {self._by_hand()}") from None

    def _by_hand(self) -> str:
        name = self.set_name
        return f"put the files of the set {name!r} into a folder {name!r} of a directory, and name that: {_PLACES}"

    def examples(self, split: str, files: Sequence[str]) -> Iterator[dict[str, str]]:
        """Rows in order; those left out are kept for ``left_out``."""
        del split
        left_out: dict[str, list] = {}

        def rejected(path: str, number: int, reason: str) -> None:
            rows = left_out.setdefault(reason, [0])
            rows[0] += 1
            if len(rows) <= _ROWS_KEPT:
                rows.append([os.path.basename(path), number])

        yield from read_set(self.set_name, files, rejected)
        self._left_out = left_out

    def _download_and_prepare(self, *args, **options):
        """As in TFDS; what was left out lies beside the records, and its counts are told once."""
        try:
            super()._download_and_prepare(*args, **options)
        except tfds.download.DownloadError as error:
            raise ValueError(f"{str(error)[:200]}; {self._by_hand()}") from None
        left_out = self._left_out or {}
        (self.data_path / _LEFT_OUT).write_text(json.dumps(left_out))
        if left_out:
            what = ", ".join(f"{rows[0]} with {reason}" for reason, rows in left_out.items())
            print(f"{self.set_name}: left out {what}", file=sys.stderr)

    def left_out(self) -> dict[str, tuple[int, list[tuple[str, int]]]]:
        """Reason -> (how many rows of a prepared set were left out for it, file and number of the first hundred)."""
        path = self.data_path / _LEFT_OUT
        found = json.loads(path.read_text()) if path.exists() else {}
        return {reason: (rows[0], [tuple(row) for row in rows[1:]]) for reason, rows in found.items()}


def _with_ending(path: str, url: str) -> str:
    ending = next(e for e in sorted(_ENDINGS, key=len, reverse=True) if url.endswith(e))
    if path.endswith(ending):
        return path
    link = path + ending
    if not os.path.exists(link):
        os.symlink(path, link)
    return link
