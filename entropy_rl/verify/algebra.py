"""Algebra for answers: LaTeX read by math-verify's parser, values compared at random points with 60 digits.

This runs in a worker only (``worker``): parsing and simplifying text a policy wrote may take any time and memory.

Two expressions are the same if they agree at eight random points wherever both are real (where neither ever is:
complex), and agree there again with as many more digits as may have cancelled. That needs no simplification, tells
1/2^99 from 1/2^98 and 100! from 100! + 1, which a fixed number of digits cannot, and knows that sqrt(1/n) is
1/sqrt(n). What is no number at a point (sets, matrices, sums with free limits) goes to ``math_verify.verify``.
"""

import random
import re
from fractions import Fraction

import mpmath
import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from math_verify import LatexExtractionConfig, parse, verify
from math_verify.grader import should_treat_as_complex

from entropy_rl.verify.equivalence import Algebra
from entropy_rl.verify.notation import without_unit

_DIGITS = 60
_LATEX_ONLY = [LatexExtractionConfig()]  # its other reader hands text to SymPy's parse_expr, which evaluates it
_NAMES_AS_WRITTEN = ConversionConfig(lowercase_symbols=False)
_CLOSE = mpmath.mpf(10) ** -30
_POINTS = 8
_GCD, _COMMAND, _LETTER = re.compile(r"\\(?:gcd|lcm)"), re.compile(r"\\[a-z]+"), re.compile("[a-zA-Z]")
_MOST_TERMS = 1000
_LARGEST = 10**5  # of an exponent times its base's logarithm: values beyond e^100000 are no answers


class NoValue(Exception):
    """An expression has no value at a point, or is no number."""


class TooLarge(Exception):
    """A value is beyond what anybody asks for."""


_ONE_ARGUMENT = {
    sympy.sin: mpmath.sin, sympy.cos: mpmath.cos, sympy.tan: mpmath.tan, sympy.cot: mpmath.cot,
    sympy.sec: mpmath.sec, sympy.csc: mpmath.csc, sympy.asin: mpmath.asin, sympy.acos: mpmath.acos,
    sympy.atan: mpmath.atan, sympy.acot: mpmath.acot, sympy.sinh: mpmath.sinh, sympy.cosh: mpmath.cosh,
    sympy.tanh: mpmath.tanh, sympy.Abs: abs, sympy.re: mpmath.re, sympy.im: mpmath.im, sympy.conjugate: mpmath.conj,
    sympy.UnevaluatedExpr: lambda x: x,
}  # fmt: skip


def _power(base, exponent):
    if base == 0:
        if mpmath.re(exponent) > 0:
            return mpmath.mpf(0)
        raise NoValue
    if abs(exponent) > _LARGEST or abs(exponent * mpmath.log(abs(base))) > _LARGEST:
        raise TooLarge
    return mpmath.power(base, exponent)


def _integer(number):
    if mpmath.im(number) or number < 0 or number != mpmath.floor(number):
        raise NoValue
    if number > _LARGEST:
        raise TooLarge
    return int(number)


