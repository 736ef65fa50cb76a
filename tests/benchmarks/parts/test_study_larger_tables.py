"""The tables of study C: a model before and after GRPO, and the change."""

from __future__ import annotations

from helpers.studies import TRAINING, evaluation

from benchmarks.parts.study_larger import AFTER, BEFORE, TRAINED
from benchmarks.parts.study_larger_tables import (
    larger_kinds_table,
    larger_next_table,
    larger_observed_table,
    larger_table,
)


def part(fault):
    return {"evaluations": {"whole": evaluation(fault)}}


def test_before_any_part_the_tables_say_so():
    for table in (larger_table, larger_kinds_table, larger_next_table, larger_observed_table):
        assert table({}) == ["No part of this table has been run."]


def test_a_part_that_is_done_has_a_row_and_the_change_comes_with_both():
    before = {BEFORE: part(0.2)}
    assert any("| SmolLM2, after GRPO | not run |" in row for row in larger_table(before))
    assert "change" not in "".join(larger_table(before))
    rows = larger_table({**before, AFTER: part(0.8)})
    assert rows[2].startswith("| SmolLM2, cold start | 50 % [") and "| 1.30 |" in rows[2]
    assert rows[-1].startswith("| change | +0 [–, –]: not shown | +0.90 [")
    assert rows[-1].count("+50 [") == 2 and rows[-1].count(": higher") == 3


def test_kinds_and_training_have_their_rows():
    [busy] = [row for row in larger_kinds_table({BEFORE: part(0.2)}) if "`busy`" in row]
    assert busy.endswith("], 12 |") and "| 17 % [" in busy
    [busy] = [
        row for row in larger_next_table({BEFORE: part(0.2), AFTER: part(0.8)}) if "`busy`" in row
    ]
    assert busy.count("| 25 % [") == 2 and "| +50 [" in busy and busy.endswith(": higher |")
    rows = larger_observed_table({TRAINED: {"training": TRAINING}})
    assert rows[2].startswith("| SmolLM2, GRPO, 1 to 20 | 50 %")
    assert "−40 [" in rows[-1]
