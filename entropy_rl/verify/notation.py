"""One spelling for many: Unicode, LaTeX spacing, units and percentages; and numbers read exactly.

Plain bounded string work: no evaluation, no symbolic algebra, nothing that can hang.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

from entropy_rl.verify.extraction import MAX_ANSWER, boxes

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∗": "*",
    "÷": "/", "∕": "/", "⁄": "/", "√": "\\sqrt ", "π": "\\pi ", "∞": "\\infty ", "°": "^\\circ ", "º": "^\\circ ",
    "≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ", "⩾": "\\ge ", "≠": "\\neq ", "≈": "\\approx ", "∪": "\\cup ",
    "∩": "\\cap ", "∈": "\\in ", "±": "\\pm ", "∓": "\\mp ", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"',
    "、": ",", "。": ".", "٫": ".", "٬": ",", "٪": "%", "ℝ": "\\mathbb{R}", "∅": "\\emptyset ", "θ": "\\theta ",
    "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "λ": "\\lambda ", "φ": "\\phi ", "ω": "\\omega ",
}  # fmt: skip


def _character(char: str) -> str:
    if char < "\x7f":
        return char
    if char in _SYMBOLS:
        return _SYMBOLS[char]
    if (digit := unicodedata.decimal(char, None)) is not None:  # every script's digits
        return str(digit)
    category = unicodedata.category(char)
    if category == "Cf" or "\ufe00" <= char <= "\ufe0f":  # zero width, directions, soft hyphens, variants
        return ""
    if category == "Zs":
        return " "
    if category == "No" and "⁄" in (wide := unicodedata.normalize("NFKC", char)):  # one half as one character
        top, bottom = wide.split("⁄")
        return f"\\frac{{{top}}}{{{bottom}}}"
    if category == "Sc":
        return ""
    if "\uff01" <= char <= "\uff5e":  # full width
        return chr(ord(char) - 0xFEE0)
    return char


_SCRIPTS = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+|[{''.join(_SUBSCRIPTS)}]+")


def _script(match: re.Match[str]) -> str:
    if match[0][0] in _SUPERSCRIPTS:
        return "^{" + "".join(_SUPERSCRIPTS[c] for c in match[0]) + "}"
    return "_{" + "".join(_SUBSCRIPTS[c] for c in match[0]) + "}"


def plain_unicode(text: str) -> str:
    """Digits of any script as ASCII, mathematical signs as LaTeX, nothing of zero width."""
    if text.isascii():
        return text
    return "".join(map(_character, _SCRIPTS.sub(_script, text)))


_THOUSANDS = re.compile(r"(?<=[0-9])(?:\s*\{\s*,\s*\}\s*|,\s*\\!\s*|\\,\s*|\\!\s*|\\ )(?=[0-9]{3}(?![0-9]))")
_SPACE_THOUSANDS = re.compile(r"(?<![0-9.])([0-9]{1,3})((?: [0-9]{3})+)(?![0-9])")
_COMMANDS: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\\\\(?=[a-zA-Z(\[{%$])"), r"\\"),  # "\\frac", escaped once too often
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?=[^a-zA-Z])(?:\s*\.)?|\\(?:display|text|script)style|\\limits"), ""),
    (re.compile(r"\\q?quad|(?<!\\)\\[,;: >]|~|\\hspace\s*\{[^{}]*\}|&nbsp;"), " "),
    (re.compile(r"(?<!\\)\\[!()\[\]]|\\?\$|\*\*|\\dots|\\ldots"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|rm)(?=\s*\{)"), r"\\text"),
    (re.compile(r"\\(?:leq|leqslant)(?![a-zA-Z])|<="), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![a-zA-Z])|>="), r"\\ge "),
    (re.compile(r"\\ne(?![a-zA-Z])|!="), r"\\neq "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\(?:lbrace|rbrace)(?![a-zA-Z])"), lambda m: "\\{" if m[0] == "\\lbrace" else "\\}"),
    (re.compile(r"(?<=[0-9}])\s*\^?\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![a-zA-Z]))"), r"^\\circ "),
    (re.compile(r"_\{([A-Za-z0-9])\}"), r"_\1"),
    (re.compile(r"(?<![0-9}\s])\\text\s*\{\s*([A-Za-z])\s*\}(?=\s*[}\^+\-/=]|$)"), r"\1"),  # an upright e
    (re.compile(r"(?<![A-Za-z\\])inf(?:inity|ty)?(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"\\sqrt\s*([0-9A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\\frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\{[^{}]*\})\s*([0-9A-Za-z])"), r"\\frac\1{\2}"),
    (re.compile(r"\\frac\s*([0-9A-Za-z])\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"\\frac\s*(\{[^{}]*\})\s*\{"), r"\\frac\1{"),
    (re.compile(r"\s+"), " "),
]  # fmt: skip


def clean(text: str) -> str:
    """An answer in one spelling: no boxes or dollars, ``\\frac`` for its kin, ``\\text`` for fonts, ASCII digits."""
    text = plain_unicode(text)
    if text.isalnum():
        return text
    while nested := boxes(text):
        start, end, inside = nested[-1]
        text = text[:start] + inside + text[end:]
    text = _THOUSANDS.sub(",", text)
    matrix = "\\begin" in text
    for at, (pattern, to) in enumerate(_COMMANDS):
        if at or not matrix:  # in a matrix "\\" ends a row
            text = pattern.sub(to, text)
    text = text.strip()
    while text.endswith(("\\", ".", ",", ";")) and not text.endswith("\\\\"):
        text = text[:-1].rstrip()
    return text.removeprefix("+").removeprefix(":").strip()


# --- Units.

_PERCENT = re.compile(
    r"\s*(?:\\?%|\\text\s*\{\s*(?:percent(?:age)?|pct|\\?%)\s*\}|(?<![A-Za-z\\])(?:percent(?:age)?|pct))\s*$", re.I
)
_DEGREES = re.compile(r"\s*(?:\^\\circ|\\text\s*\{\s*degrees?\s*\}|(?<![A-Za-z\\])degrees?)\s*(?:C|F)?\s*$", re.I)
_TEXT_UNIT = re.compile(r"(?<=\S)\s*\\text\s*\{([^{}]*)\}\s*(?:\^\s*\{?\s*([0-9])\s*\}?)?\s*$")
_ABBREVIATED = (
    "mm",
    "cm",
    "dm",
    "km",
    "in",
    "ft",
    "yd",
    "mi",
    "mg",
    "kg",
    "lb",
    "oz",
    "hr",
    "ml",
    "mph",
    "kph",
    "pm",
    "am",
)
_WORDS = re.compile(
    r"(?<=[0-9}])\s*(?<![A-Za-z\\])((?:(?:[A-Za-z]{3,}|of|per|a|an|"
    + "|".join(_ABBREVIATED)
    + r")(?:[ /.]+|$|(?=\^)))+)"
    r"(?:\^\s*\{?\s*([0-9])\s*\}?)?\s*$"
)
_LETTER_UNIT = re.compile(r"(?<=[0-9])\s*([mglshLcd])(?:\^\s*\{?\s*([0-9])\s*\}?)?$")
_SAME_UNITS = [
    {"mm", "millimeter", "millimetre"}, {"cm", "centimeter", "centimetre"}, {"m", "meter", "metre"},
    {"km", "kilometer", "kilometre"}, {"in", "inch", "inche"}, {"ft", "foot", "feet"}, {"yd", "yard"}, {"mi", "mile"},
    {"g", "gram"}, {"kg", "kilogram"}, {"mg", "milligram"}, {"lb", "pound"}, {"oz", "ounce"},
    {"s", "sec", "second"}, {"min", "minute"}, {"h", "hr", "hour"}, {"day"}, {"week"}, {"month"}, {"year"},
    {"cent", "\u00a2"}, {"dollar"}, {"am"}, {"pm"},
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What is left of an answer without its unit.

    Attributes:
        text: the answer.
        unit: a known unit's number (with its power), "" for none, "?" for one that is not known.
    """

    text: str
    unit: str = ""


