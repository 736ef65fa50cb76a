"""The figures of the recovery study, and their changes."""

from __future__ import annotations

import math

import pytest
from helpers.episodes import ANSWERED, CODE, OK, RIGHT, WRONG, episode
from helpers.forks import fork
from helpers.run_folders import a_recover, a_training, fill

from benchmarks.parts.study_changes import Change
from benchmarks.parts.study_figures import (
    SAME_TEXT,
    accuracy,
    accuracy_change,
    kinds_of,
    pairs_of,
    read_evaluation,
    read_training,
    recovery,
    recovery_change,
)
from retool_env.episode import RunProgram
from retool_env.evaluation.recover.records import ArmRecord
from retool_env.execution import Execution, Limits, Outcome
from retool_env.faults import KINDS
from retool_env.faults.kinds import show
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
    assert set(KINDS) - {*seen, *held_out} == placebos | set(SAME_TEXT)


def test_no_claim_is_about_a_held_out_kind_with_the_text_of_a_seen_kind():
    true = Execution(Outcome.OK, "a = 1234\n")
    before = Execution(Outcome.OK, "b = 7\n")
    program = "import sympy; print(sympy.factorint(6))"

    def text(kind, session):
        call = RunProgram(program, Limits(), session, fault=kind, problem="p", before=before)
        shown = show(call, true)
        return (shown.outcome, call.seen(shown))

    guest = {"missing_package", "wrong_function"}  # the process makes them: no text is put in
    kinds = [k.name for k in KINDS.values() if k.sort != "placebo" and k.name not in guest]
    for session in (False, True):
        texts = {kind: text(kind, session) for kind in kinds}
        seen = {texts[kind] for kind in kinds if KINDS[kind].seen}
        alike = {kind for kind in kinds if not KINDS[kind].seen and texts[kind] in seen}
        assert alike == set(SAME_TEXT) and not alike & {*kinds_of(False), *kinds_of(True)}


def test_a_recovery_ratio_is_of_the_named_kinds_alone_which_have_equal_weights():
    rows = {
        "busy": [[name, 0.5, 1.0, 2] for name in "abcdefghijkl"],
        "empty": [[name, at % 2 / 5, 1, 2] for at, name in enumerate("abcdefghij")],
        # Right from the true result at one problem: one fewer than the rule asks for.
        "gone": [[name, float(name == "a"), float(name == "a"), 2] for name in "abcdefghijkl"],
    }
    one = {"pairs": rows}
    assert recovery([one], ["busy"]).mean == 0.5
    assert recovery([one], ["gone"]).mean == 1.0
    assert recovery([one], ["memory"]).mean is None
    assert recovery([one], ["memory", "gone"]).mean is None
    for some in ([one], [one, one]):
        found = recovery(some, ["busy", "empty", "gone"])
        assert found.mean == pytest.approx(0.3)  # not 7 / 22, the ratio of all prefixes
        assert (found.count, found.clusters) == (22 * len(some), 12)
    assert found.low >= 0 and found.high > found.mean
    assert recovery([one], ["busy", "empty"], least=11).mean == 0.5  # `empty` has ten problems
    assert recovery([one, {"pairs": {}}], ["busy", "empty"]).mean is None  # a seed without a kind
    assert pairs_of([one], ["empty"])["empty"][1] == Pair("b", 0.2, 1, 2)


def test_a_change_of_the_mix_of_kinds_alone_is_no_change_of_the_ratio():
    def mixed(second):
        kinds = {"busy": (0.9, 12), "empty": (0.2, second)}
        return {
            "pairs": {
                kind: [[f"p{at}", mean + 0.05 * (-1) ** at, 1.0, 4] for at in range(number)]
                for kind, (mean, number) in kinds.items()
            }
        }

    before, after = [mixed(12)], [mixed(10)]
    assert recovery(before, ["busy", "empty"]).mean == pytest.approx(0.55)
    assert recovery(after, ["busy", "empty"]).mean == pytest.approx(0.55)
    found = recovery_change(before, after, ["busy", "empty"])
    assert found.mean == pytest.approx(0) and found.verdict == "not shown"


def test_a_kind_counts_only_if_no_replicate_loses_it():
    before, after = evaluation(0.2), evaluation(0.8)
    alone = recovery_change([before], [after], ["busy"])
    before["pairs"]["empty"] = [["p0", 1.0, 1.0, 4], ["p1", 1.0, 0.0, 4]]
    after["pairs"]["empty"] = [["p0", 0.0, 1.0, 4], ["p1", 0.0, 1.0, 4]]
    assert recovery_change([before], [after], ["busy", "empty"]) == alone
    assert recovery_change([before], [after], ["empty"]) == Change(None, None, None, 0)


def test_a_change_is_of_the_problems_of_both_models_and_counts_these():
    def of(numbers, mean):
        return {"pairs": {"busy": [[f"p{at}", mean + 0.05 * (-1) ** at, 1.0, 4] for at in numbers]}}

    # Twelve problems for each model, nine of them for both: too few for a claim.
    nine = [of(range(12), 0.2)], [of(range(3, 15), 0.8)], ["busy"]
    found = recovery_change(*nine)
    assert (found.mean, found.problems) == (pytest.approx(0.6), 9)
    assert found.verdict == "not shown"
    assert recovery_change(*nine, least=10) == Change(None, None, None, 0)
    found = recovery_change([of(range(12), 0.2)], [of(range(2, 14), 0.8)], ["busy"])
    assert (found.mean, found.problems) == (pytest.approx(0.6), 10)
    # Problems of one model alone don't move the change, nor do those of another seed.
    before, after = of(range(12), 0.2), of(range(12), 0.8)
    before["pairs"]["busy"] += [[f"q{at}", 1.0, 1.0, 4] for at in range(20)]
    after["pairs"]["busy"] += [[f"r{at}", 0.0, 1.0, 4] for at in range(20)]
    found = recovery_change([before], [after], ["busy"])
    assert (found.mean, found.problems) == (pytest.approx(0.6), 12)
    # A seed without a common problem: no figure, rather than one of the other seed alone.
    found = recovery_change([of(range(6), 0.2), before], [of(range(6, 12), 0.8), after], ["busy"])
    assert found == Change(None, None, None, 0)
    # Seeds have equal weights, however many problems each of them has.
    found = recovery_change([before, of(range(40), 0.2)], [after, of(range(40), 0.2)], ["busy"])
    assert (found.mean, found.problems) == (pytest.approx(0.3), 40)
    wide = recovery([of(range(12), 0.2), of(range(40), 0.8)], ["busy", "gone"])
    assert (wide.mean, wide.clusters, wide.count) == (pytest.approx(0.5), 40, 52)


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


def test_accuracy_is_of_the_problems_of_both_models():
    before, after = evaluation(0.2, right=0.25), evaluation(0.2, right=0.75, problems=11)
    assert accuracy([before]).mean == 0.25
    found = accuracy_change([before], [after])  # all change alike: no width is known
    assert (found.mean, found.problems, found.verdict) == (0.5, 11, "not shown")
    for at, name in enumerate(after["accuracy"]):
        after["accuracy"][name][0] = 0.65 + at * 0.02
    found = accuracy_change([before], [after])
    assert found.mean == pytest.approx(0.5) and found.problems == 11 and found.verdict == "higher"


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
    assert list(found["next"]) == ["control", *found["pairs"]]
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
