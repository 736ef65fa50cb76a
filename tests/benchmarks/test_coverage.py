"""The simulation of intervals, in small: two worlds, and the table's file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import coverage
from benchmarks.coverage import DECIDED, RARE_CALLS, TARGETS, World, draw, main, measure


def test_the_drawn_outcomes_have_the_true_means():
    random = np.random.default_rng(0)
    data = draw(World(0.75, 0.8, 0.3), 4000, random)
    assert np.mean([pair.second for pair in data.pairs]) == pytest.approx(0.75, abs=0.02)
    assert np.mean([pair.first for pair in data.pairs]) == pytest.approx(0.6, abs=0.02)
    assert np.mean([p.first - p.second for p in data.calls]) == pytest.approx(0.5, abs=0.05)
    assert len({pair.problem for pair in data.pairs}) == 4000


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


def test_samples_of_a_decided_world_agree_and_a_problem_with_one_sample_has_one_prefix():
    random = np.random.default_rng(0)
    data = draw(World(0.5, 0.8, 1.0, samples=1, rare=0.1), 4000, random)
    assert len(data.pairs) == 4000 and {pair.first for pair in data.pairs} == {0, 1}
    assert np.mean([pair.first for pair in data.pairs]) == pytest.approx(0.4, abs=0.03)
    assert np.mean([pair.first for pair in data.rare_calls]) == pytest.approx(0.1, abs=0.02)
    several = draw(World(0.5, 0.8, 0.97), 1000, random)
    assert np.mean([pair.second in (0, 1) for pair in several.pairs]) > 0.9
    effects = [pair.first - pair.second for pair in several.models]
    assert len(effects) == 1000 and np.mean(effects) == pytest.approx(-0.05, abs=0.03)


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
    # Control accuracy is 3 %, and the tool gains at hardly a problem.
    assert [row["figure"] for row in hidden] == ["recovery ratio", "under-use"]
    effects = [row["shown"] for row in record["rows"] if row["figure"] == "fault effect"]
    assert effects[1] < 10 < effects[0] == 20  # arms that hardly differ
    assert "too few shown" in capsys.readouterr().out
