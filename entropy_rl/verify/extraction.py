"""The final answer of a response: a marked place in it, found by bounded scans.

Nothing here evaluates or parses mathematics; every function is linear in the text's length.
"""

import re
from collections.abc import Sequence

EXTRACTORS = ("boxed", "####", "answer is")
MAX_RESPONSE = 200_000  # characters from the end that are looked at; a final answer stands there
MAX_ANSWER = 1000  # characters; no answer anybody asked for is longer
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# What may stand between boxes that are one answer: "\boxed{1}, \boxed{2} and $y = \boxed{3}$".
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.]|\\[\]\[()!]|\\q?quad|\\text\s*\{[^{}]{0,40}\b(?:and|or)\s*\}|\b(?:and|or)\b|[A-Za-z]_?\{?\d?\}?\s*=)*"
)
_MATH = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|(?<!\\)\$((?:\\.|[^$\n\\])+)\$|\\\(([^\n]+?)\\\)", re.S)
_OPENING = re.compile(r"(?:[\s*:]|\\?[\"'])*")
_FINAL = re.compile(r"final answer is:?[ \t]*", re.I)
_FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "frac", "and", "inf", "or", "pi", "ln"}
_AND = re.compile(r"\s*(?:,|;|,?\s*(?:and|or)\b)?\s*")
# "1,234.5", "3/4", "-.5", "1 000", with the sign of a percentage.
_NUMBER = re.compile(
    r"(?<![\w\\])-?(?:[0-9]{1,3}(?:[, ][0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:[.,][0-9]+)?|\.[0-9]+)"
    r"(?:/[0-9]+)?(?:\s*\\?%)?"
)
_SENTENCE_END = re.compile(
    r"\.(?:\s|$)|[;:](?:\s|$)|,\s+(?!and\b|or\b)[A-Za-z]{2,}[\s.]|\s*<[|/]|\s+\((?=[A-Za-z]{2})|\s+[\u2013\u2014-]+\s+[A-Za-z]"
    r"|,?\s+(?:because|since|which|where|so|as)\b"
)
_DIGIT = re.compile("[0-9]")
_JOINED = re.compile(r"(?<=[0-9)}\]])(?:or|and)(?=[A-Za-z(\\])")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, contents) of every ``\\boxed{...}`` and ``\\fbox{...}`` at the outer level, brackets balanced.

    An unclosed box ends the list: nothing behind it is at the outer level.
    """
    found, at, plain = [], 0, 0
    while (match := _BOX.search(text, at)) is not None:
        close = _close(text, match.end(), _BRACKET)
        if close is None and plain < _MOST_PLAIN:  # "\\boxed{185\\}": the escaped bracket closes it
            plain += 1
            close = _close(text[: match.end() + MAX_ANSWER], match.end(), _ANY_BRACKET)
        if close is None:
            break
        found.append((match.start(), close + 1, text[match.end() : close]))
        at = close + 1
    return found


_BRACKET, _ANY_BRACKET = re.compile(r"\\.|[{}]", re.S), re.compile(r"[{}]")
_MOST_PLAIN = 20  # boxes of a text whose bracket may be looked for twice


def _close(text: str, at: int, brackets: re.Pattern[str]) -> int | None:
    """Where the bracket opened before ``at`` is closed; None where it is not, or only far away."""
    depth = 1
    for bracket in brackets.finditer(text, at, at + 20 * MAX_ANSWER):
        depth += {"{": 1, "}": -1}.get(bracket[0], 0)  # "\\{" and "\\}" are text
        if not depth:
            return bracket.start()
    return None


def last_boxes(text: str) -> list[str]:
    """Contents of the last box and of those before it that only "," or "and" separates from it, in order.

    A response's answer is the last of them; where the gold answer has several parts, it may be all of them together.
    """
    found = boxes(text)
    run = found[-1:]
    for box in reversed(found[:-1]):
        if len(run) >= 20 or not _BETWEEN_BOXES.fullmatch(text[box[1] : run[0][0]][:200]):
            break
        run.insert(0, box)
    return [contents for _, _, contents in run]


def _maths(text: str) -> str | None:
    """Contents of the formula ``text`` begins with, those that "," or "and" joins to it included."""
    parts: list[str] = []
    at = 0
    while (match := _MATH.match(text, at)) is not None:
        parts.append(next(group for group in match.groups() if group is not None).strip())
        at = _AND.match(text, match.end()).end()  # type: ignore[union-attr]
    return ", ".join(parts) if parts else None


def _after_mark(text: str) -> str:
    """The answer at the beginning of ``text``, which follows a mark: a formula, or words up to the sentence's end."""
    line = _OPENING.sub("", text, count=1)
    display = line.startswith(("$$", "\\["))
    formula = _maths(line[: 2 * MAX_ANSWER] if display else line.partition("\n")[0][: 2 * MAX_ANSWER])
    if formula is not None:
        return formula
    line = line.partition("\n")[0][: 2 * MAX_ANSWER]
    end = _SENTENCE_END.search(line)
    return (line[: end.start()] if end else line).strip()


