"""Published sets: every format read by name, rows left out with reasons, mixtures, overlap, the report."""

import collections
import json

import pytest

from configs.common import base_config
from entropy_rl.data.datasets import MixedProblems
from entropy_rl.data.math_sets import MATH_SETS, MathSetFiles, Rejected, local_files, math_set, read_set
from entropy_rl.data.math_task import MathTask, mixture
from entropy_rl.data.overlap import Overlap
from entropy_rl.data.rows import read_rows
from entropy_rl.data.tasks import Problem, rewards_of
from experiments.building import make_task
from experiments.data import histogram, kind_of_answer, report

DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\nWhat is 6*7?\n\nRemember to put your "
    'answer on its own line after "Answer:".'
)
# A row of each set as it is published, and what it is read as.
PUBLISHED = [
    ("gsm8k", {"question": "2+2?", "answer": "It is 4.\n#### 1,004"}, ("2+2?", "1004")),
    ("math", {"problem": "P", "level": "Level 5", "type": "Algebra", "solution": "so $\\boxed{\\frac12}$."},
     ("P", "\\frac12")),
    ("math", {"problem": "P", "answer": "7", "difficulty": 5.0, "type": "Algebra"}, ("P", "7")),
    ("math500", {"problem": "P", "solution": "s", "answer": "p - q", "subject": "x", "level": 2, "unique_id": "u"},
     ("P", "p - q")),
    ("deepscaler", {"problem": "P", "answer": "-\\frac{2}{3}", "solution": ""}, ("P", "-\\frac{2}{3}")),
    ("deepmath", {"question": "Q", "final_answer": "0", "difficulty": 4.5, "topic": "t", "r1_solution_1": "r"},
     ("Q", "0")),
    ("dapo_math", {"data_source": "math_dapo", "prompt": [{"role": "user", "content": DAPO}], "ability": "MATH",
                   "reward_model": {"ground_truth": "42", "style": "rule"}, "extra_info": {"index": "i"}},
     ("What is 6*7?", "42")),
    ("dapo_math", {"prompt": "What is 6*7?", "solution": "42", "data_source": "math_dapo"}, ("What is 6*7?", "42")),
    ("numinamath", {"source": "cn_k12", "problem": "P", "solution": "x \\boxed{3} y", "messages": []}, ("P", "3")),
    ("numinamath", {"problem": "P", "solution": "s", "answer": "3", "question_type": "math-word-problem"}, ("P", "3")),
    ("aime24", {"ID": "2024-I-1", "Problem": "P", "Solution": "s", "Answer": 204}, ("P", "204")),
    ("aime24", {"id": "aime24-0", "problem": "P", "expected_answer": "73", "reference_solution": "r"}, ("P", "73")),
    ("aime25", {"problem": "P", "answer": "070", "id": "0"}, ("P", "070")),
    ("aime26", {"problem_idx": 1, "problem": "P", "answer": 277}, ("P", "277")),
    ("amc23", {"id": 0, "problem": "P", "answer": 27.0, "url": "u", "question": "P"}, ("P", "27")),
    ("minerva", {"problem": "P", "solution": "thus \\boxed{1.2e9} ergs", "type": "t", "idx": 0}, ("P", "1.2e9")),
    ("minerva", {"question": "P", "answer": "1.6"}, ("P", "1.6")),
    ("olympiadbench", {"id": 1, "context": "C", "question": "Q", "solution": ["s"], "final_answer": ["$2$", "3"],
                       "is_multiple_answer": True}, ("C\nQ", "2, 3")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "read"), PUBLISHED)
def test_published_formats(name, row, read):
    example = math_set(name).example(row)
    assert (example["problem"], example["answer"]) == read