class _Evaluation:
    """Values of an expression at a point, in mpmath's precision.

    Attributes:
        size: the largest decimal logarithm, in absolute value, met on the way: digits that may cancel.
        left_reals: whether a root or logarithm of a negative number was met.
    """

    def __init__(self, point: dict[sympy.Basic, mpmath.mpf]):
        self.point, self.size, self.left_reals = point, 0.0, False

    def value(self, expression: sympy.Basic):
        """NoValue where it has none, TooLarge where nobody would write it out."""
        result = self._value(expression)
        if result:
            self.size = max(self.size, abs(float(mpmath.log10(abs(result)))))
        return result

    def _value(self, expression):
        if expression in self.point:
            return self.point[expression]
        if isinstance(expression, sympy.Rational):
            return mpmath.mpf(expression.p) / expression.q
        if isinstance(expression, sympy.Float):
            exact = Fraction(str(expression))
            return mpmath.mpf(exact.numerator) / exact.denominator
        if expression in _CONSTANTS:
            return _CONSTANTS[expression]()
        if isinstance(expression, sympy.Sum | sympy.Product):
            return self._series(expression)
        return self._function(expression, [self.value(argument) for argument in expression.args])

    def _function(self, expression, arguments):
        if isinstance(expression, sympy.Add):
            return mpmath.fsum(arguments)
        if isinstance(expression, sympy.Mul):
            return mpmath.fprod(arguments)
        if isinstance(expression, sympy.exp):
            return _power(+mpmath.e, arguments[0])
        if isinstance(expression, sympy.Pow):
            return self._root_or_power(expression.args[1], *arguments)
        if isinstance(expression, sympy.log):
            if any(a == 0 for a in arguments):
                raise NoValue
            self.left_reals |= any(mpmath.im(a) == 0 and mpmath.re(a) < 0 for a in arguments)
            logs = [mpmath.log(a) for a in arguments]
            return logs[0] if len(logs) == 1 else logs[0] / logs[1]
        if isinstance(expression, sympy.factorial):
            return mpmath.factorial(_integer(arguments[0]))
        if isinstance(expression, sympy.binomial):
            return mpmath.binomial(*map(_integer, arguments))
        if isinstance(expression, sympy.Max | sympy.Min):
            if any(mpmath.im(a) for a in arguments):
                raise NoValue
            return (max if isinstance(expression, sympy.Max) else min)(arguments)
        if isinstance(expression, sympy.floor | sympy.ceiling):
            return (mpmath.floor if isinstance(expression, sympy.floor) else mpmath.ceil)(arguments[0])
        if isinstance(expression, sympy.Mod):
            if any(mpmath.im(a) for a in arguments) or not arguments[1]:
                raise NoValue
            return arguments[0] - arguments[1] * mpmath.floor(arguments[0] / arguments[1])
        function = _ONE_ARGUMENT.get(type(expression))
        if function is None or len(arguments) != 1:
            raise NoValue
        return function(arguments[0])

    def _root_or_power(self, written, base, exponent):
        if mpmath.im(base) == 0 and mpmath.re(base) < 0:
            if isinstance(written, sympy.Rational) and written.q % 2 and written.q > 1:
                return (-1) ** (written.p % 2) * _power(-base, exponent)  # the real root, as is usual at school
            self.left_reals |= exponent != mpmath.floor(mpmath.re(exponent))
        return _power(base, exponent)

    def _series(self, expression):
        """A finite sum or product of at most a thousand terms."""
        if len(expression.limits) != 1 or len(expression.limits[0]) != 3:
            raise NoValue
        index, first, last = expression.limits[0]
        first, last = self.value(first), self.value(last)
        if any(mpmath.im(limit) or limit != mpmath.floor(limit) for limit in (first, last)):
            raise NoValue
        if last - first > _MOST_TERMS:
            raise TooLarge
        terms, outer = [], self.point
        for k in range(int(first), int(last) + 1):
            self.point = {**outer, index: mpmath.mpf(k)}
            terms.append(self.value(expression.function))
        self.point = outer
        return mpmath.fsum(terms) if isinstance(expression, sympy.Sum) else mpmath.fprod(terms)


_CONSTANTS = {
    sympy.pi: lambda: +mpmath.pi,
    sympy.E: lambda: +mpmath.e,
    sympy.I: lambda: mpmath.mpc(0, 1),
    sympy.GoldenRatio: lambda: +mpmath.phi,
}
_SCIENTIFIC = re.compile(r"^(-?[0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]{1,3})$")


def _size(expression: sympy.Basic) -> int:
    return sum(1 for _ in sympy.preorder_traversal(expression))


