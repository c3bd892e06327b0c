"""Numbers are read exactly, marks are found, everything else is wrong rather than guessed."""

import gzip
import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_rl.verify import Grader, extract_answer, parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-7", -7),
        ("+3", 3),
        ("1,234", 1234),
        ("1{,}234,567.50", Fraction(2469135, 2)),
        ("$1,000", 1000),
        ("\\$12.50", Fraction(25, 2)),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("-\\dfrac{1}{2}", Fraction(-1, 2)),
        ("\\frac34", Fraction(3, 4)),
        ("\\frac{1,000}{4}", 250),
        ("1/2^99", None),
        ("12,34", None),
        ("1,2", None),
        ("1/0", None),
        ("\\frac{1}{0}", None),
        ("1e400", None),
        ("42\\%", None),
        ("11_2", None),
        ("\u0664\u0662", None),  # Arabic-Indic digits
        ("4\u200b2", None),  # a zero-width space inside
        ("\uff14\uff12", None),  # full-width digits
        ("(1,2)", None),
        ("{1,2}", None),
        ("forty-two", None),
        ("", None),
        ("9" * 201, None),
        ("--5", None),
        ("5 apples", None),
    ],
)
def test_numbers(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("so \\boxed{42} it is", "42"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{3}}", "\\boxed{3}"),  # the outer level
        ("\\boxed{5", None),
        ("a\n#### 18", "18"),
        ("#### 1\n#### 2\nmore", "2"),
        ("The answer is: 7.", "7."),
        ("the Answer is 8", "8"),
        ("#### 1 but \\boxed{2}", "2"),  # precedence is that of ``extract``
        ("I have 42 apples", None),
        ("", None),
    ],
)
def test_extraction(response, answer):
    assert extract_answer(response) == answer


def test_unmarked_numbers_count_only_on_request():
    prose = "I do not know. There are 42 apples"
    assert Grader().grade("42", prose) == 0.0
    assert Grader(allow_unboxed=True).grade("42", prose) == 1.0
    assert Grader(allow_unboxed=True).grade("42", "nothing") == 0.0


def test_extract_option():
    assert Grader(extract=("####",)).grade("2", "\\boxed{2}") == 0.0
    assert Grader(extract=("####", "boxed")).grade("1", "#### 1\n\\boxed{2}") == 1.0
    with pytest.raises(ValueError, match="'colon' is not one of"):
        Grader(extract=("colon",))


@pytest.mark.parametrize(
    ("gold", "response", "grade"),
    [
        ("18", "#### 18 dollars", 1),
        ("18", "The answer is 18 dollars.", 1),
        ("18", "The answer is 18, because x", 1),
        ("18", "The answer is **18**.", 1),
        ("18", "\\boxed{18\\text{ dollars}}", 1),
        ("-5", "#### \u22125", 1),
        ("3/2", "#### 1 1/2", 1),
        ("1.5", "\\boxed{1\\frac{1}{2}}", 1),
        ("#### 42", "\\boxed{42}", 1),
        ("1,000", "#### 1,000 apples", 1),
        ("42", "#### 41 = 42", 0),
        ("42", "#### 41, no, 42", 0),
        ("50", "#### 50%", 0),  # what a percentage equals is left to the next grader
        ("2", "#### 2 or 3", 0),
        ("2", "#### 2x", 0),
        ("2", "#### 2^99", 0),
        ("1", "#### 1 1/0", 0),
    ],
)
def test_words_around_a_number(gold, response, grade):
    assert Grader().grade(gold, response) == grade


def test_grades():
    with Grader() as grader:
        golds = ["0.5", "1000", "7", "\\text{Monday}"]
        responses = ["#### 1/2", "#### 1,000", "#### 8", "\\boxed{\\text{Monday}}"]
        assert grader.grade_many(golds, responses) == [1.0, 1.0, 0.0, 1.0]
        with pytest.raises(ValueError, match="zip"):
            grader.grade_many(["1"], [])
        assert grader.grade("1/3", "#### 0.3333333333") == 0.0  # exact, never nearly


@given(st.fractions(max_denominator=10**6), st.sampled_from(["boxed", "####", "answer is"]))
def test_every_rational_round_trips(value, kind):
    mark = {"boxed": "\\boxed{%s}", "####": "#### %s", "answer is": "The answer is %s."}[kind]
    assert Grader().grade(str(value), mark % value) == 1.0
    assert Grader().grade(str(value), mark % (value + 1)) == 0.0


@given(st.text(max_size=300))
def test_any_text_is_graded(text):
    assert Grader(allow_unboxed=True).grade("1", text) in (0.0, 1.0)


@pytest.mark.parametrize(
    "hostile", ["\\boxed{" * 5000, "{" * 9000, "\\boxed{" + "(" * 9000 + "}", "1" * 10**6, "#### " + "1," * 10**5]
)
def test_hostile_text_is_wrong(hostile):
    assert Grader(allow_unboxed=True).grade("1", hostile) == 0.0


def test_gsm8k_solutions(data_dir):
    """Every published solution grades 1 against its own answer, 0 against the next problem's other answer."""
    grader, golds, solutions = Grader(), [], []
    with gzip.open(data_dir / "gsm8k" / "test.jsonl.gz", "rt") as file:
        for line in file:
            solutions.append(json.loads(line)["answer"])
            golds.append(solutions[-1].rpartition("####")[2].strip())
    assert sum(grader.grade_many(golds, solutions)) == len(golds)
    shifted = [
        (g, s) for g, s, own in zip(golds[1:], solutions, golds, strict=False) if parse_number(g) != parse_number(own)
    ]
    assert sum(grader.grade_many(*zip(*shifted, strict=True))) == 0


def test_published_model_solutions(data_dir):
    """OpenAI's own gradings of 5,276 model solutions, their mark "A:" read as "####"."""
    grader, wrong = Grader(extract=("####",)), []
    with gzip.open(data_dir / "grader_cases" / "gsm8k_model_solutions.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        head, mark, tail = row["pred"].rpartition("A:")
        graded = grader.grade(row["gold"], f"{head}#### {tail}" if mark else row["pred"])
        if bool(graded) != bool(row["expected"]):
            wrong.append((row["gold"], tail.strip(), row["expected"]))
    assert len(rows) > 5000
    assert len(wrong) <= 5, wrong[:10]
