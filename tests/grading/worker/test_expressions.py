"""Parsing: normal forms, expressions, names and chains."""

import pytest
import sympy

from retool_env.grading.worker.expressions import (
    chain,
    has_lost_words,
    is_name,
    is_odd_collection,
    normalise,
    parse,
    refuse_numbers_side_by_side,
)

X = sympy.Symbol("x")


def test_normalising_drops_units_but_no_values() -> None:
    assert normalise(r"5\text{ cm}") == normalise(r"5\text{ cm}^2") == "5"
    assert normalise("3t") == "3t"
    assert normalise(r"42 \text{ or maybe } {43}") is None


def test_a_text_is_parsed_as_one_expression_or_not_at_all() -> None:
    assert parse(r"\frac{1}{2} + 1").doit() == sympy.Rational(3, 2)
    assert parse("2i") == 2 * sympy.I
    assert parse("1 + ") is None


class Factor:
    def __init__(self, text: str) -> None:
        self._text = text

    def getText(self) -> str:  # the parser's name
        return self._text


@pytest.mark.parametrize(
    ("texts", "refused"),
    [
        (("5", "{6}"), True),
        (("5", r"\frac{7}{2}"), True),
        (("5", r"\frac{1}{2}"), False),  # a mixed number
        (("5", "x"), False),
        (("5",), False),
    ],
)
def test_numbers_side_by_side_are_refused(texts: tuple[str, ...], refused: bool) -> None:
    convert = refuse_numbers_side_by_side(lambda parser, factors, i: "parsed")
    factors = [Factor(text) for text in texts]
    if refused:
        with pytest.raises(ValueError, match="side by side"):
            convert(None, factors)
    else:
        assert convert(None, factors) == "parsed"


def test_names_may_stand_before_an_equals_sign() -> None:
    for name in ("x", "AB", "f(x)", "(x, y, z)"):
        assert is_name(parse(name), name), name
    for value in ("42", "xy", "x + 1", "six"):
        assert not is_name(parse(value), value), value


def test_the_members_of_a_chain() -> None:
    assert [str(member) for member in chain(parse("x = 2 = 3"))] == ["x", "2", "3"]
    assert chain(parse("x + 1")) is None


def test_words_in_the_text_of_a_number_are_lost() -> None:
    assert has_lost_words("0 maybe", sympy.Integer(0))
    assert not has_lost_words("0", sympy.Integer(0)) and not has_lost_words("three", X)


def test_a_collection_may_hold_names_with_their_values() -> None:
    assert not is_odd_collection(sympy.Tuple(sympy.Eq(X, 1), sympy.Integer(2)))
    assert is_odd_collection(sympy.Tuple(sympy.Eq(X + 1, 2)))
    assert not is_odd_collection(X)
