"""Comparison: are two expressions, or the numbers in them, equal?"""

from fractions import Fraction
from typing import Any

_DIGITS = 400
"""The number of digits to which exact values are compared if algebra does not decide."""

_NONZERO = 1e-9
"""The least size of a number that is surely not 0, and not an error of rounding."""


def numbers_equal(
    gold: Any, answer: Any, float_rounding: int = 6, numeric_precision: int = 15
) -> bool:
    """Returns whether two numbers, or two matrices of numbers, are equal.

    Exact values are compared exactly. A decimal inside an expression is exact. A decimal alone
    equals an integer if their values are equal, and any other number if the two are `close`. The
    function replaces math-verify's `sympy_numeric_eq`, and so has the same parameters.

    Args:
        gold: The gold, a sympy object.
        answer: The answer, a sympy object.
        float_rounding: Not used; a parameter of the replaced function.
        numeric_precision: Not used; a parameter of the replaced function.
    """
    from math_verify.grader import get_pct_val
    from sympy import Float, Integer, MatrixBase, MatrixExpr

    if isinstance(gold, MatrixBase | MatrixExpr) and isinstance(answer, MatrixBase | MatrixExpr):
        gold, answer = gold.doit(), answer.doit()
        return (
            isinstance(gold, MatrixBase)
            and isinstance(answer, MatrixBase)
            and gold.shape == answer.shape
            and all(numbers_equal(a, b) for a, b in zip(gold.flat(), answer.flat(), strict=True))
        )
    shares = get_pct_val(gold), get_pct_val(answer)
    if any(share is not None for share in shares):  # n% equals both n and n / 100
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
    """Returns whether two expressions or matrices with unknowns are equal.

    The function replaces math-verify's `sympy_symbolic_eq`.
    """
    from sympy import Expr, MatrixBase, simplify

    if isinstance(gold, Expr) and isinstance(answer, Expr) and gold.is_number and answer.is_number:
        return False  # `numbers_equal` has compared them
    try:
        plain = exact(gold) - exact(answer)
        if isinstance(plain, Expr) and _is_nonzero_at_a_point(plain):
            return False  # in a fraction of the time of `simplify`
        difference = simplify(plain)
    except (TypeError, ValueError, AttributeError):  # different kinds of objects
        return False
    if isinstance(difference, MatrixBase):
        return bool(difference.is_zero_matrix)
    if difference.is_zero or not isinstance(difference, Expr):
        return bool(difference.is_zero)
    split = _with_split_roots(plain)
    return split is not None and bool(simplify(split).is_zero)


def _is_nonzero_at_a_point(expression: Any) -> bool:
    """Whether an expression with unknowns has a value other than 0 at some positive point.

    `False` also stands for a value that can't be computed.
    """
    from sympy import Rational
    from sympy.concrete.expr_with_limits import ExprWithLimits

    if expression.has(ExprWithLimits):  # sums and integrals are slow
        return False
    unknowns = sorted(expression.free_symbols, key=str)
    point = {unknown: Rational(113 + 34 * i, 97) for i, unknown in enumerate(unknowns)}
    value = expression.evalf(15, subs=point)
    # A precision of one: all digits cancel.
    return any(
        part.is_Float and part._prec > 1 and abs(part) > _NONZERO for part in value.as_real_imag()
    )


def _with_split_roots(expression: Any) -> Any:
    r"""`\sqrt{a} \sqrt{b}` in place of each `\sqrt{ab}`; `None` if there is no such root.

    The two are equal wherever the former is a real number. The root of a square stays, because
    `\sqrt{a^2}` is not `a` if `a` is negative.
    """
    from sympy import expand_power_base

    split = expand_power_base(expression, force=True)
    if split == expression:
        return None
    return split.replace(
        lambda part: part.is_Pow and part.base.is_Pow and part.base.exp == -1,
        lambda part: part.base.base**-part.exp,
    )


def exact(expression: Any) -> Any:
    """Returns an expression with fractions in place of decimals."""
    from sympy import Float, Rational

    decimals = expression.atoms(Float)
    return expression.xreplace({a: Rational(str(a)) for a in decimals if a.is_finite})


def close(value: Any, wanted: Any) -> bool:
    """Whether two sympy numbers are close, as in `retool_env.grading.answer.close`."""
    first, second = fraction(value), fraction(wanted)
    if first is None or second is None:
        return False
    return round(first, 6) == round(second, 6) and abs(first - second) * 100_000 <= abs(second)


def fraction(number: Any) -> Fraction | None:
    """The value of a finite real number to 40 digits; `None` for any other expression."""
    from sympy import Rational

    if not isinstance(number, Rational):
        if not number.is_real:
            return None
        number = Rational(str(number.evalf(40)))
    return Fraction(int(number.p), int(number.q)) if number.is_finite else None


def exactly_equal(a: Any, b: Any) -> bool:
    """Whether two different exact expressions have equal values.

    The values are compared to 400 digits if algebra does not decide.
    """
    from sympy import Rational, nan, oo, zoo

    if isinstance(a, Rational) and isinstance(b, Rational):
        return False  # equal fractions would be identical
    difference = a - b
    if difference == 0:
        return True
    if difference.is_infinite or difference.has(nan, zoo, oo, -oo):
        return False
    number = difference.evalf(15, maxn=_DIGITS)
    parts = [part for part in number.as_real_imag() if part != 0]
    # A precision of one: all digits cancel.
    return all(getattr(part, "_prec", 53) == 1 for part in parts)


def verify(gold: Any, answer: Any) -> bool:
    """Returns math-verify's verdict, which compares numbers with the functions of this module."""
    import math_verify

    try:
        # No time limits: they would use the alarm of this process, which is already set.
        return math_verify.verify(
            gold,
            answer,
            timeout_seconds=None,
            raise_on_error=True,
            allow_set_relation_comp=True,  # "1 < x < 2" is an interval
        )
    except MemoryError:
        raise
    except Exception:
        return False