def test_every_set_has_a_row_here():
    assert {name for name, _, _ in PUBLISHED} | {"dsr_sub", "aime_train"} == set(MATH_SETS)


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("gsm8k", {"question": "q", "answer": "no mark"}, "no '#### answer'"),
        ("math", {"problem": "P", "solution": "no box"}, "no answer"),
        ("math500", {"problem": " ", "answer": "1"}, "no problem"),
        ("numinamath", {"problem": "P", "solution": "s", "answer": "proof"}, "a proof"),
        ("olympiadbench", {"question": "Q", "final_answer": None, "solution": ["s"]}, "no final answer"),
        ("deepscaler", {"problem": "P", "answer": "1" * 1001}, "more than 1000 characters"),
    ],
)
def test_rejected_rows(name, row, reason):
    with pytest.raises(Rejected, match=reason):
        math_set(name).example(row)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_formats_of_files_and_where_they_are_found(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"problem": f"P{i}", "answer": str(i), "solution": ""} for i in range(4)]
    (tmp_path / "deepscaler").mkdir()
    (tmp_path / "deepscaler" / "deepscaler.json").write_text(json.dumps(rows))  # an array, as published
    (tmp_path / "DAPO-Math-17k" / "data").mkdir(parents=True)
    dapo = pyarrow.Table.from_pylist([PUBLISHED[6][1]] * 3)
    pyarrow.parquet.write_table(dapo, tmp_path / "DAPO-Math-17k" / "data" / "dapo-math-17k.parquet")
    for part in range(2):
        table = pyarrow.Table.from_pylist([{"question": f"Q{part}", "final_answer": str(part)}])
        path = tmp_path / "deepmath" / "data" / f"train-0000{part}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, path)
    found = {name: local_files(name, "train", str(tmp_path)) for name in ("deepscaler", "dapo_math", "deepmath")}
    assert [len(files) for files in found.values()] == [1, 1, 2]
    read = {name: list(read_set(name, files)) for name, files in found.items()}
    assert [example["answer"] for example in read["deepscaler"]] == ["0", "1", "2", "3"]
    assert [example["problem"] for example in read["dapo_math"]] == ["What is 6*7?"]
    assert [example["problem"] for example in read["deepmath"]] == ["Q0", "Q1"]
    with pytest.raises(ValueError, match=r"no test\*.jsonl, .json or .parquet of the set 'aime26' in .*aime_2026"):
        local_files("aime26", "test", str(tmp_path))
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="row 1 is a int, not an object"):
        list(read_rows(tmp_path / "a.json"))


def test_repeated_problems(tmp_path):
    rows = [{"problem": p, "answer": a} for p, a in [("What  is\n1?", "1"), ("what is 1?", "1"), ("What is 1?", "2")]]
    write(tmp_path / "train.jsonl", rows)
    told = []
    read = list(read_set("deepscaler", [str(tmp_path / "train.jsonl")], lambda *what: told.append(what[1:])))
    assert [example["answer"] for example in read] == ["1"]
    assert told == [(2, "a repeated problem"), (3, "a repeated problem with another answer")]


def test_prepared_once_with_what_was_left_out(tmp_path, capsys):
    rows = [{"problem": f"P{i % 3}", "answer": str(i % 3)} for i in range(5)] + [{"problem": "x"}]
    write(tmp_path / "deepscaler" / "train.jsonl", rows)
    for times in (1, 0):
        task = MathTask(train="deepscaler", test="aime24", directory=_with_test(tmp_path), data_dir=str(tmp_path / "t"))
        assert [p.answer for p in task.problems("train")] == ["0", "1", "2"]
        assert capsys.readouterr().err.count("left out 2 with a repeated problem, 1 with no answer") == times
    ((builder, _),) = task.parts("train")
    assert builder.left_out() == {
        "a repeated problem": (2, [("train.jsonl", 4), ("train.jsonl", 5)]),
        "no answer": (1, [("train.jsonl", 6)]),
    }


def _with_test(tmp_path):
    write(tmp_path / "aime24" / "test.jsonl", [{"problem": "T", "answer": "1"}])
    return str(tmp_path)


def test_errors(tmp_path, monkeypatch):
    monkeypatch.delenv("ENTROPY_RL_DATA", raising=False)
    with pytest.raises(ValueError, match="'aime27' is not one of the sets gsm8k, math"):
        MathSetFiles("aime27", "test")
    with pytest.raises(ValueError, match="'aime24' has no split 'train', only test"):
        MathSetFiles("aime24", "train")
    with pytest.raises(ValueError, match="'aime26' cannot be downloaded; name a directory"):
        MathSetFiles("aime26", "test")
    for wrong in ("math:0", "math:x", "math,math", "", "math:inf"):
        with pytest.raises(ValueError, match=r"no positive number|does not name different sets"):
            mixture(wrong)
    assert mixture("deepscaler:2, gsm8k") == [("deepscaler", 2.0), ("gsm8k", 1.0)]
    with pytest.raises(ValueError, match="have no weights"):
        MathTask(train="", test="aime24:2", directory=_with_test(tmp_path))


