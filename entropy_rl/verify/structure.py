"""The structure of an answer: lists, sets, tuples, intervals and chains of relations, by bounded string work."""

import dataclasses
import itertools
import re
from collections.abc import Sequence

from entropy_rl.verify.extraction import MAX_ANSWER
from entropy_rl.verify.notation import exact_number, without_unit

MAX_PARTS = 50  # of a list, a tuple or a matrix
MAX_NESTING = 10  # brackets within brackets
MAX_LITERAL = 300  # digits of one number
_OPENING, _CLOSING = "([{", ")]}"
_TOKEN = re.compile(r"\\begin\s*\{[a-zA-Z*]+\}|\\end\s*\{[a-zA-Z*]+\}|\\[a-zA-Z]+|\\.|.", re.S)
_RELATION = re.compile(r"\\(?:le|ge|neq|approx|in)(?![a-zA-Z])|[<>=]")
_CUP = re.compile(r"\\cup(?![a-zA-Z])")
_COMMA, _SEMICOLON = re.compile(","), re.compile(";")
_AND = re.compile(
    r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])"
    r"|(?<=[0-9)\]}])(?:and|or)(?=[A-Za-z(\\\[{0-9-])"
)
# A quantity's name: x, x_1, f(x), S_{ABC}, |AB|, A:B, \angle ABC, \frac{NO}{BO}, (p,q).
_NAME = re.compile(
    r"(?:\\(?:angle|triangle|overline|text|mathbf|vec|frac|alpha|beta|gamma|theta|lambda|mu|phi|omega|Delta"
    r"|operatorname)(?![a-zA-Z])|[A-Za-z]++|_\{(?:[A-Za-z0-9 ]|\\triangle|\\text)*+\}|_[A-Za-z0-9]++|'"
    r"|\([A-Za-z0-9, ]*\)|[|:,(){} /])++"
)
_WORDS_OF_CAPITALS = ("YES", "NO", "ODD", "EVEN", "TRUE", "NONE")
_ONLY_WORDS = re.compile(r"[A-Za-z(][A-Za-z .,;:'\"()!?-]*")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?\s*([A-Z])\s*\)?[.:]?")
FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\neq": "\\neq"}


class Undecided(Exception):
    """Only algebra can tell."""


