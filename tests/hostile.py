"""Text that no grader should meet: made at random, by the same seed the same."""
# ruff: noqa: E501

import random
from collections.abc import Iterator

_TOKENS = [
    "\\frac", "\\sqrt", "\\boxed", "{", "}", "(", ")", "[", "]", "^", "_", "!", "\\pi", "x", "y", "i", "e", "1", "2", "99",
    "9999999999", "+", "-", "\\cdot", "\\times", "/", "=", "<", "\\le", "\\in", ",", ";", "\\cup", "\\pm", "\\infty", "\\sum",
    "\\int", "\\lim", "\\prod", "\\binom", "\\log", "\\sin", "\\text{", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\",
    "\\left", "\\right", "|", "\\lfloor", "\\mod", "\\gcd", "%", "$", "\\{", "\\}", " ", "\\overline", "_{2}", "^{9}", "dx",
    "\\to", "\\det", "\\mathbb{R}", "\\ldots", ".", "'", "#", "####", "answer is", "\\operatorname{", "\\sqrt[3]",
]  # fmt: skip
_CODE = [
    "__import__('os').system('touch PWNED')", "exec(\"open('PWNED','w')\")", "{{7*7}}", "$(touch PWNED)", "`touch PWNED`",
    "eval(open('PWNED','w'))", "\\input{/etc/passwd}", "\\write18{touch PWNED}", "lambda: 0", "().__class__.__bases__[0]",
    "\\operatorname{__import__('os')}", "[].__class__", "\\text{'; import os; os.remove('x')}", "%n%s%x", "'; DROP TABLE",
    "x.subs(x, open('PWNED', 'w'))", "\\immediate\\openout3=PWNED", "Integer(1)/0", "sympy.Symbol('x').func", "\x00\x1b[2J",
]  # fmt: skip
_TOWERS = [
    "{b}^{{{b}^{{{b}^{{{b}}}}}}}", "{b}^{b}^{b}", "({b}^{{{b}}})^{{{b}^{{{b}}}}}", "(({b}!)!)!", "({b}{b}{b}!)!", "\\binom{{{b}{b}{b}{b}{b}}}{{{b}{b}{b}}}",
    "10^{{10^{{{b}}}}}", "10^{{{b}{b}{b}{b}{b}{b}{b}}}", "\\sqrt{{10^{{{b}{b}{b}{b}{b}{b}}}}}", "{b}e{b}{b}{b}", "\\sum_{{k=1}}^{{10^{{{b}}}}} k^k",
    "\\prod_{{k=1}}^{{{b}{b}{b}{b}{b}}} (x+k)", "(x+y+z)^{{{b}{b}{b}}}", "\\int_0^1 x^{{x^{{x^{b}}}}} dx", "\\exp(\\exp(\\exp({b}{b})))",
    "\\lim_{{x \\to 0}} \\frac{{\\sin(x^{b})}}{{x^{{{b}{b}{b}{b}}}}}", "\\det \\begin{{pmatrix}} {b}^{{{b}{b}{b}{b}{b}{b}}} & x \\\\ y & z \\end{{pmatrix}}",
    "\\log(10^{{{b}{b}{b}{b}{b}{b}{b}{b}}})", "\\gcd({b}^{{{b}{b}{b}{b}}}, {b}^{{{b}{b}{b}}})", "x^{{{b}{b}{b}{b}{b}}} - 1", "{b}^{{-{b}^{{-{b}}}}}",
    "\\left\\{{ x : x^{{{b}{b}}} + x = {b} \\right\\}}", "x^{{{b}}} + {b}x^{{4}} + x^{{3}} = {b}x - 7", "{b} < x^{{{b}{b}}} < {b}{b}", "\\tan(10^{{{b}{b}}})",
    "\\dfrac{{5^{{(5^{{(5^{{(5^5)}})}}-4)}}-{b}}}{{16}}", "\\lfloor 10^{{{b}{b}{b}{b}{b}}} \\pi \\rfloor", "\\mod({b}^{{{b}{b}{b}{b}{b}}}, 7)",
]  # fmt: skip


def hostile(number: int, seed: int = 0) -> Iterator[str]:
    """``number`` texts: fuzzed LaTeX, towers of powers, a megabyte of one sign, deep nesting, Unicode, code."""
    rng = random.Random(seed)
    for index in range(number):
        kind = index % 8
        if kind == 0:
            text = "".join(rng.choices(_TOKENS, k=rng.randrange(1, 60)))
        elif kind == 1:
            text = rng.choice(_TOWERS).format(b=rng.randrange(2, 10))
        elif kind == 2:
            size = rng.choice([10**3, 10**4, 10**6 if index % 160 == 2 else 10**5])
            text = rng.choice(
                ["1", "(", "\\frac{1}{", "{", "x+", "^2", "\\boxed{", "9!", " ", ",", "$", "\\", "a" * 50, "-", "√"]
            )
            text = (text * size)[:size]
        elif kind == 3:
            depth = rng.choice([5, 19, 50, 500, 5000])
            opening, closing = rng.choice([("(", ")"), ("{", "}"), ("\\sqrt{", "}"), ("\\frac{1}{1+", "}"), ("|", "|"), ("[", "]"),
                                           ("\\left(", "\\right)"), ("\\{", "\\}"), ("2^{", "}"), ("\\text{", "}")])  # fmt: skip
            text = opening * depth + "x" + closing * depth
        elif kind == 4:
            text = "".join(chr(rng.choice([rng.randrange(1, 0xD800), rng.randrange(0xE000, 0x10FFFF), 0x200B, 0x202E, 0xFF14]))
                           for _ in range(rng.randrange(1, 80)))  # fmt: skip
        elif kind == 5:
            text = rng.choice(_CODE) + rng.choice(["", "4242", "\\frac{7}{2}"])
        elif kind == 6:
            text = "".join(rng.choices(_TOKENS, k=rng.randrange(1, 12))) + rng.choice(_TOWERS).format(
                b=rng.randrange(2, 10)
            )
        else:
            text = f"{rng.choice(['', '-', '+', '--'])}{rng.randrange(10**6)}{rng.choice(['e400', '!', '%', '_2', '°', '/0', '^^', '.', '..', '/2004!', ',,'])}"
        form = rng.randrange(6)
        yield [
            f"\\boxed{{{text}}}",
            f"#### {text}",
            f"The answer is {text}",
            f"$${text}$$",
            text,
            f"\\boxed{{\\boxed{{{text}}}",
        ][form]
