"""Wrong values differ from the true output in one number, or in the order of two lines."""

import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from retool_env.faults.values import wrong_value

OUTPUTS = st.one_of(
    st.text("0123456789-. \n()[],=xe", max_size=40),
    st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False), min_size=1).map(
        lambda numbers: "\n".join(map(str, numbers)) + "\n"
    ),
    st.lists(st.integers(), min_size=1).map(lambda numbers: f"{numbers}\n"),
)


@given(OUTPUTS, st.text("pq/1", max_size=3))
def test_a_wrong_value_always_differs_and_is_always_the_same(output, problem):
    wrong = wrong_value(output, problem)
    if wrong is not None:
        assert wrong != output
        assert wrong == wrong_value(output, problem)


@given(st.integers(), st.text("pq", max_size=8))
@example(0, "")
@example(-1, "p")
@example(10, "p")
def test_a_whole_number_becomes_another_whole_number(number, problem):
    wrong = wrong_value(f"{number}\n", problem)
    assert int(wrong) != number
    assert wrong.strip() == str(int(wrong)), "written as Python writes it"


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3), st.text("pq", max_size=8))
@example(Fraction(0), "p")
def test_a_decimal_number_becomes_another_decimal_number(number, problem):
    text = f"{float(number):.3f}"
    assume(len(text) < 16)
    wrong = wrong_value(text, problem)
    assert float(wrong) != float(text)
    assert re.fullmatch(r"-?[0-9]+\.[0-9]{3}", wrong)


@given(st.lists(st.integers(), min_size=2, max_size=6), st.text("pq", max_size=8))
def test_only_the_last_number_of_a_line_changes(numbers, problem):
    wrong = eval(wrong_value(f"{numbers}", problem))
    assert wrong[:-1] == numbers[:-1]
    assert wrong[-1] != numbers[-1]


@given(st.lists(st.integers(0, 99), min_size=2, max_size=6), st.text("pq", max_size=8))
def test_of_several_lines_either_one_number_changes_or_two_lines_are_swapped(numbers, problem):
    lines = [str(number) for number in numbers]
    wrong = wrong_value("\n".join(lines), problem).split("\n")
    different = [at for at, (line, new) in enumerate(zip(lines, wrong, strict=True)) if line != new]
    if len(different) == 2:
        first, second = different
        assert second == first + 1
        assert (lines[first], lines[second]) == (wrong[second], wrong[first])
    else:
        assert different == [len(lines) - 1]
        int(wrong[-1])


def test_every_change_occurs():
    changes = Counter(wrong_value("12\n345\n", f"problem {i}") for i in range(400))
    assert min(changes[text] for text in ("12\n346\n", "12\n344\n", "12\n-345\n")) > 40
    assert changes["345\n12\n"] > 40
    digits = [text for text in changes if text.startswith("12\n") and len(text) == len("12\n345\n")]
    assert len(digits) > 10


@pytest.mark.parametrize(
    "output", ["", "\n", "done", "x2", "v1.2.3", "same\nsame\n", "  \n\n", "a\r\na", "a \na"]
)
def test_an_output_without_a_number_or_two_different_lines_has_no_wrong_value(output):
    assert wrong_value(output, "p") is None


@pytest.mark.parametrize(
    ("output", "allowed"),
    [
        ("x - 5", r"x - -?\d"),
        ("x-5", r"x-\d"),  # a minus between two operands is not a sign
        ("0", r"-?1|[2-9]"),
        ("-1", r"-2|0|1|-[02-9]"),
        ("0.50", r"1\.50|-0\.50|\d\.\d\d"),
        ("1,000", r"1,(001|0\d0|\d00|00\d)"),
        ("1,999", r"1,(998|[1-9]99|9\d9|99\d)"),
        ("1e-07", r"[02-9]e-07|-1e-07"),
        ("100", r"101|99|[1-9]\d\d|-100"),
    ],
)
def test_the_changed_number_keeps_its_form(output, allowed):
    for i in range(60):
        assert re.fullmatch(allowed, wrong_value(output, str(i)))


def test_a_number_of_many_digits_keeps_python_from_converting_it():
    assert wrong_value("7" * 5000, "p") is None
    assert wrong_value("a\nb\n" + "7" * 5000, "p") is not None
