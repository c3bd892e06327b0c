"""Whether two answers are the same: their structure here, numbers exactly, expressions by a function that is passed in.

The structure of an answer is a list ("1, 2", "1 or 2", "\\pm 3"), a set, a tuple, an interval, a matrix, an equation
("x = 5" is the value of x), an inequality, a text or one expression. What this file cannot decide it gives to
``algebra``, which may be slow or hang and therefore runs in a worker; everything here is bounded string work.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from entropy_rl.verify.notation import (
    comma_decimal,
    decimal_places,
    exact_number,
    rounds_to,
    spaced_thousands,
    tight,
    units_agree,
    without_unit,
)
from entropy_rl.verify.structure import (
    FLIPPED,
    MAX_PARTS,
    Parts,
    Undecided,
    as_union,
    as_words,
    chain,
    interval_of,
    is_inequality,
    is_name,
    name_key,
    named_value,
    split,
    take_apart,
)

_ROW, _CELL = re.compile(r"\\\\(?:\[[^\[\]]*\])?"), re.compile("&")
_MATRIX = re.compile(
    r"(?:\\?\[|\()?\s*\\begin\s*\{([pbB]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\s*\{\1\}\s*(?:\\?\]|\))?", re.S
)
_CLOSED_INFINITY = re.compile(r"\[ ?-\\infty|\\infty ?\]")
_THOUSANDS_LIST = re.compile(r"-?[0-9]+(?:,[0-9]+)+")
_TIME = re.compile(r"([0-9]{1,2}):([0-9]{2})\s*(?:\\text\s*\{)?\s*(?:([apAP])\.?\s?[mM]\.?)?\s*\}?")
_CHOICE_WITH_TEXT = re.compile(r"(?:\\text\s*\{)?\s*\(([A-J])\)\s*\}?[.:]?\s+\S.*")
_MOST_COMPARISONS = 5000  # of parts, for one pair of answers
_DEEPEST = 12


class Algebra:
    """What may be slow; this one only says that it is needed. Methods get cleaned LaTeX."""

    def same_expression(self, first: str, second: str) -> bool:
        """Whether two expressions have the same value wherever both are real (or complex) numbers."""
        raise Undecided

    def same_up_to_factor(self, first: str, second: str, *, positive: bool) -> bool:
        """Whether ``first`` is ``second`` times a constant, a positive one if so asked."""
        raise Undecided

    def same_object(self, first: str, second: str) -> bool:
        """Whether two answers of no kind known here are equal."""
        raise Undecided

    def equals_decimal(self, expression: str, decimal: str, places: int) -> bool:
        """Whether an expression that is no rational is ``decimal`` when rounded to ``places`` digits."""
        raise Undecided


def _names(items: Sequence[str]) -> list[str]:
    """What each part is a value of, "" where that is not said."""
    return [name_key(item.partition("=")[0]) if "=" in item else "" for item in items]


def _numeric(items: Sequence[str]) -> bool:
    return all(exact_number(without_unit(item).text) is not None for item in items)


class Comparison:
    """Compares two answers; ``algebra`` decides about expressions."""

    def __init__(self, algebra: Algebra):
        self._algebra = algebra
        self._left = self._depth = 0

    def equal(self, gold: str, answer: str) -> bool:
        """Whether two answers, cleaned, are the same. Raises Undecided where ``algebra`` does."""
        self._left, self._depth = _MOST_COMPARISONS, 0
        return self._same(gold, answer)

    def _same(self, gold: str, answer: str) -> bool:
        self._left -= 1
        if self._left < 0 or self._depth > _DEEPEST:  # lists of lists of lists
            return False
        self._depth += 1
        try:
            return self._same_texts(gold, answer)
        finally:
            self._depth -= 1

    def _same_texts(self, gold: str, answer: str) -> bool:
        if tight(gold) == tight(answer):
            return bool(gold)
        return self._values(gold, answer)

    # --- Names, lists and brackets.

    def _values(self, gold: str, answer: str) -> bool:
        first, second = take_apart(gold), take_apart(answer)
        unions = as_union(gold), as_union(answer)
        if any(unions):
            return self._unions(gold, answer, unions[0] or [gold], unions[1] or [answer])
        if first.kind == "one" and second.kind == "one":
            return self._one(first.items[0], second.items[0])
        decimal = self._comma_decimals(gold, answer)
        if decimal is not None:
            return decimal
        if "one" in (first.kind, second.kind):
            return self._one_and_many(gold, answer, first, second)
        if "interval" in (first.kind, second.kind) or "tuple" in (first.kind, second.kind):
            return self._ordered(first, second)
        return self._unordered(first, second)

    def _unions(self, gold: str, answer: str, golds: Sequence[str], answers: Sequence[str]) -> bool:
        """Unions of intervals and sets, part by part; else by algebra, if every part is one."""
        golds, answers = ([named_value(part, gold_side=True) or part for part in parts] for parts in (golds, answers))
        if len(golds) == len(answers) and self._match(golds, answers, self._same):
            return True
        if bool(_CLOSED_INFINITY.search(gold)) != bool(_CLOSED_INFINITY.search(answer)):
            return False
        plain = [part for part in (*golds, *answers) if "\\mathbb" not in part and not is_inequality(part)]
        kinds = {take_apart(part).kind for part in plain}
        return kinds <= {"interval", "set"} and self._algebra.same_object(gold, answer)

    def _one_and_many(self, gold: str, answer: str, first: Parts, second: Parts) -> bool:
        one, many, other = (first, second, answer) if first.kind == "one" else (second, first, gold)
        text = one.items[0]
        single = named_value(text, gold_side=one is first)
        if single is not None and single != text:
            if many.kind == "list" and take_apart(single).kind in ("interval", "tuple"):  # "x \\in [1,2]" is no "1, 2"
                return False
            return self._same(single, other) if one is first else self._same(other, single)
        if is_inequality(text):
            interval = interval_of(text)
            if many.kind == "interval" and interval is not None:
                return self._ordered(interval, many)
            return many.kind == "interval" and self._algebra.same_object(gold, answer)
        if "\\begin" in text:
            return self._algebra.same_object(gold, answer)
        digits = _THOUSANDS_LIST.fullmatch(text)
        if digits and many.kind == "list" and _numeric(many.items):  # "60,120" beside two numbers
            numbers = f"\\{{{digits[0]}\\}}"
            return self._same(numbers, other) if one is first else self._same(other, numbers)
        if many.kind in ("list", "set"):
            if len(many.items) == 1 and "emptyset" not in gold + answer:
                return self._same(text, many.items[0]) if one is first else self._same(many.items[0], text)
            if re.search(r"\\(?:mathbb|mid|setminus|cap|ldots|cdots)", text):
                return self._algebra.same_object(gold, answer)
        return False

    def _ordered(self, first: Parts, second: Parts) -> bool:
        if len(first.items) != len(second.items):
            return False
        if "set" in (first.kind, second.kind):  # an ordered pair is no set
            return False
        if first.brackets and second.brackets and first.brackets != second.brackets:
            return False
        if "list" in (first.kind, second.kind):  # "1, 2" may be short for (1, 2), and "x = 1, y = 2" is
            bare, brackets = (first, second.brackets) if first.kind == "list" else (second, first.brackets)
            names = _names(bare.items)
            if brackets != "()" or (any(names) and not (all(names) and len(set(names)) == len(names))):
                return False
            if any(names):
                items = tuple(item for _, item in sorted(zip(names, bare.items, strict=True)))
                first, second = (Parts("tuple", items), second) if bare is first else (first, Parts("tuple", items))
        return all(self._part(a, b) for a, b in zip(first.items, second.items, strict=True))

    def _part(self, gold: str, answer: str) -> bool:
        gold = named_value(gold, gold_side=True) or gold
        return self._same(gold, named_value(answer, gold_side=True) or answer)

    def _unordered(self, first: Parts, second: Parts) -> bool:
        golds, answers = first.items, second.items
        nested = any(take_apart(item).kind in ("interval", "tuple") for item in (*golds, *answers))
        if nested or "set" in (first.kind, second.kind):  # of solutions, one that is repeated is one
            golds, answers = (tuple({tight(item): item for item in items}.values()) for items in (golds, answers))
        if len(golds) != len(answers):
            return False
        named = [_names(items) for items in (golds, answers)]
        if all(named[0]) != all(named[1]) and len(set(named[0] if all(named[0]) else named[1])) == len(golds):
            return all(self._part(g, a) for g, a in zip(golds, answers, strict=True))  # "x = 1, y = 2" and "1, 2"
        if all(named[0]) and all(named[1]) and len(set(named[0])) == len(golds):
            return self._match(golds, answers, self._same)
        return self._match(golds, answers, self._part)

    @staticmethod
    def _match(golds: Sequence[str], answers: Sequence[str], same: Callable[[str, str], bool]) -> bool:
        left = list(answers)
        undecided = False
        for gold in golds:
            for index, answer in enumerate(left):
                try:
                    if same(gold, answer):
                        del left[index]
                        break
                except Undecided:
                    undecided = True
            else:
                if undecided:
                    raise Undecided
                return False
        return True

    def _comma_decimals(self, gold: str, answer: str) -> bool | None:
        """Whether "2,74" is 2.74; None where neither can be a decimal with a comma."""
        first, second = comma_decimal(without_unit(gold).text), comma_decimal(without_unit(answer).text)
        if (first is None) == (second is None):
            return None
        other = exact_number(without_unit(answer if first is not None else gold).text)
        return None if other is None else other == (first if first is not None else second)

    # --- Equations and inequalities.

    def _relations(self, gold: str, answer: str) -> bool:
        (lefts, first), (rights, second) = chain(gold), chain(answer)
        if not {*first, *second} <= FLIPPED.keys():
            return self._algebra.same_object(gold, answer)
        if first[0] in (">", "\\ge"):
            lefts, first = lefts[::-1], [FLIPPED[op] for op in first[::-1]]
        if second[0] in (">", "\\ge"):
            rights, second = rights[::-1], [FLIPPED[op] for op in second[::-1]]
        if first != second:
            return False if len(first) == len(second) == 1 else self._algebra.same_object(gold, answer)
        if len(first) > 1:
            if all(self._same(a, b) for a, b in zip(lefts, rights, strict=True)):
                return True
            return False if set(first) != {"="} else self._same(lefts[-1], rights[-1])
        differences = (f"({lefts[0]})-({lefts[1]})", f"({rights[0]})-({rights[1]})")
        return self._algebra.same_up_to_factor(*differences, positive=first[0] in ("<", "\\le"))

    # --- One value.

    def _one(self, gold: str, answer: str) -> bool:
        (_, first), (_, second) = chain(gold), chain(answer)
        if first or second:
            return self._one_with_relation(gold, answer, bool(first), bool(second))
        if tight(gold) == tight(answer):
            return True
        matrices = _MATRIX.fullmatch(gold), _MATRIX.fullmatch(answer)
        if any(matrices):
            return self._matrices(gold, answer, *matrices)
        if "\\begin" in gold or "\\begin" in answer:
            return self._algebra.same_object(gold, answer)
        return self._expressions(gold, answer)

    def _one_with_relation(self, gold: str, answer: str, gold_relation: bool, answer_relation: bool) -> bool:
        value, given = named_value(gold, gold_side=True), named_value(answer, gold_side=False)
        if gold_relation and answer_relation:
            if value is not None and given is not None:
                names = [name_key(chain(text)[0][0]) for text in (gold, answer)]
                graph = "y" in names and bool({"f", "g", "h"} & {*names})  # y = x^2 and f(x) = x^2
                if names[0] == names[1] or not all(map(is_name, names)) or graph:
                    return self._same(value, given)
            members = chain(answer)[0]
            if value is not None and given is None and all(exact_number(m) is not None for m in members):
                return all(self._same(value, member) for member in members)
            if is_inequality(gold) != is_inequality(answer):
                if "\\in" in (*chain(gold)[1], *chain(answer)[1]):
                    return self._same(value or gold, given or answer)
                return False
            return self._relations(gold, answer)
        if answer_relation:
            if given is not None:
                return self._same(gold, given)
            if is_inequality(answer):
                return self._algebra.same_object(gold, answer) if "\\cup" in gold else False
            members, operators = chain(answer)
            return set(operators) == {"="} and all(self._same(gold, member) for member in members)  # "6 \cdot 7 = 42"
        if value is not None:
            return self._same(value, answer)
        if is_inequality(gold) and "\\cup" in answer:
            return self._algebra.same_object(gold, answer)
        return False

    def _matrices(self, gold: str, answer: str, first: re.Match[str] | None, second: re.Match[str] | None) -> bool:
        if first is None or second is None or "\\begin" in first[2] + second[2]:
            if "\\begin" in gold and "\\begin" in answer:
                return self._algebra.same_object(gold, answer)
            return False
        cells = []
        for match in (first, second):
            rows = [split(row, _CELL) for row in split(match[2], _ROW) if row.strip()]
            if sum(map(len, rows)) > MAX_PARTS:
                raise Undecided
            cells.append(rows)
        if [len(row) for row in cells[0]] != [len(row) for row in cells[1]]:
            return False
        return all(self._same(a, b) for rows in zip(*cells, strict=True) for a, b in zip(*rows, strict=True))

    def _expressions(self, gold: str, answer: str) -> bool:
        words = as_words(gold), as_words(answer)
        if all(words):
            return words[0] == words[1]
        if (choice := _CHOICE_WITH_TEXT.fullmatch(answer)) and re.fullmatch("[A-J]", words[0] or ""):
            return choice[1] == words[0]
        first_time, second_time = _TIME.fullmatch(gold), _TIME.fullmatch(answer)
        if first_time and second_time:
            halves = [(time[3] or "").lower() for time in (first_time, second_time)]
            same = all(int(first_time[i]) == int(second_time[i]) for i in (1, 2))
            return same and (not all(halves) or halves[0] == halves[1])
        number = exact_number(spaced_thousands(without_unit(gold).text))
        first, second = without_unit(gold), without_unit(answer, letters=number is not None)
        if not units_agree(first, second):
            return False
        gold, answer = first.text, second.text
        if tight(gold) == tight(answer):
            return bool(gold)
        if any(words) and number is None and not re.search("[0-9]", gold + answer):
            # A word and an expression: "\text{e}" is e, "odd" is no product.
            return "".join((words[0] or gold).split()) == "".join((words[1] or answer).split())
        numbers = [exact_number(spaced_thousands(side)) for side in (gold, answer)]
        places = [decimal_places(side) for side in (gold, answer)]
        if numbers[0] is not None and numbers[1] is not None:
            if places[1] is not None and places[0] is None and rounds_to(numbers[0], numbers[1], places[1]):
                return True
            if places[0] is not None and places[1] is None and rounds_to(numbers[1], numbers[0], places[0]):
                return True
            return numbers[0] == numbers[1]
        decimal = self._comma_decimals(gold, answer)
        if decimal is not None:
            return decimal
        if ":" in gold + answer:
            return self._ratios(gold, answer)
        if any(words) or _unlike(gold, answer):
            return False
        if self._algebra.same_expression(gold, answer):
            return True
        if places[0] is not None or places[1] is not None:
            side = 0 if places[0] is not None else 1
            other, literal, digits = (answer, gold, places[0]) if side == 0 else (gold, answer, places[1])
            assert digits is not None
            return self._algebra.equals_decimal(other, literal, digits)
        return False

    def _ratios(self, gold: str, answer: str) -> bool:
        """3:2 is 6:4, and 3/2; what may be a time of the day is only itself."""
        if any(_TIME.fullmatch(side) and int(side.partition(":")[2][:2]) < 60 for side in (gold, answer)):
            return [exact_number(part) for part in gold.split(":")] == [
                exact_number(part) for part in answer.split(":")
            ]
        sides = [[exact_number(part) for part in side.split(":")] for side in (gold, answer)]
        numbers = [[part for part in side if part is not None] for side in sides]
        if any(len(own) != len(side) for own, side in zip(numbers, sides, strict=True)):
            return False
        first, second = ([*own, Fraction(1)] if len(own) == 1 else own for own in numbers)
        return len(first) == len(second) and all(
            a * second[0] == b * first[0] and (a == 0) == (b == 0) for a, b in zip(first, second, strict=True)
        )


def _unlike(gold: str, answer: str) -> bool:
    """Whether expressions differ in what the parser drops: primes, transposes, digits apart, subscripts of numbers."""
    for mark in (r"'", r"\^\s*\{?\s*T\b", r"\\Pi(?![a-z])", r"\\(?:[dl]|c)?dots|\.\.\."):
        if len(re.findall(mark, gold)) != len(re.findall(mark, answer)):
            return True
    return any(
        re.search(r"(?<![_^0-9.])[0-9]+ +[0-9]", text) or re.match(r"[0-9A-F]+\s*_", text) for text in (gold, answer)
    )


def quick_verdict(gold: str, answer: str) -> bool | None:
    """Whether two cleaned answers are the same, where that needs no algebra; None otherwise."""
    try:
        return Comparison(Algebra()).equal(gold, answer)
    except Undecided:
        return None
