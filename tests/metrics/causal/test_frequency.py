"""The three arms of frequency, counted by hand; selection and judgement on different halves."""

from __future__ import annotations

import random

import pytest
from helpers.episodes import CODE, OK, RIGHT, WRONG, episode

from retool_env.metrics.causal.frequency import frequency_figures
from retool_env.transcript import StopReason


def one(problem, right, called=False):
    turns = [(CODE, OK)] if called else []
    end = RIGHT if right else WRONG
    return episode(problem, StopReason.ANSWERED, *turns, end, correct=bool(right))


def figures(*arms):
    return {figure.key: figure for figure in frequency_figures(*arms)}


def test_gain_and_price_by_hand():
    text = [one("a", 1), one("a", 0), one("b", 1), one("b", 1)]
    offered = [one("a", 1, True), one("a", 1, True), one("b", 1), one("b", 0, True)]
    gone = [one("a", 0), one("a", 0), one("b", 1), one("b", 1), one("c", 1)]
    found = figures(text, offered, gone)
    assert found["frequency/text_only"].mean == 0.75
    assert found["frequency/gain"].mean == (0.5 - 0.5) / 2
    assert found["frequency/price"].mean == (0.5 + 0) / 2
    assert found["frequency/price"].left_out == 1  # problem c
    assert not found["frequency/over_use"].shown
    assert "fewer than 95% of the problems have 16 samples" in found["frequency/over_use"].reason


def test_over_use_and_under_use_by_hand():
    # The tool never helps at `easy`, and half of the episodes call it. It always helps at `hard`,
    # and a quarter of the episodes do not call it.
    def arms(count):
        names = [f"{name}{i}" for name in ("easy", "hard") for i in range(count)]
        uses = {"easy": lambda i: i % 4 < 2, "hard": lambda i: i % 8 > 1}
        offered = [one(name, 1, uses[name[:4]](i)) for name in names for i in range(16)]
        return [one(name, name < "hard") for name in names for _ in range(16)], offered, []

    few = figures(*arms(9))["frequency/over_use"]
    assert not few.shown and "fewer than 10 problems are selected" in few.reason
    found = figures(*arms(10))
    assert found["frequency/over_use"].mean == 0.5
    assert found["frequency/under_use"].mean == 0.25
    assert found["frequency/over_use/gain"].mean == 0
    assert found["frequency/under_use/gain"].mean == 1
    assert found["frequency/over_use"].shown and found["frequency/over_use"].count == 160


def test_problems_with_a_lost_episode_are_left_out_and_hide_the_figures_if_they_are_many():
    def arms(short):
        names = [f"p{i}" for i in range(40)]
        offered = [one(n, 1, j % 2) for i, n in enumerate(names) for j in range(16 - (i < short))]
        return [one(name, 1) for name in names for _ in range(16)], offered, []

    for short in (1, 2):
        found = figures(*arms(short))["frequency/over_use"]
        assert found.shown and found.mean == 0.5
        assert (found.problems, found.left_out) == (40 - short, short)
    many = figures(*arms(3))["frequency/over_use"]
    assert not many.shown and "95%" in many.reason
    text, offered, gone = arms(0)
    assert figures([*text, one("x", 1)], offered, gone)["frequency/over_use"].left_out == 1


def test_the_selecting_half_does_not_judge():
    """Without any true gain, the problems that seem to gain have a judged gain around 0."""
    rng = random.Random(0)
    arms = [[one(f"p{i}", rng.random() < 0.5) for i in range(150) for _ in range(16)] for _ in "ab"]
    found = figures(*arms, [])["frequency/under_use/gain"]
    assert found.mean == pytest.approx(0, abs=0.06)  # by the selecting half it would be 0.14
    assert found.low < 0 < found.high
