"""The simulation of comparisons, in small: one world, and the table's file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import compare
from benchmarks.compare import World, draw, main, measure


def test_the_drawn_outcomes_have_the_true_means():
    pairs = draw(World(0.5, 0.7, 0.3, 0.5), 4000, 4, np.random.default_rng(0))
    assert np.mean([pair.second for pair in pairs]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([pair.first for pair in pairs]) == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("problems", [20, 60])
def test_intervals_cover_the_true_difference_and_the_test_keeps_its_level(problems):
    row = measure(World(0.6, 0.6, 0.3, 1.0), problems, 4, 300, np.random.default_rng(0))
    assert 0.9 <= row["covered"] <= 1  # four standard errors are 5 points
    assert row["found"] <= 0.1
    assert 0.6 <= row["power"] <= 0.95


def test_the_bootstrap_is_too_narrow_where_the_interval_covers():
    row = measure(World(0.9, 0.95, 0.6, 0.5), 20, 1, 300, np.random.default_rng(0))
    assert row["covered"] >= 0.93 > 0.9 >= row["bootstrap"]


def test_the_command_prints_a_table_and_writes_the_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "WORLDS", (World(0.5, 0.5, 0.3, 1.0), World(0.97, 0.9, 0.3, 1.0)))
    out = tmp_path / "compare.json"
    arguments = ["--sets", "20", "--problems", "20", "--samples", "1", "--out", str(out)]
    assert main(arguments) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["edge"], row["power"] is None) for row in rows] == [(False, False), (True, True)]
    assert "covered" in capsys.readouterr().out
