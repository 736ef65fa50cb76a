"""The figures of the recovery study, and their changes."""

from __future__ import annotations

import dataclasses
import math

import pytest
from helpers.episodes import ANSWERED, CODE, OK, RIGHT, WRONG, episode
from helpers.forks import fork
from helpers.run_folders import a_recover, a_training, fill

from benchmarks.parts.study_figures import (
    Change,
    accuracy,
    accuracy_change,
    jackknife,
    kinds_of,
    pairs_of,
    read_evaluation,
    read_training,
    recovery,
    recovery_change,
)
from retool_env.evaluation.recover.records import ArmRecord
from retool_env.faults import KINDS
from retool_env.metrics.causal.intervals import Pair


def evaluation(fault: float, control: float = 1.0, kind="busy", problems=12, right=0.5):
    names = [f"p{number}" for number in range(problems)]
    # Every third problem differs, so that the interval has a width.
    rows = [[name, fault if at % 3 else fault / 2, control, 4] for at, name in enumerate(names)]
    return {"pairs": {kind: rows}, "accuracy": {name: [right, 4] for name in names}}


def test_seen_and_held_out_kinds_are_apart_and_placebos_are_in_neither():
    seen, held_out = kinds_of(True), kinds_of(False)
    assert not set(seen) & set(held_out)
    placebos = {kind.name for kind in KINDS.values() if kind.sort == "placebo"}
    assert set(KINDS) - {*seen, *held_out} == placebos


def test_a_recovery_ratio_is_of_the_named_kinds_alone():
    one = evaluation(0.6) | {"pairs": {"busy": [["a", 0.5, 1.0, 2]], "empty": [["a", 0.1, 1, 2]]}}
    assert recovery([one], ["busy"]).mean == 0.5
    assert recovery([one, one], ["busy", "empty"]).mean == pytest.approx(0.3)
    assert recovery([one], ["gone"]).mean is None
    assert pairs_of([one], ["empty"]) == [Pair("a", 0.1, 1, 2)]


def test_a_change_is_the_difference_of_the_ratios_and_its_interval_that_of_the_jackknife():
    before, after = [evaluation(0.2)], [evaluation(0.8)]
    found = recovery_change(before, after, ["busy"])
    shares = [1 if at % 3 else 0.5 for at in range(12)]
    assert found.mean == pytest.approx(0.6 * sum(shares) / 12)
    without = [0.6 * (sum(shares) - share) / 11 for share in shares]
    middle = sum(without) / 12
    half = 2.200985 * math.sqrt(11 / 12 * sum((x - middle) ** 2 for x in without))
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))
    assert found.verdict == "higher" and found.problems == 12
    assert recovery_change(after, before, ["busy"]).verdict == "lower"
    assert recovery_change(before, before, ["busy"]).verdict == "not shown"


def test_a_change_without_a_case_or_on_few_problems_is_not_shown():
    few = [evaluation(0.2, problems=9)], [evaluation(0.8, problems=9)]
    assert recovery_change(*few, ["busy"]).verdict == "not shown"
    assert recovery_change(*few, ["gone"]) == Change(None, None, None, 0)
    one = [Pair("a", 0.5, 1.0)]
    assert jackknife(one, one, lambda some: float(len(some))) == Change(0.0, None, None, 1)


def test_accuracy_is_of_the_problems_of_both_models():
    before, after = evaluation(0.2, right=0.25), evaluation(0.2, right=0.75, problems=11)
    assert accuracy([before]).mean == 0.25
    found = accuracy_change([before], [after])
    assert found.mean == 0.5 and found.problems == 11 and found.verdict == "higher"


def test_an_evaluation_is_read_from_its_folder(tmp_path):
    parents = [
        episode("a", ANSWERED, (CODE, OK), RIGHT, correct=True),
        episode("b", ANSWERED, WRONG),
    ]
    ends = {"control": ["right", "right"], "timeout": ["right", "41"], "empty": ["41", "41"]}
    forks = [fork("a", arm, end) for arm, some in ends.items() for end in some]
    folder = a_recover(tmp_path / "run", parents, protocols=["dose", "fork"])
    whole = [ArmRecord("m", one.problem.id, 0, 0, one, protocol="dose", arm="0") for one in parents]
    records = [
        ArmRecord("m", "a", at % 2, 0, one, protocol="fork", arm=one.parent.arm, parent=0, call=1)
        for at, one in enumerate(forks)
    ]
    fill(folder / "episodes.jsonl", [*whole, *records])
    found = read_evaluation(folder)
    assert found["accuracy"] == {"a": [1.0, 1], "b": [0.0, 1]}
    assert found["pairs"] == {"timeout": [["a", 0.5, 1.0, 2]], "empty": [["a", 0.0, 1.0, 2]]}
    assert found["figures"]["effect/timeout"]["mean"] == -0.5
    assert found["counts"]["parents"] == 2


def test_a_training_is_read_by_thirds(tmp_path):
    made = [episode("a", ANSWERED, (CODE, OK), RIGHT, correct=True), episode("b", ANSWERED, WRONG)]
    rollouts = [(step, one) for step in (1, 2, 3) for one in made]
    records = [{"step": step} for step in (1, 2, 3)]
    found = read_training(a_training(tmp_path / "run", rollouts, records=records))
    assert list(found) == ["1", "2", "3"]
    assert {third["episodes"] for third in found.values()} == {2}
    assert found["1"]["code_ratio"] == 0.5


def test_a_verdict_needs_an_interval_apart_from_0():
    change = Change(0.2, 0.1, 0.3, 60)
    assert change.verdict == "higher"
    assert dataclasses.replace(change, low=-0.01).verdict == "not shown"
    assert dataclasses.replace(change, low=None).verdict == "not shown"
    assert Change(-0.2, -0.3, -0.1, 60).verdict == "lower"
