"""The verdict on two texts, and the texts that are rewritten before it."""

import pytest

from retool_env.grading.worker.comparison import (
    both_signs,
    compare,
    joined,
    reply_to,
    without_approximations,
)


def test_the_exact_member_of_an_approximation_counts() -> None:
    for text, exact in (
        (r"\pi \approx 3.14159", r"\pi"),
        (r"x = \frac{1}{3} \approx 0.333", r"x = \frac{1}{3}"),
        (r"x \approx 2", "x = 2"),
        ("5", "5"),
    ):
        assert without_approximations(text).split() == exact.split()


@pytest.mark.parametrize("text", [r"5 \approx 7", r"\pi \approx \frac{22}{7}", r"y + 1 \approx 2"])
def test_a_wrong_approximation_is_refused(text: str) -> None:
    assert without_approximations(text) is None


def test_plus_minus_gives_both_values() -> None:
    assert both_signs(r"2 \pm 1") == "2 + 1, 2 - 1"
    assert both_signs(r"x = \mp 3").split() == ["-", "3,", "3"]
    assert both_signs("x = 3") == "x = 3" and both_signs(r"1 \pm 2, 5") == r"1 \pm 2, 5"


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("x = 5", "5", True),
        ("5", "x = 5", True),
        ("1 = 2 = 5", "5", False),
        (r"x + y", r"y + x", True),
        (r"\{1, 2\}", r"\{2, 1\}", True),
        (r"\{1, 2\}", "(1, 2)", False),
        ("[1, 2]", "1, 2", True),
        ("1 2", "3", False),
        (r"\text{North, South}", r"\text{north,south}", True),
        (r"1 \phantom{2}", "1", False),
        ("17_8", "17_9", False),
        ("0 maybe", "0", False),
        ("", "1", False),
    ],
)
def test_verdicts(answer: str, gold: str, verdict: bool) -> None:
    assert compare(answer, gold) is verdict


def test_several_boxes_are_the_list_of_their_different_values() -> None:
    assert joined(["a", "b", "a"]) == "a, b"
    assert reply_to(["a", "b"], ["a, b"]) and not reply_to(["a"], ["a, b"])


def test_a_question_without_gold_asks_for_values() -> None:
    assert reply_to(["x + 1"]) and reply_to([r"\text{Paris}"])
    assert not reply_to(["1 + "]) and not reply_to(["x", "1 + "])
