"""The tables of the recovery study: runs against their bases, and runs along their steps."""

from __future__ import annotations

import pytest
from helpers.studies import TRAINING, evaluation

from benchmarks.parts.study_tables import (
    along_table,
    kinds_table,
    observed_table,
    use_changes_table,
)


@pytest.fixture
def results():
    def part(fault, **more):
        names = ("whole", "half", "end")
        return {"evaluations": {name: evaluation(fault) for name in names}, **more}

    found = {f"cold-{seed}": part(0.2) for seed in (0, 1)}
    for run in ("grpo-0", "grpo-1", "faults25-1"):
        found[run] = part(0.8, training=TRAINING)
    return found


def cells(table, name):
    [row] = [row for row in table if row.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.split("|")[2:-1]]


def test_the_change_of_the_use_has_numbers_of_calls_and_points(results):
    table = use_changes_table(results)
    calls, gain, over_use, under_use = cells(table, "grpo, seeds 0, 1")
    assert calls.startswith("+0.90 [+0.") and calls.endswith("]: higher")
    assert gain == "+0 [–, –]: not shown" == under_use
    assert over_use == "+60 [–, –]: not shown"  # all problems agree: no width is known
    assert cells(table, "faults25, seeds 0, 2")[0] == "not run"


def test_a_run_has_a_row_for_each_of_its_points_over_its_seeds(results):
    table = along_table(results)
    kept = {step: cells(table, f"grpo, seeds 0, 1: step {step}") for step in (0, 30, 60)}
    assert [kept[step][2].split(" [")[0] for step in kept] == ["17 %", "67 %", "67 %"]
    assert kept[0][0].startswith("50 % [")
    assert cells(table, "faults25, seed 1: step 30")[1].startswith("67 % [")
    assert cells(table, "ppo, seeds 0, 1, 2") == ["not run", "–", "–"]


def test_the_observed_figures_have_a_change_from_the_first_to_the_last_third(results):
    found = cells(observed_table(results), "grpo, seed 0, change")
    assert found[:4] == ["–"] * 4
    assert found[4] == found[5] == "−40 [−54, −26]: lower"


def test_each_run_has_a_column_of_kinds_at_its_own_seeds(results):
    table = kinds_table(results)
    assert table[0].endswith("| cold, seeds 0, 1 | grpo, seeds 0, 1 | faults25, seed 1 |")
    [busy] = [row for row in table if "`busy`" in row]
    ratios = [cell.strip() for cell in busy.split("|")[4:-1]]
    assert [ratio.split(" [")[0] for ratio in ratios] == ["17 %", "67 %", "67 %"]
    assert all(ratio.endswith("], 12") for ratio in ratios)
    [busy] = [row for row in kinds_table(results, effect=True) if "`busy`" in row]
    assert busy.split("|")[4].strip().startswith("−83 [")