def _unit(word: str, power: str | None) -> str:
    word = word.strip().lower().rstrip(".")
    match = re.fullmatch(r"(sq(?:uare)?|cubic)\s+(.*)", word)
    if match:
        word, power = match[2], "2" if match[1].startswith("sq") else "3"
    for number, names in enumerate(_SAME_UNITS):
        if word in names or word.removesuffix("s") in names:
            return f"{number}^{power or 1}"
    return "?"


def without_unit(text: str, *, letters: bool = False) -> Quantity:
    """``text`` (cleaned) without a percent sign, degrees, or the unit behind a number or formula.

    Args:
        text: an answer.
        letters: whether a single letter behind a number is a unit too ("5 m"), not a variable.
    """
    unit = ""
    for pattern in (_PERCENT, _DEGREES):
        text = pattern.sub("", text) or text
    for pattern in (_TEXT_UNIT, _WORDS, _LETTER_UNIT) if letters else (_TEXT_UNIT, _WORDS):
        match = pattern.search(text)
        if match and match.start() and re.search(r"[0-9a-z]", text[: match.start()]):
            text, unit = text[: match.start()], _unit(match[1], match[2])
            text = _DEGREES.sub("", _PERCENT.sub("", text)) or text
            break
    return Quantity(text.strip(), unit)


def units_agree(first: Quantity, second: Quantity) -> bool:
    """False only where both units are known and differ."""
    return first.unit == second.unit or "?" in (first.unit, second.unit) or not (first.unit and second.unit)


# --- Numbers.

