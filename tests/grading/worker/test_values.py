"""Comparison of values: exact numbers, decimals, matrices and expressions with unknowns."""

from fractions import Fraction

import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.grading.worker.expressions import parse
from retool_env.grading.worker.values import (
    _is_nonzero_at_a_point,
    close,
    exact,
    exactly_equal,
    fraction,
    numbers_equal,
    symbolically_equal,
    verify,
)

X = sympy.Symbol("x")
HALF, THIRD = sympy.Rational(1, 2), sympy.Rational(1, 3)


def test_decimals_become_fractions() -> None:
    assert exact(sympy.Float("0.5") * X) == HALF * X
    assert fraction(HALF) == Fraction(1, 2)
    assert abs(fraction(sympy.pi) - Fraction("3.14159265358979323846")) < Fraction(1, 10**20)
    assert fraction(sympy.I) is None and fraction(sympy.oo) is None


def test_a_decimal_is_close_to_six_places_and_to_one_part_in_100_000() -> None:
    assert close(sympy.Rational("0.333333"), THIRD) and not close(sympy.Rational("0.3333"), THIRD)
    assert not close(sympy.Rational("0.0010001"), sympy.Rational("0.0010004"))


def test_numbers_are_compared_exactly_unless_one_is_a_decimal() -> None:
    assert numbers_equal(THIRD, sympy.Float("0.333333"))
    assert not numbers_equal(sympy.Integer(2), sympy.Float("2.0000001"))
    assert not numbers_equal(THIRD, sympy.Rational(333333, 1000000))
    assert numbers_equal(parse(r"50\%"), HALF) and numbers_equal(parse(r"50\%"), sympy.Integer(50))


def test_matrices_are_compared_by_their_elements() -> None:
    first = sympy.Matrix([[1, HALF]])
    assert numbers_equal(first, sympy.Matrix([[1, sympy.Float("0.5")]]))
    assert not numbers_equal(first, sympy.Matrix([[1, 2]]))
    assert not numbers_equal(first, sympy.Matrix([[1], [HALF]]))


def test_roots_are_equal_by_their_digits() -> None:
    left, right = sympy.sqrt(2) + sympy.sqrt(3), sympy.sqrt(5 + 2 * sympy.sqrt(6))
    assert exactly_equal(left, right)
    assert not exactly_equal(left, right + sympy.Rational(1, 10**350))
    assert not exactly_equal(sympy.pi, sympy.Rational(22, 7))


def test_unknowns_are_compared_by_algebra() -> None:
    assert symbolically_equal((X + 1) ** 2, X**2 + 2 * X + 1)
    assert not symbolically_equal(X, X + 1)
    assert symbolically_equal(sympy.Matrix([X * 2]), sympy.Matrix([X + X]))


def test_a_comparison_that_raises_is_a_refusal() -> None:
    assert verify(parse("2"), parse("1 + 1"))
    assert not verify(parse("2"), object())


def test_a_root_of_a_product_is_the_product_of_the_roots() -> None:
    a, b = sympy.symbols("a b", real=True)
    assert symbolically_equal(sympy.sqrt(a * b), sympy.sqrt(a) * sympy.sqrt(b))
    assert symbolically_equal(sympy.sqrt(a / b), sympy.sqrt(a) / sympy.sqrt(b))
    assert not symbolically_equal(sympy.sqrt(a**2), a)
    assert not symbolically_equal(sympy.sqrt(a**2 * b), a * sympy.sqrt(b))
    assert not symbolically_equal(sympy.sqrt(-a) * sympy.sqrt(-b), sympy.sqrt(a * b))


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(-9, 9), st.integers(1, 4), st.booleans())
def test_a_value_at_a_point_never_makes_equal_expressions_unequal(
    a: int, b: int, power: int, root: bool
) -> None:
    first = (a * X + b) ** power * (sympy.sqrt(X + 2) if root else 1)
    assert symbolically_equal(sympy.expand(first), first)
    assert not symbolically_equal(first + sympy.Rational(1, 1000), first)


def test_digits_that_cancel_at_a_point_are_not_a_difference() -> None:
    large = (X + 10**5) ** 60
    assert not _is_nonzero_at_a_point(sympy.expand(large) - large)
    assert not _is_nonzero_at_a_point(sympy.log(X - 10) - sympy.log(X - 10, evaluate=False))
    assert not _is_nonzero_at_a_point(sympy.Sum(1 / X, (X, 1, 10**9)))
    assert _is_nonzero_at_a_point(sympy.I * X)
