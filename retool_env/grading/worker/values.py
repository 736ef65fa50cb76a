"""Comparing: are two expressions, or the numbers in them, equal?"""

import functools
from fractions import Fraction
from typing import Any

_DIGITS = 400
"""To which exact values are told apart where no algebra decides."""


def numbers_equal(
    gold: Any, answer: Any, float_rounding: int = 6, numeric_precision: int = 15
) -> bool:
    """Compare two numbers or two matrices of them; takes the place of math-verify's function of these arguments.

    Exact values are compared exactly, and a decimal within an expression is exact. A decimal alone equals an integer if
    it has its value, and any other number if both agree rounded to six places, and to one part in 100,000.
    """
    from sympy import Float, Integer, MatrixBase, MatrixExpr

    if isinstance(gold, MatrixBase | MatrixExpr) and isinstance(answer, MatrixBase | MatrixExpr):
        gold, answer = gold.doit(), answer.doit()
        return (
            isinstance(gold, MatrixBase)
            and isinstance(answer, MatrixBase)
            and gold.shape == answer.shape
            and all(numbers_equal(a, b) for a, b in zip(gold.flat(), answer.flat(), strict=True))
        )
    shares = percentage(gold), percentage(answer)
    if any(share is not None for share in shares):  # n% is both n and a hundredth of it
        values = [
            [expression.doit()] if share is None else [share, expression.doit()]
            for share, expression in zip(shares, (gold, answer), strict=True)
        ]
        return any(numbers_equal(a, b) for a in values[0] for b in values[1])
    decimal = isinstance(gold, Float) or isinstance(answer, Float)
    gold, answer = exact(gold).doit(), exact(answer).doit()
    if gold == answer:
        return True
    if not (gold.is_number and answer.is_number):
        return (gold - answer).expand() == 0
    if decimal and not (isinstance(gold, Integer) or isinstance(answer, Integer)):
        return close(answer, gold)
    return exactly_equal(gold, answer)


def symbolically_equal(gold: Any, answer: Any) -> bool:
    """Whether two expressions or matrices with unknowns are equal; takes the place of math-verify's function."""
    from sympy import Expr, MatrixBase, simplify

    if isinstance(gold, Expr) and isinstance(answer, Expr) and gold.is_number and answer.is_number:
        return False  # `numbers_equal` knows
    try:
        difference = simplify(exact(gold) - exact(answer))
    except (TypeError, ValueError, AttributeError):  # different kinds of objects
        return False
    if isinstance(difference, MatrixBase):
        return bool(difference.is_zero_matrix)
    return bool(difference.is_zero)


def percentage(expression: Any) -> Any:
    """The `n` of `n%`, or `None`."""
    from math_verify.grader import get_pct_val

    return get_pct_val(expression)


def exact(expression: Any) -> Any:
    """`expression` with fractions in place of decimals."""
    from sympy import Float, Rational

    decimals = expression.atoms(Float)
    return expression.xreplace({each: Rational(str(each)) for each in decimals if each.is_finite})


def close(value: Any, wanted: Any) -> bool:
    """Whether two numbers agree when rounded to six places, and to one part in 100,000: `answer.close`."""
    first, second = fraction(value), fraction(wanted)
    if first is None or second is None:
        return False
    return round(first, 6) == round(second, 6) and abs(first - second) * 100_000 <= abs(second)


def fraction(number: Any) -> Fraction | None:
    """The value of a finite real number, to 40 digits; `None` for any other expression."""
    from sympy import Rational

    if not isinstance(number, Rational):
        if not number.is_real:
            return None
        number = Rational(str(number.evalf(40)))
    return Fraction(int(number.p), int(number.q)) if number.is_finite else None


def exactly_equal(a: Any, b: Any) -> bool:
    """Whether two exact numbers are equal, to 400 digits where no algebra decides."""
    from sympy import Rational

    if isinstance(a, Rational) and isinstance(b, Rational):
        return False  # they are not identical
    difference = a - b
    if difference == 0:
        return True
    if difference.is_infinite or difference.has(*_not_numbers()):
        return False
    number = difference.evalf(15, maxn=_DIGITS)
    parts = [part for part in number.as_real_imag() if part != 0]
    # A precision of one: all digits cancel.
    return all(getattr(part, "_prec", 53) == 1 for part in parts)


@functools.cache
def _not_numbers() -> tuple[Any, ...]:
    from sympy import nan, oo, zoo

    return nan, zoo, oo, -oo


def verify(gold: Any, answer: Any) -> bool:
    """math-verify's verdict, with numbers compared as here."""
    import math_verify

    try:
        # Its time limits use this process's one alarm, which is already set.
        return math_verify.verify(
            gold,
            answer,
            timeout_seconds=None,
            raise_on_error=True,
            allow_set_relation_comp=True,  # "1 < x < 2" is the interval
        )
    except MemoryError:
        raise
    except Exception:
        return False
