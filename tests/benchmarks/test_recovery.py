"""The recovery study: its parts are chosen, run once, resumed and listed."""

from __future__ import annotations

import errno
import json
import os
from types import SimpleNamespace

import pytest
from helpers.studies import evaluation, write

from benchmarks import recovery
from benchmarks.parts.study_larger import AFTER, BEFORE, COLD, TRAINED
from benchmarks.parts.study_plan import SMALL, Plan, all_parts, weights_of


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "out").mkdir()
    return Plan(tmp_path / "runs", tmp_path / "out", SMALL)


@pytest.fixture
def commands(monkeypatch):
    """Commands that are noted instead of run, and whose figures are made up."""
    ran = []

    def run_command(command, output):
        output.write("here\n")
        ran.append(command)
        return int("fails" in command)

    monkeypatch.setattr(recovery, "run_command", run_command)
    monkeypatch.setattr(
        recovery, "figures_of", lambda plan, part: {"part": part.name, "weights": "w"}
    )
    return ran


def arguments(plan, *more):
    return ["--small", "--runs", str(plan.runs), "--out", str(plan.results), *more]


def test_the_next_part_runs_and_a_part_that_is_done_is_not_run_again(plan, commands, capsys):
    assert recovery.main(arguments(plan, "--hours", "0.1")) == 0
    assert json.loads(plan.file("cold-0").read_text())["part"] == "cold-0"
    said = capsys.readouterr().out
    assert "hours of two cores left; now: cold-0 (0.50 h)" in said
    assert [command[2] for command in commands[:2]] == ["benchmarks.parts.study_language", "agents"]
    assert len(json.loads(plan.file("cold-0").read_text())["seconds"]) == len(commands) == 4
    plan.checkpoint("cold-0").mkdir(parents=True)
    assert recovery.main(arguments(plan, "--hours", "0.1")) == 0
    assert plan.done("grpo-0") and len(commands) == 8
    assert "--list" not in said and recovery.main(arguments(plan, "--list")) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed if line.endswith("  done")] == ["cold-0", "grpo-0"]
    assert len([line for line in listed if line.endswith("  not run")]) == 26


def test_a_failing_command_is_named_and_its_part_is_not_done(plan, commands, capsys, monkeypatch):
    monkeypatch.setattr(Plan, "commands", lambda self, part: iter([["python", "fails"], ["no"]]))
    assert recovery.main(arguments(plan)) == 2
    error = capsys.readouterr().err
    assert "here\nthis failed" in error and "cold-0.log" in error and "python fails" in error
    assert not plan.done("cold-0") and commands == [["python", "fails"]]


def test_the_seconds_of_a_part_are_those_of_all_its_starts(plan, commands, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(recovery, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(Plan, "commands", lambda self, part: iter([["python", "a"], ["retool"]]))
    ends = iter([(30, 0), (200, KeyboardInterrupt), (1, 0), (50, 1), (2, 0), (70, 0)])

    def run_command(command, output):
        output.write("here\n")
        seconds, status = next(ends)
        clock[0] += seconds
        if status is KeyboardInterrupt:
            raise status
        return status

    monkeypatch.setattr(recovery, "run_command", run_command)
    statuses = [recovery.main(arguments(plan, "--part", "cold-0")) for _ in range(3)]
    assert statuses == [130, 2, 0]
    done = json.loads(plan.file("cold-0").read_text())
    assert done["seconds"] == {"python a": 33.0, "retool": 320.0}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("grpo-0", "needs cold-0: run --part cold-0 first"),
        ("nothing", "unknown part 'nothing'"),
        ("replication", "another benchmark runs replication: python -m benchmarks.replication"),
        ("cold-1", "cold-1 is done; to run it again, delete"),
        ("grpo-1", "needs the model of cold-1, which is not in"),
    ],
)
def test_a_part_that_cant_run_is_refused(plan, commands, capsys, part, message):
    plan.file("cold-1").write_text("{}")
    assert recovery.main(arguments(plan, "--part", part)) == 2
    assert message in capsys.readouterr().err and not commands


