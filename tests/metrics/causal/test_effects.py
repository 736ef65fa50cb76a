"""The effects of faults on a world that is worked out by hand."""

from __future__ import annotations

import pytest
from helpers.forks import CALL, faulty, fork, world

from retool_env.metrics.causal.continuation import by_prefix, read_continuations
from retool_env.metrics.causal.effects import fault_figures


def figures(transcripts):
    made = list(fault_figures(by_prefix(read_continuations(transcripts))))
    assert len({figure.key for figure in made}) == len(made)
    return {figure.key: figure for figure in made}


def test_each_figure_has_its_analytic_value():
    found = figures(world())
    values = {
        "control/wrong_value": (1 + 1 / 2 + 1) / 3,
        "fault/wrong_value": (1 / 2 + 0 + 1) / 3,
        "effect/wrong_value": -1 / 3,
        "ratio/wrong_value": 1.5 / 2.5,
        "net/wrong_value": -1 / 3,
        "retries/wrong_value": (1 / 2) / 3,
        "calls_more/wrong_value": 1 / 3,
        "effect/blank_line": 0,
        "ratio/blank_line": 1,
        "format_sensitivity": 0,
    }
    assert {key: found[key].mean for key in values} == pytest.approx(values)


def test_each_figure_counts_continuations_prefixes_and_problems():
    effect = figures(world())["effect/wrong_value"]
    assert (effect.count, effect.prefixes, effect.problems) == (12, 3, 3)
    assert (effect.left_out, effect.failed) == (1, 0)  # problem d is not eligible
    assert effect.low < effect.mean < effect.high
    assert effect.detectable > 0


def test_a_ratio_on_a_low_control_accuracy_is_not_shown():
    found = figures(world())["ratio/wrong_value"]
    assert not found.shown  # three problems: the lower bound is below 20 %
    assert "control" in found.reason
    many = [
        fork(f"p{i}", arm, "right" if i % 4 else "7")
        for i in range(40)
        for arm in ("control", "timeout")
    ]
    assert figures(many)["ratio/timeout"].shown


def test_failures_are_excluded_and_bounded_both_ways():
    failing = [
        fork("a", "timeout", "right"),
        fork("a", "timeout", "failed"),
        fork("a", "control", "right"),
        fork("b", "timeout", "7"),
        fork("b", "control", "right"),
        fork("b", "control", "failed"),
    ]
    found = figures(failing)
    effect, fault = found["effect/timeout"], found["fault/timeout"]
    assert (effect.mean, effect.failed) == (-0.5, 2)
    # Problem a: 1/2 or 1 of 1; problem b: the control arm is 1 or 1/2.
    assert (effect.lowest, effect.highest) == (-0.75, -0.25)
    assert (fault.mean, fault.lowest, fault.highest) == (0.5, 0.25, 0.5)


def test_futile_calls_and_accuracy_without_the_tool():
    gone = (CALL, faulty("gone"))
    found = figures(
        [
            fork("a", "gone", "stopped", gone, gone),
            fork("a", "control", "right"),
            fork("b", "gone", "right"),
            fork("b", "always_timeout", "7"),
            fork("b", "control", "right"),
        ]
    )
    assert found["futile/gone"].mean == 1.0
    assert found["fallback/accuracy"].mean == (0 + 1 / 2) / 2
    assert "futile/timeout" not in found


@pytest.mark.parametrize(("flips", "equivalent"), [(0, True), (30, False)])
def test_format_sensitivity_is_tested_for_equivalence(flips, equivalent):
    forks = []
    for i in range(400):
        end = "right" if i % 2 else "7"
        forks += [fork(f"p{i}", "control", end)]
        forks += [fork(f"p{i}", "warning", "7" if i % 2 and i < 2 * flips else end)]
    found = figures(forks)["format_sensitivity"]
    assert found.mean == pytest.approx(-flips / 400)
    assert found.equivalent is equivalent
