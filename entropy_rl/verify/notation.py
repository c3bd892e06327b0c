"""One spelling for many: Unicode, LaTeX spacing, units and percentages; and numbers read exactly.

Plain bounded string work: no evaluation, no symbolic algebra, nothing that can hang.
"""

import dataclasses
import functools
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
    (re.compile(r" +"), " "),
    (re.compile(r"(?<!\\)\\[!()\[\]]|\\?\$|\*\*|[`\"]|\\(?:bf|large|Large|huge|Huge|normalsize|rm)(?![a-zA-Z])"), ""),
    (re.compile(r"(\.[0-9]+)\s*(?:\\[dl]dots|\\dots|\.\.\.)\s*$"), r"\1"),
    (re.compile(r"\\(?:text)?color\s*\{[a-zA-Z]*\}\s*"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|underline|mbox)(?=\s*\{)"),
     r"\\text"),
    (re.compile(r"\\text\s*\{\s*\}"), ""),
    (re.compile(r"\\text\s*\{\s*(?:(?:so|thus|hence),?\s+)?(?:the\s+)?(?:final\s+)?answer\s+is:?\s*\}", re.I), ""),
    (re.compile(r"\\text\s*\{([^{}]*[0-9][^{}]*)\}"), r"\1"),  # a number or its unit in another font
    (re.compile(r"\\text\s*\{(\s*\\frac\s*\{[^{}]*\}\s*\{[^{}]*\}\s*)\}"), r"\1"),
    (re.compile(r"\\text\s*\{\s*([ie])\s*\}"), r"\1"),
    (re.compile(r"\{\s*([^{}]*?)\s*\\choose\s*([^{}]*?)\s*\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?<=[0-9]) ?[xX] ?(?=10 ?\^)"), r"\\times "),
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset"),
    (re.compile(r"\\p?mod\s*\{?\s*([0-9]+|[a-z])\s*\}?(?![0-9a-z])"), r"\\pmod{\1}"),
    (re.compile(r"\\text\s*\{\s*(?:positive\s+)?infinity\s*\}"), r"\\infty "),
    (re.compile(r"\\sqrt\s*(\[[^\[\]]*\])\s*([0-9A-Za-z])"), r"\\sqrt\1{\2}"),
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


_EMPHASIS = re.compile(r"^(\*+|__+|')(.*)\1$")
_DOLLARS = re.compile(r"\\\$ ?([0-9][0-9,]*(?:\.[0-9]+)?)(?=\.?\s*(?:$|[,;)}]|\\text|and\b|or\b|per\b))")
_WHOLE = [
    (re.compile(r"\( ?-\\infty ?, ?\+? ?\\infty ?\)"), "\\mathbb{R}"),
    (re.compile(r"\\\{ ?\\\}"), "\\emptyset"),
]


@functools.lru_cache(maxsize=4096)  # a gold answer comes with every response of its group
def clean(text: str) -> str:
    """An answer in one spelling: no boxes or dollars, ``\\frac`` for its kin, ``\\text`` for fonts, ASCII digits."""
    text = _EMPHASIS.sub(r"\2", re.sub(r"\s+", " ", plain_unicode(text)).strip())
    if text.isdigit():
        return text
    while nested := boxes(text):
        start, end, inside = nested[-1]
        text = text[:start] + inside + text[end:]
    text = _DOLLARS.sub(r"\1\\text{ dollars}", _THOUSANDS.sub(",", text))
    matrix = "\\begin" in text
    for at, (pattern, to) in enumerate(_COMMANDS):
        if at or not matrix:  # in a matrix "\\" ends a row
            text = pattern.sub(to, text)
    text = text.strip()
    while text.endswith(("\\", ".", ",", ";")) and not text.endswith(("\\\\", "..")):
        text = text[:-1].rstrip()
    text = re.sub(r"^(?:[:+=]|\\approx(?![a-zA-Z]))\s*", "", text)
    text = re.sub(r"^\{([0-9.]*)\}$", r"\1", text.strip())
    return next((name for pattern, name in _WHOLE if pattern.fullmatch(text)), text)


def tight(text: str) -> str:
    """Without blanks, except those between two digits: what makes two spellings the same string."""
    return _BLANKS.sub("", text)


_BLANKS = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")


# --- Units.

_TRIGONOMETRIC = re.compile(r"(?<![a-z])(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_PERCENT = re.compile(
    r"\s*(?:\\?%|\\text\s*\{\s*(?:percent(?:age)?|pct|\\?%)\s*\}|(?<![A-Za-z\\])(?:percent(?:age)?|pct))\s*$", re.I
)
_DEGREES = re.compile(
    r"\s*(?:\^\\circ|\\text\s*\{\s*degrees?\s*\}|(?<![A-Za-z\\])degrees?)\s*(?:\\text\s*\{\s*)?(?:C|F)?\s*\}?\s*$",
    re.I,
)
_ABBREVIATED = "mm cm dm km in ft yd mi mg kg lb oz hr ml mph kph pm am"
_WORD = rf"(?>[A-Za-z]{{3,}}|{_ABBREVIATED.replace(' ', '|')})(?![A-Za-z])"
_POWER = r"(?:\^\s*\{?\s*([23])\s*\}?)?"
# The words behind a number: "12 red apples", "5 cm^2", "30 miles per hour".
_WORDS = re.compile(rf"(?<=[0-9}}])\s*(?<![A-Za-z\\])({_WORD}(?>(?:[ /.-]+(?:of|per|a|an|{_WORD}))*)\.?){_POWER}\s*$")
_TEXT_UNIT = re.compile(rf"(?<=\S)\s*((?:/?\s*\\text\s*\{{[^{{}}0-9()]*\}}\s*)+){_POWER}\s*$")
_LETTER_UNIT = re.compile(rf"(?<=[0-9])\s*([mglshLcd]){_POWER}$")
# Words that change a number or take it back; a number before one of them is not that number.
_CHANGES = """
    squared cubed factorial half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh
    sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths over under minus plus
    times mod modulo and not no none nor wrong false incorrect negative positive below above less more than larger
    smaller greater fewer bigger twice thrice double triple zero one two three four five six seven eight nine ten
    eleven twelve remainder root divided multiplied choose power least most between or but only if when unless never
    maybe perhaps score scores
"""
_NO_UNIT = frozenset(_CHANGES.split())
_MULTIPLES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SAME_UNITS = [
    {"mm", "millimeter", "millimetre"}, {"cm", "centimeter", "centimetre"}, {"m", "meter", "metre"},
    {"km", "kilometer", "kilometre"}, {"in", "inch", "inche"}, {"ft", "foot", "feet"}, {"yd", "yard"}, {"mi", "mile"},
    {"g", "gram"}, {"kg", "kilogram"}, {"mg", "milligram"}, {"lb", "pound"}, {"oz", "ounce"},
    {"s", "sec", "second"}, {"min", "minute"}, {"h", "hr", "hour"}, {"day"}, {"week"}, {"month"}, {"year"},
    {"cent", "\u00a2"}, {"dollar"}, {"am"}, {"pm"}, {"degree"}, {"radian", "rad"},
]  # fmt: skip
_COMPOUND = {"mph": "mile per hour", "kph": "km per hour", "kmh": "km per hour"}


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What is left of an answer without its unit.

    Attributes:
        text: the answer.
        unit: a known unit's number (with its power), "" for none, "?" for one that is not known.
    """

    text: str
    unit: str = ""


def _unit(words: str, power: str | None) -> str:
    words = re.sub(r"\s*/\s*", " per ", words.strip().lower().rstrip("."))
    words = _COMPOUND.get(words, words)
    parts = words.split(" per ")
    if len(parts) == 2:
        over, under = (_unit(part, None) for part in parts)
        return "?" if "?" in (over, under) else f"{over}/{under}"
    match = re.fullmatch(r"(sq(?:uare)?|cubic)\s+(.*)", words)
    if match:
        words, power = match[2], "2" if match[1].startswith("sq") else "3"
    for number, names in enumerate(_SAME_UNITS):
        if words in names or words.removesuffix("s") in names:
            return f"{number}^{power or 1}"
    return "?"


def without_unit(text: str, *, letters: bool = False) -> Quantity:
    """``text`` (cleaned) without a percent sign, degrees, or the unit behind a number or formula.

    "2 million dollars" is 2000000 with a unit. Words that make another number of it ("7 squared", "18 or more", "half")
    are no unit: the text stays as it is.

    Args:
        text: an answer.
        letters: whether a single letter behind a number is a unit too ("5 m"), not a variable.
    """
    unit = ""
    bare = _PERCENT.sub("", text) or text
    if not _TRIGONOMETRIC.search(text) and (degrees := _DEGREES.sub("", bare)) and degrees != bare:
        return Quantity(degrees.strip(), _unit("degree", None))
    for pattern in (_TEXT_UNIT, _WORDS, _LETTER_UNIT) if letters else (_TEXT_UNIT, _WORDS):
        match = pattern.search(bare)
        if not (match and match.start() and re.search(r"[0-9a-z]", bare[: match.start()])):
            continue
        words = re.findall(r"[A-Za-z]+", match[1].replace("\\text", ""))
        if any(word.lower() in _NO_UNIT for word in words):
            break
        rest, count = _PERCENT.sub("", bare[: match.start()]).strip(), len(words)
        while words and (multiple := _MULTIPLES.get(words[0].lower())) is not None:
            number = exact_number(rest)
            if number is None:
                return Quantity(text)
            rest, words = str(number * multiple), words[1:]
        if any(word.lower() in _MULTIPLES for word in words):
            return Quantity(text)
        named = re.sub(r"\\text\s*\{|\}", "", match[1]) if len(words) == count else " ".join(words)
        bare, unit = rest, _unit(named, match[2]) if words else ""
        break
    return Quantity(bare.strip(), unit)


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
    return exact_number(clean(text).removesuffix("\\text{ dollars}")) if len(text) <= MAX_ANSWER else None
