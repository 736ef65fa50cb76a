"""The words and tables of a comparison."""

from __future__ import annotations

import pytest
from helpers.compared_runs import outcomes, write_verdicts
from helpers.episodes import sample
from helpers.run_folders import a_recover, an_eval

from retool_env.evaluation.compare.comparison import compare, compare_outcomes
from retool_env.evaluation.compare.text import (
    bands_table,
    flips_text,
    notes,
    sets_table,
    terminal,
    uses_table,
    verdict,
)
from retool_env.printable import printable

NAMES = [f"p{n:02}" for n in range(40)]


def report_of(*runs):
    return compare_outcomes([outcomes(name, run) for name, run in zip("ABC", runs, strict=False)])


def right(count):
    return {name: [n < count] for n, name in enumerate(NAMES)}


def test_the_better_run_is_named_first_with_a_positive_interval():
    [found] = report_of(right(10), right(25)).comparisons
    [mirrored] = report_of(right(25), right(10)).comparisons
    text = verdict(found)
    assert text.startswith("B is better than A by 37.5 points [2")
    assert "p < 0.001, 40 problems. Smallest detectable difference (80 % power): 2" in text
    assert verdict(mirrored) == text.replace("B is better than A", "A is better than B")


def test_without_a_finding_the_difference_keeps_its_sign():
    [found] = report_of(right(12), right(10)).comparisons
    assert verdict(found).startswith(
        "No difference between B and A was found: B − A = −5.0 points [−1"
    )
    assert "p = 0.500, 40 problems." in verdict(found)


def test_one_problem_and_no_problem_have_a_verdict():
    [one] = report_of({"p": [True]}, {"p": [False]}).comparisons
    assert verdict(one).endswith("B − A = −100.0 points [–, –], p = 1.000, 1 problem.")
    [nothing] = report_of({"p": [True]}, {"p": [None]}).comparisons
    assert "can't be compared: no common problem has episodes that count" in verdict(nothing)
    assert len(sets_table(nothing)) == len(bands_table(nothing)) == 1
    assert terminal(report_of({"p": [True]}, {"p": [None]}))


def test_notes_name_left_out_problems_failures_and_caution():
    first = {**{f"a{n}": [True] for n in range(7)}, "p": [True], "q": [True, None], "r": [None]}
    [found] = report_of(first, {"p": [False], "q": [True], "r": [True]}).comparisons
    text = "\n".join(notes(found))
    assert "Only A has 7 problems: a0, a1, a2, a3, a4 and 2 more. They are left out." in text
    assert "2 episodes do not count" in text
    assert "lowered the difference, it would be −33.3 points; if all had raised it, +16.7." in text
    assert "1 common problems have no episode that counts" in text
    assert "Caution: the two runs differ at fewer than 5 problems" in text
    assert "only interpreter, protocol and revision were compared" in text


def test_flips_are_counted_and_the_first_are_named():
    report = report_of(right(5), {name: [n > 2] for n, name in enumerate(NAMES)})
    [found] = report.comparisons
    assert flips_text(found) == (
        "Episodes of one problem and number: 35 are right in B only, 3 in A only, 2 in both, 0 in "
        "neither."
    )
    text = terminal(report)
    assert "  p00/0: right in A, wrong in B\n" in text
    assert "  p05/0: right in B, wrong in A\n" in text
    assert "  and 28 more" in text
    assert text.endswith("Side by side: retool view A B --query flipped:yes")


def test_the_viewer_finds_flips_between_runs_of_one_plan_only(tmp_path):
    whole = an_eval(tmp_path / "whole", [sample("p", "42", correct=True)])
    parents = a_recover(tmp_path / "recover", [sample("p", "4")])
    found = compare([whole, parents])
    assert [flip.second for flip in found.comparisons[0].flips] == ["dose/0/p/0"]
    assert terminal(found).endswith(f"Side by side: retool view {whole} {parents}")


def test_a_table_of_calls_needs_a_call():
    assert uses_table(report_of(right(1), right(2)).comparisons[0]) == []


def test_without_a_flipped_episode_nothing_is_to_be_viewed():
    assert "retool view" not in terminal(report_of(right(5), right(5)))


def test_names_are_cut_in_tables_and_whole_in_the_command(tmp_path):
    folder = tmp_path / "x" / ("\x1b[31m" + "y" * 150)
    runs = [
        write_verdicts(folder / name, {"p": [right]})
        for name, right in zip("ab", (True, False), strict=True)
    ]
    text = terminal(compare(runs))
    assert "\x1b" not in text and "y" * 120 not in text.partition("Side by side")[0]
    shown = printable(str(folder))
    assert text.endswith(f"retool view '{shown}/a' '{shown}/b' --query flipped:yes")


@pytest.mark.parametrize("count", [2, 3])
def test_several_comparisons_say_that_p_values_are_adjusted(count):
    text = terminal(report_of(*[right(10)] * count))
    assert ("adjusted by Holm's method over 3 comparisons" in text) == (count == 3)
