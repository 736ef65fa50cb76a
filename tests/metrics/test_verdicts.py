"""Warnings of verdicts, of episodes that were worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.episodes import ANSWERED, BROKEN, CODE, OK, episode

from retool_env.metrics.verdicts import DOUBTS, GradingWarning, grading_warnings
from retool_env.transcript import StopReason

VOID, CUT = StopReason.VOID_TURN, StopReason.TOKEN_BUDGET


def answered(answer, correct=False):
    made = episode("p", ANSWERED, f"<answer>{answer}</answer>", correct=correct)
    return dataclasses.replace(made, answer=answer)


@pytest.mark.parametrize(
    ("transcript", "expected"),
    [
        (answered("42", correct=True), []),
        (answered("41"), []),
        (answered("41 or 42"), []),  # a list of values
        (answered("The answer is 42."), [("right_not_in_form", "42")]),
        (answered(r"5\text{ or six}"), [("unreadable_answer", r"5\text{ or six}")]),
        (answered(r"\sqrt{42}"), []),  # no sentence
        (answered("x +"), [("unreadable_answer", "x +")]),
        (answered(""), [("unreadable_answer", "")]),
        (episode("p", VOID, r"So it is \boxed{42}."), [("right_not_in_form", "42")]),
        (episode("p", VOID, r"So \boxed{41}, not 42."), []),  # the box is meant
        (episode("p", VOID, "It is 6 * 7 = 42."), [("right_not_in_form", "42")]),
        (episode("p", VOID, "It is 42, or 43."), []),
        (episode("p", VOID, "It is 1,042."), []),
        (episode("p", VOID, "nothing"), []),
        (episode("p", CUT, "It is 4"), [("cut_before_answer", "")]),
        (
            episode("p", CUT, "It is 42"),
            [("right_not_in_form", "42"), ("cut_before_answer", "")],
        ),
        # What the interpreter wrote is not the model's.
        (episode("p", VOID, (CODE, OK), "done"), []),
        (episode("p", StopReason.CALL_LIMIT, (CODE, OK), CODE), []),
        (BROKEN, []),
    ],
)
def test_warnings_by_hand(transcript, expected):
    found = grading_warnings([answered("42", correct=True), transcript])
    assert [(warning.kind, warning.written) for warning in found] == expected
    for warning in found:
        assert (warning.index, warning.problem, warning.gold) == (1, "p", "42")


def test_warnings_are_in_the_order_of_the_transcripts():
    found = grading_warnings(iter([answered("x +"), episode("q", CUT, "hm")]))
    assert found == [
        GradingWarning("unreadable_answer", 0, "p", "x +", "42"),
        GradingWarning("cut_before_answer", 1, "q", "", "42"),
    ]
    assert {warning.kind for warning in found} < set(DOUBTS)
