"""Runs are compared in pairs; sets, bands and Holm's method."""

from __future__ import annotations

import json

import pytest
from helpers.compared_runs import (
    a_record,
    ended,
    outcomes,
    problem_of,
    write_run,
    write_verdicts,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retool_env.errors import SettingsError
from retool_env.evaluation.compare.comparison import compare, compare_outcomes


def test_two_runs_are_compared_on_their_common_problems(tmp_path):
    first = write_verdicts(tmp_path / "a", {"p": [True, False], "q": [False], "r": [True]})
    second = write_verdicts(tmp_path / "b", {"q": [True], "p": [True, True], "s": [False]})
    [found] = compare([first, second]).comparisons
    assert (found.first, found.second) == ("A", "B")
    assert found.overall.difference == pytest.approx((0.5 + 1) / 2)
    assert found.differences == {"p": 0.5, "q": 1}
    assert [flip.first for flip in found.flips] == ["p/1", "q/0"]
    assert (found.matching.only_first, found.matching.only_second) == (("r",), ("s",))


def test_up_to_four_runs_are_compared_in_all_pairs_and_more_with_the_first():
    runs = [outcomes(name, {"p": [True]}) for name in "ABCDE"]
    pairs = [(one.first, one.second) for one in compare_outcomes(runs[:4]).comparisons]
    assert pairs == [("A", "B"), ("A", "C"), ("A", "D"), ("B", "C"), ("B", "D"), ("C", "D")]
    pairs = [(one.first, one.second) for one in compare_outcomes(runs).comparisons]
    assert pairs == [("A", "B"), ("A", "C"), ("A", "D"), ("A", "E")]


def test_holm_adjusts_all_pairs_together():
    names = [f"p{n:02}" for n in range(10)]
    base = outcomes("A", {key: [False] for key in names})
    better = outcomes("B", {name: [n < 8] for n, name in enumerate(names)})
    alike = outcomes("C", {key: [False] for key in names})
    found = [one.overall for one in compare_outcomes([base, better, alike]).comparisons]
    assert [one.p for one in found] == [2 / 2**8, 1, 2 / 2**8]
    assert [one.adjusted for one in found] == [3 * 2 / 2**8, 1, 3 * 2 / 2**8]


def test_sets_come_from_the_metadata_and_small_sets_are_not_tested():
    names = [f"p{n}" for n in range(9)]
    levels = {name: 1 + (n > 6) for n, name in enumerate(names)}
    first = outcomes("A", {key: [False] for key in names}, level=levels)
    second = outcomes("B", {key: [True] for key in names}, level=levels)
    [found] = compare_outcomes([first, second]).comparisons
    assert [(row.kind, row.value, row.difference.problems) for row in found.sets] == [
        *(("level", "1", 7), ("level", "2", 2)),
    ]
    assert [row.difference.p for row in found.sets] == [2 / 2**7, None]
    assert [row.difference.adjusted for row in found.sets] == [2 / 2**7, None]
    one_level = dict.fromkeys(names, 1)
    pair = [outcomes(name, {key: [True] for key in names}, level=one_level) for name in "AB"]
    assert compare_outcomes(pair).comparisons[0].sets == []


def test_bands_follow_from_the_pooled_accuracy():
    first = {"a": [False] * 3, "b": [True, False, False], "c": [True] * 3, "d": [True] * 3}
    second = {"a": [False] * 3, "b": [True] * 3, "c": [True] * 3, "d": [True, False, False]}
    [found] = compare_outcomes([outcomes("A", first), outcomes("B", second)]).comparisons
    assert [(band.name, band.problems) for band in found.bands] == [
        *(("hard", 1), ("medium", 2), ("easy", 1)),
    ]
    assert [band.second - band.first for band in found.bands] == pytest.approx([0, 0, 0])


def test_differing_settings_are_refused_without_force(tmp_path):
    paths = [
        write_verdicts(tmp_path / name, {"p": [True]}, a_record(rules={"max_calls": calls}))
        for name, calls in (("a", 8), ("b", 3))
    ]
    with pytest.raises(SettingsError, match=r"rules.max_calls \(8 in A, 3 in B\)"):
        compare(paths)
    for more in ({"force": True}, {"allowed": ["max_calls"]}):
        [found] = compare(paths, **more).comparisons
        assert [(one.name, one.refused) for one in found.settings] == [("rules.max_calls", False)]


@pytest.mark.parametrize("count", [0, 1, 27])
def test_the_number_of_runs_is_checked(count):
    with pytest.raises(SettingsError, match=f"name from 2 to 26 runs, not {count}"):
        compare(["x"] * count)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from("abcdefgh"),
        st.tuples(*[st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=3)] * 2),
        min_size=1,
    )
)
def test_the_other_order_of_the_runs_gives_the_opposite(rows):
    first = outcomes("A", {name: one for name, (one, _) in rows.items()})
    second = outcomes("B", {name: other for name, (_, other) in rows.items()})
    [found] = compare_outcomes([first, second]).comparisons
    [other] = compare_outcomes([second, first]).comparisons
    assert other.differences == {name: -value for name, value in found.differences.items()}
    assert (other.table.first, other.table.second) == (found.table.second, found.table.first)
    assert [not flip.gained for flip in other.flips] == [flip.gained for flip in found.flips]


def test_the_report_is_plain_json(tmp_path):
    problem = problem_of("set/p", level=2)
    first = write_run(tmp_path / "a", [(0, ended(problem, True, "ox"))])
    second = write_run(tmp_path / "b", [(0, ended(problem, None))])
    report = compare([first, second])
    values = json.loads(json.dumps(report.to_json()))
    assert (values["schema"], len(values["runs"])) == (1, 2)
    assert [run["failed"] for run in values["runs"]] == [0, 1]
    [found] = values["comparisons"]
    assert found["matching"]["common"] == ["set/p"] and found["overall"] is None
    assert report.of("B").run.title == "b"
