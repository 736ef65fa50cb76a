"""Whole episodes by problem."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.episodes import ALL, BROKEN, DIRECT, GUESS, RAN
from helpers.forks import fork

from retool_env.errors import SettingsError
from retool_env.metrics.causal.episodes import (
    Episodes,
    calls,
    compared,
    failure_bounds,
    mean,
    right,
)


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


def test_infrastructure_failures_are_bounded_in_both_directions():
    lost = dataclasses.replace(BROKEN, problem=GUESS.problem)
    first, second = Episodes.of([DIRECT, GUESS, lost]), Episodes.of([GUESS, lost])
    assert failure_bounds(first) == {
        "lowest": pytest.approx(1 / 3),
        "highest": pytest.approx(2 / 3),
    }
    # Lowest: the first arm's failure is wrong, the second arm's failure is right.
    assert failure_bounds(first, second) == {
        "lowest": pytest.approx(1 / 3 - 1 / 2),
        "highest": pytest.approx(2 / 3 - 0),
    }
    assert failure_bounds(Episodes.of([DIRECT])) == {}
    only_lost = Episodes.of([DIRECT, BROKEN])  # a problem without a scored episode counts as well
    assert failure_bounds(only_lost) == {"lowest": 0.5, "highest": 1.0}