def too_wild(text: str) -> bool:
    """Whether an answer is beyond what is parsed: long, deeply nested, a tower of powers, a number of 300 digits."""
    if len(text) > MAX_ANSWER or re.search(rf"[0-9]{{{MAX_LITERAL + 1}}}", text) or re.search(r"!\s*!\s*!", text):
        return True
    depth = deepest = 0
    powers: list[bool] = []  # per open bracket, whether it is an exponent
    before = ""
    for token in _TOKEN.findall(text):
        if token == "\\{" or token in _OPENING or token.startswith("\\begin"):
            powers.append(before == "^")
            deepest = max(deepest, len(powers))
        elif (token == "\\}" or token in _CLOSING or token.startswith("\\end")) and powers:
            powers.pop()
        if token == "^":
            depth = max(depth, 1 + sum(powers))
        if token.strip():
            before = token
    return (
        deepest > MAX_NESTING or depth > 2 or any(text.count(sign) > MAX_NESTING for sign in ("|", "!", "\\pm", "\\mp"))
    )


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """``text`` cut at ``separator`` outside of all brackets."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        match = separator.match(text, at) if not depth else None
        if match and match.end() > at:
            parts.append(text[start:at].strip())
            start = at = match.end()
            continue
        token = _TOKEN.match(text, at)[0]  # type: ignore[index]
        if token in ("\\{", "\\langle") or token in _OPENING or token.startswith("\\begin"):
            depth += 1
        elif token in ("\\}", "\\rangle") or token in _CLOSING or token.startswith("\\end"):
            depth = max(0, depth - 1)
        at += len(token)
    parts.append(text[start:].strip())
    return parts


def chain(text: str) -> tuple[list[str], list[str]]:
    """Members and operators of a chain of relations: "a < b = c" -> (a, b, c), (<, =)."""
    members = split(text, _RELATION)
    if len(members) == 1:
        return members, []
    at, operators = 0, []
    for before, after in itertools.pairwise(members):
        at = text.index(before, at) + len(before)
        match = _RELATION.search(text, at)
        assert match is not None
        operators.append(match[0])
        at = match.end()
        at = text.index(after, at) if after else at
    return members, operators


def is_name(text: str) -> bool:
    """Whether a text names a quantity: x, f(x), S_{ABC}, |AB|, A:B."""
    return bool(text) and len(text) <= 60 and _NAME.fullmatch(text) is not None and bool(re.search("[A-Za-z]", text))


def name_key(name: str) -> str:
    """A name without bound variables: f(x) and f(n) are f, f(1) stays."""
    return re.sub(r"\([a-zA-Z]\)|[\s{}]|\\text", "", name)


def _wrapped(text: str, opening: str, closing: str) -> bool:
    """Whether one pair of brackets encloses all of ``text``."""
    if not (text.startswith(opening) and text.endswith(closing)):
        return False
    inner = text[len(opening) : -len(closing)]
    depth = 0
    for token in _TOKEN.findall(inner):
        if token in ("\\{", "\\langle") or token in _OPENING:
            depth += 1
        elif token in ("\\}", "\\rangle") or token in _CLOSING:
            depth -= 1
            if depth < 0:
                return False
    return True


@dataclasses.dataclass(frozen=True)
class Parts:
    """An answer taken apart.

    Attributes:
        kind: "list" and "set" (no order), "tuple", "interval", "one".
        items: the parts; of "one", the text itself.
        brackets: of a tuple or interval.
    """

    kind: str
    items: tuple[str, ...]
    brackets: str = ""


def _signs(text: str) -> list[str]:
    if "\\pm" not in text and "\\mp" not in text:
        return [text]
    upper = re.sub(r"\\pm(?![a-zA-Z])", "+", re.sub(r"\\mp(?![a-zA-Z])", "-", text))
    lower = re.sub(r"\\pm(?![a-zA-Z])", "-", re.sub(r"\\mp(?![a-zA-Z])", "+", text))
    return [upper.strip().removeprefix("+").strip(), lower.strip()]


def _items(text: str) -> list[str]:
    items = [item for part in split(text, _AND) for item in split(part, _COMMA)]
    items = [signed for item in items if item for signed in _signs(item)]
    if len(items) > MAX_PARTS:
        raise Undecided
    return items


def take_apart(text: str) -> Parts:
    """The structure of a cleaned answer."""
    groups = [group for group in split(text, _SEMICOLON) if _items(group)]
    if len(groups) > 1:
        values = [_items(group) for group in groups]
        if any(len(value) > 1 for value in values):  # "p=5,q=2; p=7,q=2"
            return Parts("list", tuple("(" + ",".join(value) + ")" for value in values))
        return Parts("list", tuple(value[0] for value in values))
    if exact_number(without_unit(text).text) is None:
        items = _items(text)
        if len(items) > 1:
            return Parts("list", tuple(items))
    for opening, closing in (("\\{", "\\}"), ("{", "}")):
        if _wrapped(text, opening, closing):
            inside = text[len(opening) : -len(closing)].strip()
            items = [item for group in split(inside, _SEMICOLON) for item in _items(group)] if inside else []
            if opening == "\\{" or len(items) > 1:
                return Parts("one", (text,)) if re.search(r"\\mid|\||:", inside) else Parts("set", tuple(items))
            return take_apart(inside) if inside else Parts("set", ())
    ends = text[:1] + text[-1:]
    if ends in ("()", "[]", "(]", "[)") and _wrapped(text, text[:1], text[-1:]):
        separator = _SEMICOLON if len(split(text[1:-1], _SEMICOLON)) > 1 else _COMMA
        items = split(text[1:-1], separator)
        if len(items) > MAX_PARTS:
            raise Undecided
        if len(items) == 2:
            return Parts("interval", tuple(items), ends)
        if len(items) > 2:
            return Parts("tuple", tuple(items), ends)
        if ends == "()":
            return take_apart(items[0]) if items[0] else Parts("one", (text,))
    return Parts("one", (text,))


def as_words(text: str) -> str | None:
    """An answer in words, folded: letters only, lower case but for a single choice letter; None for anything else."""
    bare = _TEXT.sub(r"\1", text).strip()
    if not _ONLY_WORDS.fullmatch(bare):
        return None
    match = _CHOICE.fullmatch(bare)
    if match:
        return match[1]
    if (
        bare.isupper()
        and len(bare) < 5
        and "\\text" not in text
        and bare not in ("YES", "NO", "ODD", "EVEN", "TRUE", "NONE")
    ):
        return bare  # points or variables rather than a word
    bare = re.sub(r"(?<=[a-z]{3})s\b", "", bare)  # "no solutions"
    if not re.search(r"[A-Za-z]{3}", bare) and "\\text" not in text:
        return None
    return re.sub(r"[^a-z]", "", re.sub(r"\b(?:the|a|an)\b", "", bare.lower())) or None


def named_value(text: str, *, gold_side: bool) -> str | None:
    """Of "x = 5" or "x \\in S" what follows the name; a text without relation itself; None for other relations."""
    members, operators = chain(text)
    if not operators:
        return text
    if "\\approx" in operators:  # the exact side, unless that is a name
        cut = operators.index("\\approx")
        exact = _join(members[: cut + 1], operators[:cut])
        if not is_name(exact):
            return named_value(exact, gold_side=gold_side)
        members, operators = [members[0], *members[cut + 1 :]], ["=", *operators[cut + 1 :]]
    if operators == ["\\in"] and is_name(members[0]):
        return members[1]
    if set(operators) == {"="} and len(members) == 2 and (order := _order(members[0])) is not None:
        value = take_apart(members[1])
        if len(value.items) == len(order) and value.kind in ("interval", "tuple"):
            return "(" + ",".join(value.items[i] for i in order) + ")"
        return None
    if set(operators) == {"="}:
        if not gold_side and _SUM_OF_NAMES.fullmatch(members[0]):  # "m + n = 12"
            return members[-1]
        if any(map(is_name, members[:-1])) and (gold_side or is_name(members[0])):
            return members[-1]
        if gold_side and all(exact_number(member) is not None for member in members):
            return members[-1]
    return None


_SUM_OF_NAMES = re.compile(r"[a-zA-Z](?: ?\+ ?[a-zA-Z])+")


def _order(names: str) -> list[int] | None:
    """Of "(y, x)", a tuple of names out of alphabetical order, the places of its names in that order; else None."""
    match = re.fullmatch(r"\(\s*([A-Za-z](?:\s*,\s*[A-Za-z])+)\s*\)", names)
    letters = [letter.strip() for letter in match[1].split(",")] if match else []
    if letters == sorted(letters):
        return None
    return sorted(range(len(letters)), key=letters.__getitem__)


def _join(members: Sequence[str], operators: Sequence[str]) -> str:
    return "".join(f"{member}{operator} " for member, operator in zip(members, [*operators, ""], strict=True)).strip()


def as_union(text: str) -> list[str] | None:
    """The parts of a union: of intervals and sets joined by \\cup, or of inequalities joined by "or"; else None."""
    parts = split(text, _CUP)
    if len(parts) > 1:
        return parts
    try:
        items = _items(text)
    except Undecided:
        return None
    if len(items) < 2 or not all(map(is_inequality, items)) or not re.search(r"or|,", text):
        return None
    intervals = [interval_of(item) for item in items]
    return [f"{i.brackets[0]}{i.items[0]},{i.items[1]}{i.brackets[1]}" for i in intervals if i is not None]


def is_inequality(text: str) -> bool:
    """Whether a text is a chain of nothing but <, >, \\le and \\ge."""
    operators = chain(text)[1]
    return bool(operators) and all(op in ("<", ">", "\\le", "\\ge") for op in operators)


def interval_of(text: str) -> Parts | None:
    """The interval an inequality in a name describes: "1 < x \\le 2", "x > 5"."""
    members, operators = chain(text)
    if operators[0] in (">", "\\ge"):
        members, operators = members[::-1], [FLIPPED[op] for op in operators[::-1]]
    if any(op not in ("<", "\\le") for op in operators):
        return None
    opening, closing = ["(" if operators[0] == "<" else "[", ")" if operators[-1] == "<" else "]"]
    if len(operators) == 2 and is_name(members[1]):
        return Parts("interval", (members[0], members[2]), opening + closing)
    if len(operators) == 1 and is_name(members[0]):
        return Parts("interval", ("-\\infty", members[1]), "(" + closing)
    if len(operators) == 1 and is_name(members[1]):
        return Parts("interval", (members[0], "\\infty"), opening + ")")
    return None
