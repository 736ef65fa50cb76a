"""Whole episodes by problem."""

from __future__ import annotations

import pytest
from helpers.episodes import ALL, BROKEN, DIRECT, GUESS, RAN
from helpers.forks import fork

from retool_env.errors import SettingsError
from retool_env.metrics.causal.episodes import Episodes, calls, compared, mean, right


def test_scored_episodes_are_sorted_by_problem_and_the_others_counted():
    found = Episodes.of(ALL)
    assert found.by_problem["a"] == [DIRECT, GUESS]
    assert (found.failed, found.count) == (1, len(ALL) - 1)
    assert BROKEN.problem.id not in found.by_problem


def test_two_arms_are_compared_on_common_problems():
    (pair,) = compared(Episodes.of([DIRECT, GUESS, RAN]), Episodes.of([GUESS]))
    assert (pair.problem, pair.first, pair.second, pair.samples) == ("a", 0.5, 0.0, 1.5)
    assert mean([RAN, DIRECT], calls) == 0.5
    assert mean([RAN, GUESS], right) == 0.5


def test_forks_are_refused():
    with pytest.raises(SettingsError, match="leave out the forks"):
        Episodes.of([fork("a", "control", "right")])