def test_a_damaged_file_of_a_part_before_is_told_before_the_work(plan, commands, capsys):
    plan.file("cold-1").write_text("{}")
    plan.checkpoint("cold-1").mkdir(parents=True)
    assert recovery.main(arguments(plan, "--part", "grpo-1")) == 2
    assert "cold-1.json is damaged" in capsys.readouterr().err and not commands


def test_small_figures_never_reach_the_folder_of_results(capsys):
    with pytest.raises(SystemExit):
        recovery.main(["--small"])
    assert "--small needs another --out" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_told_and_the_old_one_stays(
    plan, tmp_path, monkeypatch, capsys
):
    missing = tmp_path / "missing" / "page.md"
    assert recovery.main(arguments(plan, "--page", str(missing))) == 2
    assert str(missing.parent) in capsys.readouterr().err

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    page = tmp_path / "page.md"
    page.write_text("old")
    monkeypatch.setattr(os, "replace", full)
    assert recovery.main(arguments(plan, "--page", str(page))) == 2
    assert "No space left" in capsys.readouterr().err and page.read_text() == "old"


def test_a_damaged_file_of_results_ends_the_page_with_a_message(plan, tmp_path, capsys):
    plan.file("cold-0").write_text("{")
    assert recovery.main(arguments(plan, "--page", str(tmp_path / "page.md"))) == 2
    assert "cold-0.json is damaged, or of another version" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_the_models_of_study_d_are_named_by_their_parts(plan):
    part = next(part for part in all_parts() if part.name == "values-0")
    file = plan.folder("values-0") / "values.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({str(plan.checkpoint(name)): {"cases": 3} for name in part.after}))
    for name in part.after:
        write(plan, name, evaluations={"whole": evaluation(0.5, weights=f"w-{name}")})
    write(plan, "cold-0", evaluations={"whole": evaluation(0.5)})  # the others began with it
    found = recovery.figures_of(plan, part)
    assert (found["part"], found["study"], found["seed"]) == ("values-0", "D", 0)
    assert found["began_with"] == {
        "cold-0": "w",
        "grpo-0": "w-grpo-0",
        "faults25-0": "w-faults25-0",
    }
    assert found["values"] == {name: {"cases": 3} for name in ("cold-0", "grpo-0", "faults25-0")}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_small_study_runs_from_the_cold_start_to_the_page(plan, tmp_path):
    for part in ("cold-0", "grpo-0", "faults25-0", "values-0"):
        assert recovery.main(arguments(plan, "--part", part)) == 0
    trained = json.loads(plan.file("grpo-0").read_text())
    assert set(trained["evaluations"]) == {"whole", "half", "end"} and trained["training"]
    found = json.loads(plan.file("values-0").read_text())["values"]
    assert set(found) == {"cold-0", "grpo-0", "faults25-0"}
    assert recovery.main(arguments(plan, "--page", str(tmp_path / "page.md"))) == 0
    assert "| A | `grpo-0` | 0.75 | done, " in (tmp_path / "page.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_small_study_of_the_larger_model_runs_to_the_page(plan, tmp_path):
    for part in (COLD, BEFORE, TRAINED, AFTER):
        assert recovery.main(arguments(plan, "--part", part)) == 0
    weights = {part: weights_of(plan.read(part)) for part in (COLD, BEFORE, TRAINED, AFTER)}
    # One step of four wrong answers changes no weight, so all four may be the same.
    assert weights[COLD] == weights[BEFORE] and weights[TRAINED] == weights[AFTER]
    assert plan.read(AFTER)["began_with"] == {TRAINED: weights[TRAINED]}
    assert recovery.main(arguments(plan, "--page", str(tmp_path / "page.md"))) == 0
    page = (tmp_path / "page.md").read_text()
    assert "| SmolLM2, cold start | " in page and "| SmolLM2, after GRPO | " in page
    assert "| SmolLM2, GRPO, 1 to 1 | " in page
