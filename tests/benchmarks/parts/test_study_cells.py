"""Cells with intervals and verdicts, and tables that say what has not been run."""

from __future__ import annotations

from benchmarks.parts.study_cells import NOT_RUN, percent, points, pooled, table_of
from benchmarks.parts.study_changes import Change


def test_figures_are_written_in_percent_and_points():
    assert percent(0.5, None, 0.625) == "50 % [–, 62]" and percent(None, None, None) == "–"
    assert points(Change(-0.1, -0.2, -0.05, 60)) == "−10 [−20, −5]: lower"
    assert points(Change(None, None, None, 0)) == "–"


def test_seeds_make_a_claim_together_only_if_each_makes_it():
    changes = {(0,): 0.11, (1,): 0.01, (2,): 0.04, (0, 1): 0.06, (0, 2): 0.07}

    def change(seeds):
        mean = changes[tuple(seeds)]
        return Change(mean, mean - 0.03, mean + 0.03, 60)

    assert pooled(change, [0, 1]) == "+6 [+3, +9]: not shown (1 of 2 seeds)"
    assert pooled(change, [0, 2]) == "+7 [+4, +10]: higher"
    assert pooled(change, [0]) == "+11 [+8, +14]: higher"


def test_a_run_has_one_row_for_the_seeds_that_have_not_been_run():
    rows = [["a, seed 0", NOT_RUN], ["a, seed 1", "5"], ["a, seed 2", NOT_RUN], ["b, seed 0", "6"]]
    assert table_of(["run", "x"], iter(rows))[2:] == [
        f"| a, seeds 0, 2 | {NOT_RUN} |",
        "| a, seed 1 | 5 |",
        "| b, seed 0 | 6 |",
    ]
    assert table_of(["run", "x"], iter(rows[:1])) == ["No part of this table has been run."]
