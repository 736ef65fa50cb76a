"""Golds: a value of a column becomes exact text, or an error that names the fault."""

import contextlib
from decimal import Decimal

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.grading import is_equivalent, is_value
from retool_env.problems.columns import (
    UnusableRow,
    check_gold,
    find_column,
    gold_of,
    gold_text,
)


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        (0, "0"),
        (-0.0, "0"),
        (34.0, "34"),
        (0.5, "0.5"),
        (1e20, "100000000000000000000"),
        (1e-05, "0.00001"),
        (-2.5e-7, "-0.00000025"),
        (Decimal("1E+3"), "1000"),
        (Decimal("2.500"), "2.5"),
        (numpy.int64(7), "7"),
        (numpy.float32(0.1), "0.1"),
        (numpy.float64(1e20), "100000000000000000000"),
        (numpy.array(["34"]), "34"),
        (" 34 ", "34"),
        ("034", "034"),
        ("1e20", "100000000000000000000"),
        ("-1.5E-3", "-0.0015"),
        (["34"], "34"),
        ([["34"]], "34"),
        (["1/2", "0.5"], "1/2"),
        ('["\\\\frac{1}{2}"]', r"\frac{1}{2}"),
        ("[1, 2]", "[1, 2]"),
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1/2}, so $\boxed{0.5}$", "1/2"),
        (r"\boxed{1},\boxed{2}", "1, 2"),
        ("1 + 1 = <<1+1=2>>2\n#### 1,000", "1,000"),
    ],
)
def test_values_become_golds(value, gold):
    assert gold_text(value) == gold


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "is null"),
        (True, "is a truth value, neither text nor a number"),
        (numpy.bool_(False), "is a truth value, neither text nor a number"),
        (float("nan"), "is not a number"),
        (numpy.float32("inf"), "is infinite"),
        ({"value": 1}, "is an object, neither text nor a number"),
        (b"34", "is bytes, neither text nor a number"),
        ([], "is an empty list"),
        ([None], "is null"),
        (["1", "2"], "is a list of different answers; give one value: .'1', '2'."),
        ("['1', '2']", "is a list of different answers"),
        pytest.param(10**5000, "more than 2,000 digits", id="a long integer"),
        (Decimal("1e-5000"), "more than 2,000 digits"),
        ("1e99999999999999999999", "exponent out of range"),
        ("so\n#### ", "no result after '####'"),
    ],
)
def test_an_error_names_the_fault_of_an_answer(value, message):
    with pytest.raises(ValueError, match=message):
        gold_text(value)


@pytest.mark.parametrize(
    "gold",
    ["None", "null", "NaN", "-inf", "9" * 2001, "}", "1}", "1 +"],
)
def test_golds_that_no_answer_can_equal_are_refused(gold):
    with pytest.raises(UnusableRow):
        check_gold(gold)


@pytest.mark.parametrize("gold", ["0", "-3", "007", r"\frac{1}{2}", "Paris", r"\text{None}"])
def test_golds_that_are_values_pass(gold):
    check_gold(gold)


def test_formulas_without_words_can_be_trusted():
    trusted = [r"\frac{1}{2}", "1 +", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"3\text{ cats}"]
    for gold in trusted:
        check_gold(gold, trust_formulas=True)
    for gold in ("None", r"\frac{1}{2"):
        with pytest.raises(UnusableRow):
            check_gold(gold, trust_formulas=True)


@given(value=st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.decimals(-1, 1))
def test_a_number_is_written_out_exactly(value):
    gold = gold_text(value)
    assert Decimal(gold) == Decimal(str(value)) and not set(gold) - set("-.0123456789")
    assert gold == gold.strip() and (gold == "0" or not gold.lstrip("-").startswith("00"))


@given(value=st.text() | st.recursive(st.none() | st.booleans() | st.text(), st.lists))
def test_any_value_gives_a_gradable_gold_or_a_clear_error(value):
    with contextlib.suppress(ValueError):  # the only error of a refused value
        gold = gold_of({"answer": value})
        assert is_equivalent(f"\\boxed{{{gold}}}", gold) and is_value(gold)


def test_a_name_with_a_dot_is_a_column_or_lies_inside_one():
    keys = ("reward_model.ground_truth",)
    for row in ({"reward_model.ground_truth": "1"}, {"Reward_Model": {"ground_truth": "1"}}):
        assert find_column(row, keys)[1] == "1"
    for row in ({"reward_model": "text"}, {"reward_model": None}, {"ground_truth": "1"}):
        assert find_column(row, keys) is None