def read(text: str) -> sympy.Basic:
    """A cleaned answer as a SymPy expression; ValueError where the parser cannot."""
    text = re.sub(r"\\text\s*\{\s*([A-Za-z])\s*\}", r"\1", text)
    text = re.sub(r"\^\\circ", "", text) if not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text) else text
    text = re.sub(r"(?<![A-Za-z\\])(sin|cos|tan|log|ln|pi)(?![A-Za-z])", r"\\\1", text)
    text = _SCIENTIFIC.sub(r"\1\\cdot 10^{\2}", text.replace("**", "^"))
    try:
        expression = latex2sympy(
            text,
            is_real=not should_treat_as_complex(text),
            convert_degrees=True,
            normalization_config=None,
            conversion_config=_NAMES_AS_WRITTEN,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # the parser raises bare Exceptions
        raise ValueError(str(error)[:200]) from None
    if not isinstance(expression, sympy.Basic | sympy.MatrixBase) or _size(expression) > 2000:
        raise ValueError("no expression")
    return expression


def _symbols(*expressions: sympy.Basic) -> list[sympy.Basic]:
    found = {symbol for expression in expressions for symbol in expression.free_symbols}
    return sorted(found, key=str)


def _points(symbols: list[sympy.Basic], *, integers: bool):
    """Random points, the same for the same symbols: positive ones first, then of either sign, small and large.

    With ``integers`` as many whole numbers from 1 to 400 follow, for what has steps or exists only there. i is the
    imaginary unit.
    """
    rng = random.Random(0)
    free = [symbol for symbol in symbols if str(symbol) != "i"]
    for index in range(_POINTS * (1 + integers) if free else 1):
        point = {symbol: mpmath.mpc(0, 1) for symbol in symbols if str(symbol) == "i"}
        for symbol in free:
            size = Fraction(rng.randrange(1, 10**9), 10**9) * (3 if index % 2 else 1) + Fraction(1, 7)
            sign = -1 if index >= 2 and rng.random() < 0.5 else 1
            if index >= _POINTS:
                size, sign = Fraction(rng.randrange(1, 12 if index % 2 else 400)), 1
            point[symbol] = mpmath.mpf(sign * size.numerator) / size.denominator
        yield point


def _has_steps(expression: sympy.Basic) -> bool:
    kinds = (sympy.floor, sympy.ceiling, sympy.Mod, sympy.factorial, sympy.binomial, sympy.Sum, sympy.Product)
    return expression.has(*kinds)


def _values(first: sympy.Basic, second: sympy.Basic, digits: int) -> tuple[list[tuple], float]:
    """Both values at the points where both have one, and the digits that may have cancelled on the way.

    Only points without a root or logarithm of a negative number, if there are any; else only those where both are real,
    if there are any.
    """
    pairs, size = [], 0.0
    with mpmath.workdps(digits):
        for point in _points(_symbols(first, second), integers=_has_steps(first) or _has_steps(second)):
            left, right = _Evaluation(point), _Evaluation(point)
            try:
                pair = (left.value(first), right.value(second))
            except (NoValue, ZeroDivisionError, ValueError, OverflowError):
                continue
            if all(mpmath.isfinite(mpmath.re(v)) and mpmath.isfinite(mpmath.im(v)) for v in pair):
                pairs.append((pair, left.left_reals or right.left_reals))
                size = max(size, left.size, right.size)
        inside = [pair for pair, left_reals in pairs if not left_reals]
        all_pairs = [pair for pair, _ in pairs]
        real = [pair for pair in all_pairs if all(abs(mpmath.im(v)) <= _CLOSE * (1 + abs(v)) for v in pair)]
    return inside or real or all_pairs, size


def _close(first, second, tolerance) -> bool:
    return abs(first - second) <= tolerance * max(abs(first), abs(second))


class Symbolic(Algebra):
    """Decides what ``equivalence`` cannot; see the file's head."""

    def same_expression(self, first: str, second: str) -> bool:
        """Values at random points; math-verify where there are none."""
        try:
            left, right = read(first), read(second)
        except ValueError:
            return False
        if any(_GCD.search(text) and _LETTER.search(_COMMAND.sub("", text)) for text in (first, second)):
            return False  # the parser takes symbols for numbers there
        literals = sum(map(len, re.findall("[0-9]+", first + second)))
        digits, tolerance = _DIGITS, _CLOSE
        for _ in range(2):  # then again, with room for all that may have cancelled
            try:
                pairs, size = _values(left, right, digits)
            except TooLarge:
                return left == right
            if not pairs:
                return self._verified(first, second)
            with mpmath.workdps(digits):
                rounding = mpmath.mpf(10) ** -(digits - 15)  # what may be left of 0
                if not all(_close(a, b, tolerance) or abs(a - b) <= rounding for a, b in pairs):
                    return False
                room = int(size) + literals
                digits, tolerance = 2 * room + 2 * _DIGITS, mpmath.mpf(10) ** -(room + 2 * _DIGITS - 30)
        return len(pairs) > 1 or not set(map(str, _symbols(left, right))) - {"i"}

    def same_up_to_factor(self, first: str, second: str, *, positive: bool) -> bool:
        """Their ratio at random points."""
        try:
            left, right = read(first), read(second)
            pairs, _ = _values(left, right, _DIGITS)
        except ValueError:
            return False
        except TooLarge:
            return False
        with mpmath.workdps(_DIGITS):
            if len(pairs) < 2 or any(abs(b) < _CLOSE for _, b in pairs):
                return self._verified(first, second)
            ratios = [a / b for a, b in pairs]
            if not all(_close(ratios[0], ratio, _CLOSE) for ratio in ratios) or abs(ratios[0]) < _CLOSE:
                return False
            return not positive or mpmath.re(ratios[0]) > 0

    def same_object(self, first: str, second: str) -> bool:
        """math-verify's word."""
        return self._verified(first, second)

    def equals_decimal(self, expression: str, decimal: str, places: int) -> bool:
        """The expression's value, rounded."""
        try:
            exact = read(without_unit(expression).text)
        except ValueError:
            return False
        if exact.free_symbols or exact.is_Rational:
            return False
        with mpmath.workdps(_DIGITS):
            try:
                number = _Evaluation({}).value(exact)
            except (NoValue, TooLarge, ZeroDivisionError, ValueError, OverflowError):
                return False
            target = mpmath.mpf(decimal.replace(",", ""))
            return not mpmath.im(number) and abs(number - target) <= mpmath.mpf(10) ** -places / 2

    @staticmethod
    def _verified(first: str, second: str) -> bool:
        """math-verify's word, without its own time limits: the worker has one."""
        gold, answer = (parse(f"${text}$", _LATEX_ONLY, parsing_timeout=None) for text in (first, second))
        if not gold or not answer:
            return False
        return bool(verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True))