def _marked(mark: str) -> re.Pattern[str]:
    before = r"(?<![A-Za-z])" if mark[0].isalnum() else ""
    return re.compile(before + re.escape(mark), re.I)


def _unmarked(text: str) -> str | None:
    """The last line, or a displayed formula at the end; of prose only its last formula or number."""
    text = text.strip()
    if not text:
        return None
    display = list(_MATH.finditer(text[-4 * MAX_ANSWER :]))
    if display and display[-1].end() == len(text[-4 * MAX_ANSWER :].rstrip(". ")) and "\n" in display[-1][0]:
        return _maths(display[-1][0])
    line = text.rpartition("\n")[2][-4 * MAX_ANSWER :]
    words = {word.lower() for word in _WORD.findall(_JOINED.sub(" ", line))} - _FUNCTIONS
    prose = len(words) > 1 or (any(len(word) > 2 for word in words) and _DIGIT.search(line) is not None)
    if len(line) <= MAX_ANSWER and not prose and not _MATH.search(line):
        return line
    formulas = list(_MATH.finditer(line))
    numbers = list(_NUMBER.finditer(line))
    if formulas and (not numbers or numbers[-1].start() < formulas[-1].end()):
        first = len(formulas) - 1  # the formulas joined to the last one belong to it
        while first and _AND.fullmatch(line[formulas[first - 1].end() : formulas[first].start()]):
            first -= 1
        formula = _maths(line[formulas[first].start() :]) or ""
        braces = re.fullmatch(r"\{([^{}]*[^{}\\])\}", formula)  # which a formula does not show
        return braces[1] if braces else formula
    return numbers[-1][0] if numbers else None


def _declared(text: str) -> str | None:
    """The formula or number a "final answer is" in ``text`` declares."""
    matches = list(_FINAL.finditer(text))
    if not matches:
        return None
    answer = _after_mark(text[matches[-1].end() :][: 4 * MAX_ANSWER])
    return answer if answer and len(set(_WORD.findall(answer)) - _FUNCTIONS) < 2 and _DIGIT.search(answer) else None


def extract_answer(response: str, *, extract: Sequence[str] = EXTRACTORS, allow_unboxed: bool = False) -> str | None:
    """The final answer a response marks, or None.

    The first mark of ``extract`` that occurs decides, at its last occurrence: "boxed" is ``\\boxed{...}`` (or
    ``\\fbox``) at the outer level; anything else is a text, upper and lower case alike, that the answer follows on the
    same line or the next ("####", "answer is", "A:"). A formula or number that "the final answer is" declares behind
    the last box corrects it, if "answer is" is among the marks. Where a response closes its reasoning with
    ``</think>``, only what follows counts. Only the last 200,000 characters are read.

    Args:
        response: the policy's text.
        extract: the marks, in order of precedence.
        allow_unboxed: whether an unmarked response may end in its answer: its last line if that is no prose, or that
            line's last formula or number.
    """
    text = response[-MAX_RESPONSE:].rpartition("</think>")[2]
    for kind in extract:
        if kind == "boxed":
            found = boxes(text)
            answer = found[-1][2] if found else None
            if found and "answer is" in extract and (final := _declared(text[found[-1][1] :])) is not None:
                return final
        else:
            matches = list(_marked(kind).finditer(text))
            answer = _after_mark(text[matches[-1].end() :][: 4 * MAX_ANSWER]) if matches else None
        if answer is not None:
            return answer.strip()
    return _unmarked(text) if allow_unboxed else None