def test_mixture_by_weights():
    sets = [[Problem(i, f"{name}{i}", "1") for i in range(size)] for name, size in (("a", 30), ("b", 70))]
    mixed = MixedProblems(sets, [1.0, 1.0])
    counts = collections.Counter(problem.prompt[0] for problem in mixed)
    assert counts == {"a": 50, "b": 50}
    per_problem = collections.Counter(problem.prompt for problem in mixed if problem.prompt[0] == "a")
    assert len(per_problem) == 30
    assert set(per_problem.values()) == {1, 2}  # as evenly as can be
    by_id = {problem.id: problem.prompt for problem in mixed}
    assert len(by_id) == 30 + 50  # ids tell the sets apart
    assert [p.id for p in mixed] == [p.id for p in MixedProblems(sets, [1.0, 1.0])]
    first = collections.Counter(problem.prompt[0] for problem in mixed[:20])
    assert abs(first["a"] - first["b"]) <= 1  # interleaved
    assert len({p.id for p in MixedProblems(sets, [1e308, 1e308])}) == 80
    assert [p.id for p in mixed[3:6]] == [mixed[i].id for i in (3, 4, 5)]
    with pytest.raises(ValueError, match="as many positive weights"):
        MixedProblems(sets, [1.0, 0.0])


BOILERPLATE = "The answer can be written as m/n, where m and n are relatively prime positive integers. Find m+n."
WOLVES = "A pack of seven wolves hunts at night, and each of them howls with probability one half, until two howl. "
LONG = "Let $ABC$ be a triangle with sides 13, 14 and 15 and let D be the foot of the altitude from A to side BC; then "


def test_overlap():
    overlap = Overlap([LONG + "find AD.", "What is 2+2?", WOLVES + BOILERPLATE])
    assert overlap.matches("Hard! " + LONG.upper() + " what is the area?") == [0]  # signs and case aside
    assert overlap.matches("what is 2 + 2") == [1]
    assert overlap.matches("What is 2+2? And what is the square of that number, plus seven?") == []
    assert overlap.matches("Toss a fair coin until three heads in a row come up. " + BOILERPLATE) == []
    assert overlap.matches(WOLVES + BOILERPLATE) == [2]
    assert overlap.matches("") == []
    short = Overlap(["\u5df2\u77e5 $2$ \u6c42", "Compute 2+2"])
    assert short.matches("\u5df2\u77e5 2 \u6c42") == [0]
    assert short.matches("\u4e8c 2") == short.matches("compute 2-2") == []
    assert short.matches("compute $2 + 2$") == [1]


def test_overlapping_training_problems_are_left_out_on_request(tmp_path):
    write(tmp_path / "math" / "train.jsonl", [{"problem": p, "answer": "1"} for p in (LONG + "find AD.", "What is 3?")])
    write(tmp_path / "aime24" / "test.jsonl", [{"problem": LONG + "find BD.", "answer": "1"}])
    options = dict(train="math", test="aime24", directory=str(tmp_path), data_dir=str(tmp_path / "t"))
    assert len(MathTask(**options).problems("train")) == 2
    kept = MathTask(**options, exclude_overlap=True).problems("train")
    assert [problem.answer for problem in kept] == ["1"]
    assert kept[0].prompt.startswith("What is 3?\nPlease reason step by step")


def test_ids_stay_unique_when_problems_are_left_out(tmp_path):
    rows = [{"problem": p, "answer": "1"} for p in (LONG + "find AD.", "What is 3?", "What is 4?", "What is 5?")]
    write(tmp_path / "math" / "train.jsonl", rows)
    write(tmp_path / "deepscaler" / "train.jsonl", [{"problem": f"Is {i} odd?", "answer": "1"} for i in range(4)])
    write(tmp_path / "aime24" / "test.jsonl", [{"problem": LONG + "find BD.", "answer": "1"}])
    task = MathTask(
        train="math,deepscaler", test="aime24", directory=str(tmp_path), data_dir=str(tmp_path / "t"),
        exclude_overlap=True,
    )  # fmt: skip
    by_id = collections.defaultdict(set)
    for problem in task.problems("train"):
        by_id[problem.id].add(problem.prompt)
    assert all(len(prompts) == 1 for prompts in by_id.values())
    assert not any(LONG in prompt for prompts in by_id.values() for prompt in prompts)


@pytest.mark.parametrize(
    ("name", "split", "places"),
    [
        ("gsm8k", "train", ["gsm8k/main/train-00000-of-00001.parquet"]),
        ("math", "train", ["MATH/train/algebra/1.json", "MATH/train/geometry/7.json"]),
        ("aime25", "test", ["AIME2025/aime2025-I.jsonl", "AIME2025/aime2025-II.jsonl"]),
        ("olympiadbench", "test", ["OlympiadBench/OE_TO_maths_en_COMP/x.parquet"]),
        ("dapo_math", "train", ["DAPO-Math-17k-Processed/en/train-00000-of-00001.parquet"]),
    ],
)
def test_layouts_as_they_are_published(tmp_path, name, split, places):
    for place in [*places, f"{places[0].partition('/')[0]}/README.md"]:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("{}")
    assert [path.removeprefix(f"{tmp_path}/") for path in local_files(name, split, str(tmp_path))] == places


