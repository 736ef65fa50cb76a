"""The record of a figure, and when it is shown."""

from __future__ import annotations

from helpers.forks import fork

from retool_env.metrics.causal.continuation import by_prefix, read_continuations
from retool_env.metrics.causal.figure import (
    CausalFigure,
    arm_difference,
    arm_ratio,
    arm_share,
    causal,
    more_of,
)
from retool_env.metrics.estimators import ClusterMean

ARMS = ("timeout", "control")


def cells(*forks):
    return by_prefix(read_continuations(forks))


def right(one):
    return one.right


def test_a_figure_without_a_case_is_hidden_with_a_reason():
    found = causal("key", ClusterMean(0, 0, None, None, None), "Nothing.")
    assert (found.shown, found.reason, found.mean) == (False, "it has no case", None)
    assert CausalFigure.from_json(found.to_json()) == found


def test_prefixes_weigh_by_their_mean_and_not_by_their_samples():
    many = [fork("a", "timeout", "right") for _ in range(9)]
    found = arm_share("key", cells(*many, fork("b", "timeout", "7")), "timeout", right, "A share.")
    assert found.mean == 0.5
    assert (found.count, found.prefixes, found.problems) == (10, 2, 2)


def test_a_ratio_is_over_sums_without_selection():
    made = cells(
        *(fork("a", arm, "right") for arm in ARMS),
        *(fork("b", arm, "7") for arm in ARMS),
        fork("c", "timeout", "7"),
        fork("c", "control", "right"),
    )
    assert arm_ratio("key", made, ARMS, right, "A ratio.").mean == 0.5
    assert arm_difference("key", made, ARMS, right, "A difference.").mean == -1 / 3


def test_a_control_accuracy_of_0_hides_the_ratio():
    made = cells(*(fork(p, arm, "7") for p in "ab" for arm in ARMS))
    found = arm_ratio("key", made, ARMS, right, "A ratio.")
    assert (found.shown, found.mean) == (False, None)


def test_numbers_are_compared_with_the_control_arm():
    made = cells(fork("a", "timeout", "right"), fork("a", "control", "7"))
    found = more_of("key", made, "timeout", lambda one: one.characters, "Characters.")
    assert found.mean == 1  # "42" is a character longer than "7"
    assert found.low is None  # one problem


def test_numbers_that_hardly_vary_are_not_shown():
    """An interval of zero width would say that no fault ever causes a call more."""
    for more in (0, 4, 5, 36, 40):
        forks = [
            fork(f"p{i}", arm, "long words" if arm == "timeout" and i < more else "right")
            for i in range(40)
            for arm in ARMS
        ]
        found = more_of("key", cells(*forks), "timeout", lambda one: one.characters, "Characters.")
        assert found.mean is not None and found.shown == (more == 5)
        assert ("fewer than 5 problems" in found.reason) == (more != 5)