_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = re.compile(rf"([+-]?)\s*((?:{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+))")
_COMMA_DECIMAL = re.compile(r"([+-]?)((?:0|[1-9][0-9]*),[0-9]+)")
_RATIO = re.compile(r"([^/]+)/([^/]+)")
_FRACTION = re.compile(r"([+-]?)\s*\\frac\{([^{}]*)\}\{([^{}]*)\}")
_MIXED = re.compile(r"([+-]?)([0-9]+)(?: +([0-9]+)/([0-9]+)| *\\frac\{([0-9]+)\}\{([0-9]+)\})")
_SCIENTIFIC = re.compile(
    r"([+-]?[0-9]+(?:\.[0-9]*)?)(?:[eE]([+-]?[0-9]{1,3})| ?(?:\\times|\\cdot|\*) ?10 ?\^ ?\{?([+-]?[0-9]{1,3})\}?)"
)
_REPEATING = re.compile(r"([+-]?)([0-9]*)\.([0-9]*)\\(?:overline|dot|bar) ?\{([0-9]+)\}")
_BASED = re.compile(r"([0-9A-F]+)_\{?([0-9]{1,2})\}?")
MAX_DIGITS = 200


def _decimal(text: str) -> Fraction | None:
    match = _DECIMAL.fullmatch(text.strip())
    return Fraction(match[1] + match[2].replace(",", "")) if match else None


def _sign(text: str) -> int:
    return -1 if text == "-" else 1


def exact_number(text: str) -> Fraction | None:
    """The rational a cleaned answer spells, or None: decimals, thousands, a/b, fractions, mixed, 1.5e3, 11_2.

    Text longer than 200 characters and zero denominators give None.
    """
    if len(text) > MAX_DIGITS:
        return None
    text = text.strip()
    while text.startswith("(") and text.endswith(")") and "," not in text and "(" not in text[1:]:
        text = text[1:-1].strip()
    number = _decimal(text)
    if number is not None:
        return number
    if match := _SCIENTIFIC.fullmatch(text):
        return Fraction(match[1]) * Fraction(10) ** int(match[2] or match[3])
    if match := _REPEATING.fullmatch(text):
        shift, repeats = 10 ** len(match[3]), 10 ** len(match[4]) - 1
        return _sign(match[1]) * (
            Fraction(int(match[2] + match[3] or 0), shift) + Fraction(int(match[4]), repeats * shift)
        )
    if match := _BASED.fullmatch(text):
        base = int(match[2])
        try:
            return Fraction(int(match[1], base)) if 2 <= base <= 16 else None
        except ValueError:  # a digit the base does not have
            return None
    if match := _MIXED.fullmatch(text):
        over, under = int(match[3] or match[5]), int(match[4] or match[6])
        return _sign(match[1]) * (int(match[2]) + Fraction(over, under)) if under else None
    if match := _FRACTION.fullmatch(text):
        sign, top, bottom = _sign(match[1]), match[2], match[3]
    elif match := _RATIO.fullmatch(text):
        sign, top, bottom = 1, match[1], match[2]
    else:
        return None
    numerator, denominator = _decimal(top), _decimal(bottom)
    return sign * numerator / denominator if numerator is not None and denominator else None


def comma_decimal(text: str) -> Fraction | None:
    """A decimal with a comma ("2,74", "0,111", "1000,99"), where it can be nothing else; None otherwise."""
    match = _COMMA_DECIMAL.fullmatch(text.strip())
    if not match or len(text) > MAX_DIGITS or (_decimal(text) is not None and not match[2].startswith("0")):
        return None
    places = match[2].partition(",")[2]
    return Fraction(match[1] + match[2].replace(",", ".")) if len(places) > 1 or match[2][0] == "0" else None


def spaced_thousands(text: str) -> str:
    """ "1 000" as "1000"."""
    return _SPACE_THOUSANDS.sub(lambda m: m[0].replace(" ", ""), text)


def decimal_places(text: str) -> int | None:
    """Digits behind the point of a decimal with at least five significant ones; None for anything else.

    Such a decimal may stand for a number that has no finite one, if it is that number rounded to those digits.
    """
    text = text.strip().replace(",", "")
    match = re.fullmatch(r"[+-]?([0-9]*)\.([0-9]+)", text)
    if not match or len((match[1] + match[2]).lstrip("0")) < 5:
        return None
    return len(match[2])


def rounds_to(exact: Fraction, decimal: Fraction, places: int) -> bool:
    """Whether ``exact`` has no finite decimal expansion and is ``decimal`` when rounded to ``places`` digits."""
    odd = exact.denominator
    for prime in (2, 5):
        while odd % prime == 0:
            odd //= prime
    return odd != 1 and abs(exact - decimal) <= Fraction(1, 2 * 10**places)


def parse_number(text: str) -> Fraction | None:
    """An exact rational: integer, decimal, thousands separators, a/b, ``\\frac{a}{b}``, mixed, 1.5e3, 11_2; else None.

    Units, percent signs and anything else that is no part of the number give None, as do zero denominators and more
    than 200 characters.
    """
    return exact_number(clean(text)) if len(text) <= MAX_ANSWER else None
