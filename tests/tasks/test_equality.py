"""Random pairs made with SymPy, equal and unequal by construction, in LaTeX, Python and plain writing."""

import random
import re
from fractions import Fraction

import pytest
import sympy
from sympy import I, Integer, Rational, latex, pi, sqrt

from bandpo.tasks.rewards import math_scores

x, y = sympy.symbols("x y")
FORMS = ("So it is $\\boxed{%s}$.", "The answer is $%s$.", "The answer is %s", "<answer>%s</answer>", "$%s$")


def fraction(rng, size=40):
    return Rational(rng.randint(-size, size), rng.randint(1, size))


def number(rng):
    return rng.choice(
        [
            lambda: Integer(rng.randint(-(10**7), 10**9)),
            lambda: fraction(rng),
            lambda: Rational(rng.randint(-(10**6), 10**6), 10 ** rng.randint(1, 9)),
            lambda: fraction(rng) + fraction(rng) * sqrt(rng.choice([2, 3, 5, 7])),
            lambda: fraction(rng) * pi + rng.choice([0, 1]),
            lambda: Rational(rng.randint(1, 999), 100) * Integer(10) ** rng.randint(-30, 20),
            lambda: fraction(rng) + (fraction(rng) or 1) * I,
        ]
    )()


def expression(rng):
    terms = [fraction(rng, 9) * x ** rng.randint(0, 3) * y ** rng.choice([0, 0, 1]) for _ in range(3)]
    return rng.choice(
        [sum(terms), (x + rng.randint(1, 9)) * (x - rng.randint(1, 9)), sqrt(x) + fraction(rng, 9) * sympy.sin(2 * x)]
    )


def decimal(value):
    """A fraction that ends as a decimal, with all its places; None for another value."""
    if not value.is_Rational or value.q == 1 or pow(10, 12, value.q) != 0:
        return None
    places = next(n for n in range(13) if (value * 10**n).q == 1)
    digits = str(abs(value * 10**places)).zfill(places + 1)
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def written(rng, value):
    """One of many ways to write a value."""
    ends = decimal(value)
    if ends and rng.random() < 0.5:
        return ends
    kind = rng.choice(["latex", "python", "plain"])
    if kind == "latex":
        text = latex(value, mul_symbol=rng.choice([None, "dot", "times"]))
        return text.replace("\\frac", "\\dfrac") if rng.random() < 0.3 else text
    if value.is_Rational and value.q > 1 and value > 1 and rng.random() < 0.3:
        whole, rest = divmod(Fraction(int(value.p), int(value.q)), 1)
        return f"{whole} {rest.numerator}/{rest.denominator}"
    if value.is_Integer and abs(value) > 999 and kind == "plain":
        return f"{int(value):,}"
    text = str(value).replace("I", "i")
    if kind == "plain":
        text = re.sub(r"sqrt\((\d+)\)", r"√\1", text.replace("**", "^").replace("pi", "π")).replace("-", "−")
    return text


def other(rng, value):
    """A value that differs from `value`: by a sign, a power of ten, a late decimal place, a term."""
    changes = [-value, value * 10, value / 2, value + Rational(1, 10**9), value + 1, value + rng.choice([x, pi, I])]
    return rng.choice([change for change in changes if sympy.expand(change - value) != 0])


@pytest.mark.slow
def test_equal_and_unequal_values_in_many_writings():
    rng = random.Random(20240817)
    equal, unequal = [], []
    for i in range(120):
        value = expression(rng) if i % 3 == 0 else number(rng)
        same = rng.choice([sympy.expand, sympy.factor, sympy.together, lambda one: one])(value)
        form = rng.choice(FORMS)
        equal.append((form % written(rng, same), written(rng, value)))
        unequal.append((form % written(rng, other(rng, value)), written(rng, value)))
    for pairs, reward in ((equal, 1.0), (unequal, 0.0)):
        scores = math_scores([completion for completion, _ in pairs], [answer for _, answer in pairs], 30.0)
        assert [pair for pair, score in zip(pairs, scores, strict=True) if score.value != reward] == []