def test_only_a_sets_own_files_are_read(tmp_path):
    write(tmp_path / "aime24" / "test.jsonl", [{"problem": "T", "answer": "1"}])
    write(tmp_path / "aime24" / "test_old.jsonl", [{"problem": "U", "answer": "1"}])
    assert local_files("aime24", "test", str(tmp_path / "aime24")) == [str(tmp_path / "aime24" / "test.jsonl")]
    with pytest.raises(ValueError, match="of the set 'math500'"):
        local_files("math500", "test", str(tmp_path / "aime24"))


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ('[{"problem": "a", "answer": 1}]', ["1"]),
        ('{\n "problem": "a",\n "answer": 1\n}', ["1"]),
        ('\ufeff{"problem": "a", "answer": 1}\n{"problem": "b", "answer": NaN}\n', ["1"]),
        ('{"problem": "a", "answer": null, "solution": "\\\\boxed 2."}\n', ["2"]),
        ('{"problem": "z\\ud800", "answer": 1}\n{"problem": "c", "answer": 3}\n', ["3"]),
    ],
)
def test_json_as_people_write_it(tmp_path, text, answers):
    (tmp_path / "train.json").write_text(text)
    assert [example["answer"] for example in read_set("deepscaler", [str(tmp_path / "train.json")])] == answers


def test_real_sets(data_dir, tmp_path):
    task = MathTask(train="gsm8k", test="gsm8k", directory=str(data_dir), data_dir=str(tmp_path), template="plain")
    train, test = task.problems("train"), task.problems("test")
    assert (len(train), len(test)) == (7473, 1319)
    assert test[0].answer == "18"
    assert test[0].prompt.startswith("Janet")
    some = [test[i] for i in range(200)]
    assert rewards_of(task, some, [task.demonstration(p, 0) for p in some]) == [1.0] * 200
    sizes = {"math500": 500, "aime24": 30, "amc23": 40, "olympiadbench": 675}
    assert {name: len(list(read_set(name, local_files(name, "test", str(data_dir))))) for name in sizes} == sizes
    told = []
    math = list(read_set("math", local_files("math", "train", str(data_dir)), lambda *what: told.append(what[2])))
    assert (len(math), collections.Counter(told)) == (7469, {"no answer": 4, "a repeated problem": 1})


def test_the_config_names_the_sets(tmp_path, monkeypatch):
    write(tmp_path / "math" / "train.jsonl", [{"problem": f"What is {i}?", "answer": str(i)} for i in range(6)])
    write(
        tmp_path / "math500" / "test.jsonl", [{"problem": "What is 7?", "answer": "7"}, {"problem": "", "answer": ""}]
    )
    config = base_config()
    config.task.name = "math"
    config.task.options = dict(train="math", test="math500", directory=str(tmp_path), data_dir=str(tmp_path / "t"),
                               extract=("A:",), template="Q: {problem}")  # fmt: skip
    task = make_task(config)
    assert task.reward(task.problems("test")[0], "A: 7") == 1.0
    assert task.reward(task.problems("test")[0], "\\boxed{7}") == 0.0
    text = report(config, samples=1)
    assert "math, train: 6 problems; answers: 6 integers" in text
    assert "characters (the config names no tokenizer)" in text
    assert "left out 1 with no problem: test.jsonl row 2" in text
    assert '[0] "Q: What is 0?"' in text
    assert "overlap: 0 of 6 training problems overlap with 0 of 1 test problems" in text


def test_the_report_of_a_generated_task():
    config = base_config()
    config.task.options = dict(min_steps=3, max_steps=4, modulus=10, operators="+", noise=0.0, seed=0, size=64)
    text = report(config, samples=2)
    assert "train (the first 64): 64 problems; answers: 64 integers" in text
    assert "prompts, in tokens:" in text


def test_histogram():
    text = histogram([1, 1, 1, 50, 100], limit=60)
    assert (
        text.splitlines()[0]
        == "    shortest 1, median 1, 95 % up to 100, longest 100; 1 above the config's limit of 60"
    )
    bars = [line.count("█") for line in text.splitlines()[1:]]
    assert bars[0] == 40
    assert sum(map(bool, bars)) == 3
    assert [kind_of_answer(a) for a in ("7", "1/2", "\\text{odd}", "x+1")] == [
        "integer",
        "number",
        "text",
        "expression",
    ]
