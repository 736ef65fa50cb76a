"""What a model does next after a fault, in the recovery study."""

from __future__ import annotations

import math

import pytest
from helpers.forks import CALL, TRUE, faulty, fork

from benchmarks.parts.study_changes import Change
from benchmarks.parts.study_next import next_change, next_table, read_next
from retool_env.metrics.causal.continuation import by_prefix, read_continuations

OTHER = "<code>print(sum([42]))</code>"


def test_what_comes_next_is_read_by_arm_and_prefix():
    forks = [
        *(fork("a", "control", "right") for _ in range(4)),
        fork("a", "timeout", "right", (CALL, TRUE)),  # the same program
        fork("a", "timeout", "right", (OTHER, TRUE), (CALL, TRUE)),  # later only
        fork("a", "timeout", "43"),
        fork("a", "timeout", "stopped"),
        fork("a", "timeout", "failed"),  # of the machine, not of the model
        fork("b", "timeout", "43", (OTHER, TRUE)),
        fork("b", "empty", "43", (CALL, TRUE), result=faulty("empty", injected=False)),
    ]
    assert read_next(by_prefix(read_continuations(forks))) == {
        "control": [["a", 0.0, 0.0, 4]],
        "timeout": [["a", 0.5, 0.25, 4], ["b", 1.0, 0.0, 1]],
    }
    assert read_next({}) == {}


def of(share, numbers=range(12), arm="busy", spread=0.05):
    """An evaluation with nearly the same share at each problem."""
    return {"next": {arm: [[f"p{at}", share + spread * (-1) ** at, 0.0, 4] for at in numbers]}}


def test_the_change_is_paired_by_problem_with_the_interval_of_the_jackknife():
    before, after = of(0.2, spread=0), of(0.6, spread=0.1)
    found = next_change([before], [after], "busy")
    values = [0.4 + 0.1 * (-1) ** at for at in range(12)]
    without = [(sum(values) - value) / 11 for value in values]
    half = 2.200985 * math.sqrt(11 / 12 * sum((one - sum(without) / 12) ** 2 for one in without))
    assert (found.mean, found.problems) == (pytest.approx(0.4), 12)
    assert (found.low, found.high) == pytest.approx((0.4 - half, 0.4 + half))
    assert found.verdict == "higher"
    # Problems of one model alone don't move the change.
    before["next"]["busy"] += [[f"q{at}", 1.0, 0.0, 4] for at in range(9)]
    assert next_change([before], [after], "busy") == found
    few = next_change([of(0.2)], [of(0.6, range(3, 12))], "busy")
    assert (few.problems, few.verdict) == (9, "not shown")


def test_arms_and_seeds_have_equal_weights_and_none_is_left_out_unseen():
    before = {"next": {**of(0.2)["next"], **of(0.5, range(20), "gone")["next"]}}
    after = {"next": {**of(0.6)["next"], **of(0.5, range(20), "gone")["next"]}}
    assert next_change([before], [after], "busy", "gone").mean == pytest.approx(0.2)
    # An arm at one problem would vanish from a replicate of the jackknife.
    assert next_change([of(0.2, [1])], [of(0.6, [1])], "busy") == Change(None, None, None, 0)
    both = [before, of(0.2, range(40))], [after, of(0.2, range(40))], "busy"
    assert next_change(*both).mean == pytest.approx(0.2)
    missing = [before, of(0.2, arm="empty")], [after, of(0.2, arm="empty")], "busy"
    assert next_change(*missing) == Change(None, None, None, 0)
    assert next_change([], [], "busy") == Change(None, None, None, 0)


def test_the_table_has_levels_of_each_model_and_changes_against_the_first():
    rows = {"a result": ["control"], "busy": ["busy"], "both": ["busy", "gone"]}
    table = next_table({"old": [of(0.2)] * 2, "new": [of(0.6, spread=0.1), of(0.2)]}, rows)
    head = "after | old: calls again | with the same program | new: calls again"
    assert table[0] == f"| {head} | with the same program | change of the calls |"
    assert table[2] == "| a result | – | – | – | – | – |"
    cells = [cell.strip() for cell in table[3].split("|")[1:-1]]
    assert cells[0] == "busy" and cells[1].startswith("20 % [") and cells[2].startswith("0 % [")
    assert cells[3].startswith("40 % [") and cells[5].startswith("+20 [")
    assert cells[5].endswith("not shown (1 of 2 seeds)")
    assert table[4].startswith("| both | – | – | – | – | +20 [")
    assert next_table({}, rows) == ["No part of this table has been run."]
