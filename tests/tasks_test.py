"""Generated problems: always answerable, never leaking into the held-out part, step-level truth included."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_rl.data.tasks import Chains, Countdown, GeneratedProblems, evaluate_expression
from entropy_rl.model.tokenizer import CharTokenizer

CHAINS = st.builds(
    Chains,
    min_steps=st.integers(1, 3),
    max_steps=st.integers(3, 8),
    modulus=st.integers(2, 120),
    operators=st.sampled_from(["+", "+-", "*", "+-*"]),
    noise=st.sampled_from([0.0, 0.15, 1.0]),
    seed=st.integers(0, 99),
)
INDICES = st.integers(0, 4095)


@settings(deadline=None, max_examples=60)
@given(CHAINS, INDICES, st.sampled_from(["train", "test"]))
def test_chain_solutions(task, index, split):
    problem = task.problems(split)[index]
    assert problem == task.problems(split)[index]
    assert set(problem.prompt + problem.solution) <= set(task.alphabet)
    assert task.reward(problem, problem.solution) == 1.0
    assert task.first_wrong_step(problem, problem.solution) is None
    # An independent evaluation: fold the operators from the left.
    first, *rest = re.findall(r"[+\-*]?\d+", problem.prompt)
    value = int(first)
    for step in rest:
        value = eval(f"{value}{step[0]}{int(step[1:])}") % task.modulus
    assert problem.answer == str(value)
    assert task.min_steps <= len(rest) <= task.max_steps


@settings(deadline=None, max_examples=60)
@given(CHAINS, INDICES, st.integers(0, 5))
def test_chain_demonstrations(task, index, seed):
    problem = task.problems("train")[index]
    shown = task.demonstration(problem, seed)
    assert shown == task.demonstration(problem, seed)
    wrong = task.first_wrong_step(problem, shown)
    if task.noise == 0.0:
        assert shown == problem.solution
    if wrong is None:
        assert shown == problem.solution
    else:  # everything before the first wrong step is the true chain, and that step is not
        ours, theirs = shown.split(";"), problem.solution.split(";")
        assert ours[:wrong] == theirs[:wrong]
        assert ours[wrong] != theirs[wrong]
        # from there each step starts at the last result
        assert all(a.split("=")[1] == re.match(r"\d+", b)[0] for a, b in itertools.pairwise(ours[:-1]))


def test_chain_steps_by_hand():
    task = Chains()
    problem = next(p for p in (task.problems("train")[i] for i in range(99)) if p.prompt.count("*") == 1)
    good = problem.solution
    assert task.first_wrong_step(problem, "") == 0
    assert task.first_wrong_step(problem, good[: good.index(";") + 1]) == 1
    steps = good.count(";")
    assert task.first_wrong_step(problem, good[:-1] + ("1" if good[-1] == "0" else "0")) == steps
    assert task.first_wrong_step(problem, good + "0") == steps
    assert task.first_wrong_step(problem, good.replace("#", ";#")) == steps
    assert task.reward(problem, good[:-1]) == 0.0
    assert task.reward(problem, problem.answer) == 0.0  # no mark
    assert task.reward(problem, "") == 0.0


@pytest.mark.parametrize("task", [Chains(), Countdown()])
def test_held_out_problems_are_never_trained_on(task):
    train = {task.problems("train")[i].prompt for i in range(800)}
    test = {problem.prompt for problem in task.problems("test")[:200]}
    assert not train & test
    assert len(test) > 50


@settings(deadline=None, max_examples=60)
@given(
    st.builds(Countdown, num_numbers=st.integers(2, 6), max_number=st.integers(1, 20), seed=st.integers(0, 9)), INDICES
)
def test_countdown(task, index):
    problem = task.problems("train")[index]
    assert task.reward(problem, problem.solution) == 1.0
    assert set(problem.prompt + problem.solution) <= set(task.alphabet)
    assert task.reward(problem, problem.solution + "+1") == 0.0
    assert task.reward(problem, problem.answer) == 0.0  # the target itself is not made of the numbers
    assert task.demonstration(problem, 3) == problem.solution


def test_countdown_accepts_any_way():
    task = Countdown()
    problem = next(p for p in (task.problems("train")[i] for i in range(999)) if p.solution.count("+") == 2)
    numbers = problem.prompt.partition("=")[0].split()
    assert task.reward(problem, "+".join(reversed(numbers))) == 1.0
    assert task.reward(problem, "(" + "+".join(numbers) + ")") == 1.0


@settings(deadline=None, max_examples=200)
@given(st.text("0123456789+-*() ", max_size=30))
def test_expressions_agree_with_python(text):
    try:
        value, numbers = evaluate_expression(text)
    except ValueError:
        return
    plain = re.sub(r"\b0+(?=\d)", "", text)  # Python refuses leading zeros
    assert value == eval(plain)
    assert numbers == [int(n) for n in re.findall(r"\d+", text)]


@pytest.mark.parametrize("text", ["", "1+", "(1", "1)", "2**3", "a", "1 2", "()", "-1", "1" * 201, "__import__('os')"])
def test_bad_expressions(text):
    with pytest.raises(ValueError):  # noqa: PT011
        evaluate_expression(text)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (Chains, {"min_steps": 0}, "min_steps"),
        (Chains, {"min_steps": 4, "max_steps": 3}, "min_steps"),
        (Chains, {"modulus": 1}, "modulus"),
        (Chains, {"operators": "/"}, "operators"),
        (Chains, {"noise": 1.5}, "no probability"),
        (Countdown, {"num_numbers": 1}, "2 to 6 numbers"),
    ],
)
def test_wrong_options(kind, options, words):
    with pytest.raises(ValueError, match=words):
        kind(**options)


def test_access_out_of_range():
    problems = Chains(size=3).problems("train")
    assert len(problems) == 3
    with pytest.raises(IndexError):
        problems[3]
    with pytest.raises(ValueError, match="not 'train'"):
        Chains().problems("validation")


@settings(deadline=None)
@given(st.text(Chains().alphabet))
def test_character_tokenizer_round_trip(text):
    tokenizer = CharTokenizer(Chains().alphabet)
    ids = tokenizer.encode(text)
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id, 0]) == text
    assert "".join(tokenizer.piece(i) for i in ids) == text
    assert all(3 <= i < tokenizer.vocab_size for i in ids)


def test_character_tokenizer_names_what_it_cannot_encode():
    with pytest.raises(ValueError, match="'x' is not in the alphabet"):
        CharTokenizer("abc").encode("axb")


def test_first_wrong_step_and_reward_agree_on_the_end():
    task = Chains()
    problem = task.problems("train")[0]
    assert task.first_wrong_step(problem, problem.solution.replace("#", "junk#")) is not None
    assert task.problems("test")[-1] == task.problems("test")[task.test_size - 1]


@pytest.mark.parametrize("task", [Chains(min_steps=1, max_steps=1, modulus=2, operators="*"), Countdown(2, 1)])
def test_too_few_problems_to_hold_some_out(task):
    with pytest.raises(ValueError, match="too few distinct problems"):
        GeneratedProblems(task, "test", 9)[0]
