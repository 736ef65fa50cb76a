"""The meaning of letters: units, numerals, ambiguous texts and words."""

import pytest

from retool_env.grading.worker import words


@pytest.mark.parametrize("text", [r"\text{ cm}^2", r"\text{ miles per hour}", "kg", "m", "a day"])
def test_a_unit_keeps_the_value(text: str) -> None:
    assert words.is_unit(text)


@pytest.mark.parametrize(
    "text", [r"\text{ or six}", r"\text{ squared}", "x", "a", "XIV", r"\text{ cm 3}", "5", ""]
)
def test_other_texts_are_not_units(text: str) -> None:
    assert not words.is_unit(text)


def test_the_base_of_a_numeral_is_its_subscript() -> None:
    assert words.bases_of("43_7") == words.bases_of(r"43_{\text{7}}") == {"7"}
    assert words.bases_of("43_7 + 1_{12}") == {"7", "12"}
    assert words.bases_of("x_7") == words.bases_of("43") == set()
    assert words.is_numeral("17", "8") and words.is_numeral("17", r"\text{8}")
    assert not words.is_numeral("19", "8") and not words.is_numeral("1", "n")


def test_a_name_before_a_set_is_removed() -> None:
    assert words.without_member(r"x \in [1, 2]") == "[1, 2]"
    assert words.without_member(r"x \in \mathbb{R}") == r"x \in \mathbb{R}"


@pytest.mark.parametrize("text", ["1 2", r"0 \text{ or } 5", r"1\quad 2", "5 €", "19_8"])
def test_a_text_with_several_values_is_ambiguous(text: str) -> None:
    assert words.is_ambiguous(text)


@pytest.mark.parametrize("text", ["1 000", r"5\text{ cm}", "17_8", r"\frac{1}{2}"])
def test_other_texts_are_not_ambiguous(text: str) -> None:
    assert not words.is_ambiguous(text)


def test_words_are_compared_without_case_and_spaces() -> None:
    assert words.words_of(r"\text{A, C,  F}") == words.words_of("a,c, f") == "a,c,f"
    assert words.words_of("no solution.") == "no solution" and words.words_of("x + 1") is None
    assert words.is_words(r"\text{Evelyn}") and not words.is_words("2 apples")


def test_hidden_parts_are_recognised() -> None:
    for text in (r"1 \phantom{2}", r"1, \ldots, 9", "1..9", "(1, 2)'"):
        assert words.hides_a_part(text)
    assert not words.hides_a_part(r"\frac{1}{2}")
