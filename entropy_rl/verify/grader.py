"""A grader for numeric answers: extracts the final answer, then compares exact rationals.

It reads untrusted text with bounded patterns only: no evaluation, no symbolic algebra, nothing that can hang.
"""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

EXTRACTORS = ("boxed", "####", "answer is")
_MAX_ANSWER = 200  # characters; longer ones are no numbers anybody asked for
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = re.compile(rf"[+-]?(?:{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+)")
_RATIO = re.compile(r"([^/]+)/([^/]+)")
_FRACTION = re.compile(r"([+-]?)\\[dt]?frac(?:\{([^{}]*)\}|([0-9]))(?:\{([^{}]*)\}|([0-9]))")
_MIXED = re.compile(r"([+-]?)([0-9]+)(?: +([0-9]+)/([0-9]+)| *\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\})")
# A number, then words that hold no digit and no further claim: "18 dollars", "18, because x".
_WITH_WORDS = re.compile(
    r"([+-]?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?:/[0-9]+)?)(?:[ ,;€£]|\.(?![0-9]))[^0-9=<>%+*/^\\]*"
)
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mbox)\{[^{}0-9]*\}")
_MARKED = {"####": re.compile(r"####[ \t]*([^\n]*)"), "answer is": re.compile(r"answer is:?[ \t]*([^\n]*)", re.I)}
_NUMBER_IN_TEXT = re.compile(r"-?(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?")


def _last_boxed(text: str) -> str | None:
    """Contents of the last ``\\boxed{...}`` at the outer level, brackets balanced; None where there is none."""
    found, at = None, 0
    while (at := text.find("\\boxed{", at)) >= 0:
        depth, end = 1, at + len("\\boxed{")
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            break
        found, at = text[at + len("\\boxed{") : end - 1], end
    return found


def extract_answer(response: str, *, extract: Sequence[str] = EXTRACTORS, allow_unboxed: bool = False) -> str | None:
    """The final answer a response marks, or None.

    The first mark of ``extract`` that occurs decides, at its last occurrence: "boxed" (``\\boxed{...}``), "####" (rest
    of the line), "answer is" (rest of the line). With ``allow_unboxed`` an unmarked response gives its last number.
    """
    for kind in extract:
        if kind == "boxed":
            answer = _last_boxed(response)
        else:
            matches = _MARKED[kind].findall(response)
            answer = matches[-1] if matches else None
        if answer is not None:
            return answer.strip()
    numbers = _NUMBER_IN_TEXT.findall(response) if allow_unboxed else []
    return numbers[-1] if numbers else None


def _plain(text: str) -> str:
    """Without dollar signs, LaTeX spacing, surrounding blanks and a closing full stop."""
    text = text.replace("{,}", ",").replace("\\$", "").replace("$", "").replace("**", "").replace("\u2212", "-")
    text = _TEXT_COMMAND.sub("", text)
    text = re.sub(r"\\[,!;: ]|\\left|\\right", "", text).strip()
    return text.removesuffix(".").strip()


def _decimal(text: str) -> Fraction | None:
    text = text.strip()
    return Fraction(text.replace(",", "")) if _DECIMAL.fullmatch(text) else None


def parse_number(text: str) -> Fraction | None:
    """An exact rational: integer, decimal, thousands separators, a/b, ``\\frac{a}{b}``, mixed; None for anything else.

    Only ASCII digits count; a zero denominator and text longer than 200 characters give None.
    """
    text = _plain(text) if len(text) <= _MAX_ANSWER else ""
    number = _decimal(text)
    if number is not None:
        return number
    sign = 1
    if match := _MIXED.fullmatch(text):
        over, under = int(match[3] or match[5]), int(match[4] or match[6])
        return None if not under else (-1 if match[1] == "-" else 1) * (int(match[2]) + Fraction(over, under))
    if match := _FRACTION.fullmatch(text):
        sign = -1 if match[1] == "-" else 1
        top, bottom = match[2] or match[3] or "", match[4] or match[5] or ""
    elif match := _RATIO.fullmatch(text):
        top, bottom = match[1], match[2]
    else:
        return None
    numerator, denominator = _decimal(top), _decimal(bottom)
    return sign * numerator / denominator if numerator is not None and denominator else None


def _number_with_words(answer: str) -> Fraction | None:
    """``parse_number``, also of a number that only words follow: "18 dollars", "18, because of that"."""
    number = parse_number(answer)
    if number is None and (match := _WITH_WORDS.fullmatch(_plain(answer[: 4 * _MAX_ANSWER]))):
        number = parse_number(match[1])
    return number


class Grader:
    """Grades responses against gold answers: 1.0 where the final answer is the same number, else 0.0.

    A gold answer that is no number is compared as text, blanks aside. Usable as a context manager.

    Attributes:
        extract: which marks are looked for, in order of precedence; see ``extract_answer``.
        allow_unboxed: whether the last number of an unmarked response counts as its answer.
    """

    def __init__(self, *, extract: Sequence[str] = EXTRACTORS, allow_unboxed: bool = False):
        for kind in extract:
            if kind not in EXTRACTORS:
                raise ValueError(f"extract {kind!r} is not one of {', '.join(EXTRACTORS)}")
        self.extract, self.allow_unboxed = tuple(extract), allow_unboxed

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def answer(self, response: str) -> str | None:
        """The final answer as ``grade`` reads it, or None."""
        return extract_answer(response, extract=self.extract, allow_unboxed=self.allow_unboxed) or None

    def grade(self, gold: str, response: str) -> float:
        """1.0 or 0.0."""
        answer = self.answer(response)
        if answer is None:
            return 0.0
        gold = extract_answer(gold) or gold  # a gold answer may be marked itself
        expected = parse_number(gold)
        if expected is not None:
            return float(_number_with_words(answer) == expected)
        return float("".join(_plain(answer).split()) == "".join(_plain(gold).split()))

    def grade_many(self, golds: Iterable[str], responses: Iterable[str]) -> list[float]:
        """``grade`` of each pair."""
        return [self.grade(gold, response) for gold, response in zip(golds, responses, strict=True)]
