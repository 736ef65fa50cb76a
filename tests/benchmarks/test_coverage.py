"""The simulation of intervals, in small: two worlds, and the table's file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import coverage
from benchmarks.coverage import RARE_CALLS, TARGETS, main, measure
from benchmarks.parts.worlds import DECIDED, World, draw


@pytest.mark.parametrize("world", [World(0.75, 0.8, 0.3), World(0.97, 0.5, 0.6)])
def test_intervals_cover_the_true_value(world):
    random = np.random.default_rng(0)
    data = [draw(world, 40, random) for _ in range(200)]
    for target in TARGETS:
        row = measure(target, world, 40, data)
        if row["holds"] is None:
            assert target.name == "over-use"  # the tool gains at almost all problems
            continue
        assert row["shown"] >= 150
        assert 0.89 <= row["covered"] <= 1, row  # two standard errors are 3 points
        assert 0.8 <= row["width"] <= 1.7, row


@pytest.mark.parametrize(
    ("world", "problems"),
    [(World(0.5, 0.95, 1.0, samples=1), 60), (World(0.5, 0.95, 0.97), 60)],
)
def test_decided_arms_are_covered(world, problems):
    assert world in DECIDED
    random = np.random.default_rng(0)
    data = [draw(world, problems, random) for _ in range(150)]
    for target in TARGETS:
        row = measure(target, world, problems, data)
        if target.name in ("fault effect", "recovery ratio", "net of placebos", "tool gain"):
            assert row["shown"] > 100 and row["covered"] >= 0.93, row


def test_arms_of_which_one_has_no_case_are_covered():
    world, random = World(0.97, 0.97, 0.6), np.random.default_rng(0)
    (target,) = (target for target in TARGETS if target.name == "contagion from 0")
    row = measure(target, world, 60, [draw(world, 60, random) for _ in range(150)])
    assert row["shown"] == 150 and row["covered"] >= 0.93, row


def test_rare_calls_are_covered_where_they_are_shown():
    world, random = World(0.5, 0.9, 0.6, rare=0.05), np.random.default_rng(0)
    assert world in DECIDED
    row = measure(RARE_CALLS, world, 60, [draw(world, 60, random) for _ in range(150)])
    assert 50 < row["shown"] < 150 and row["covered"] >= 0.92, row


def test_intervals_without_the_problems_as_clusters_would_be_found_out():
    random = np.random.default_rng(0)
    world = World(0.5, 1.0, 0.6)
    control = TARGETS[0]
    assert control.name == "control accuracy"
    narrow = coverage.Target(
        "control accuracy",
        lambda data: coverage.share((i, p.second, p.samples) for i, p in enumerate(data.pairs)),
        control.truth,
        control.shares,
    )
    data = [draw(world, 40, random) for _ in range(200)]
    assert measure(narrow, world, 40, data)["covered"] < 0.89


def test_the_command_prints_a_table_and_writes_the_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coverage, "WORLDS", (World(0.5, 1.0, 0.3), World(0.03, 1.0, 0.3)))
    out = tmp_path / "coverage.json"
    assert main(["--sets", "20", "--problems", "20", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert len(record["rows"]) == 2 * len(TARGETS)
    hidden = [row for row in record["rows"] if row["holds"] is None]
    # No fault costs anything; then control accuracy is 3 %, and the tool gains at hardly a problem.
    hardly = ["recovery ratio", "area ratio", "under-use"]
    assert sorted(row["figure"] for row in hidden) == sorted(["contagion from 0"] * 2 + hardly)
    effects = [row["shown"] for row in record["rows"] if row["figure"] == "fault effect"]
    assert effects[1] < 10 < effects[0] == 20  # arms that hardly differ
    assert "too few shown" in capsys.readouterr().out
