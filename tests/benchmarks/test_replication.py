"""The whole comparison in a few small runs; their commands run in this process."""

from __future__ import annotations

import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from agents import __main__ as agents_cli
from benchmarks import along, replication
from retool_env.transcript import read_transcripts

SMALL = {
    "all": ["env.difficulty=1", "env.max_tokens=40"],
    "sft": ["traces=12", "epochs=1"],
    "rl": ["steps=5", "prompts=2", "rollouts=2", "micro_batch=4", "export_steps=2", "save_steps=2"],
}


@pytest.fixture
def commands(monkeypatch):
    """Run the commands in this process, and list them."""
    calls = []

    def run(command, stdout, env, **_):
        calls.append(command[1:])
        main = {"agents": agents_cli.main, "benchmarks.along": along.main}[command[2]]
        stdout.write("here\n")
        return SimpleNamespace(returncode=main(command[3:]))

    # Not subprocess.run itself, which the sandbox uses.
    here = SimpleNamespace(run=run, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(replication, "subprocess", here)
    monkeypatch.setitem(replication.OVERRIDES, "tiny", SMALL)
    return calls


def arguments(tmp_path, *more):
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    small = ["--problems", "3", "--k", "2", "--jobs", "1", "--seeds", "5", "--algorithms", "grpo"]
    return [*folders, *small, *more]


@pytest.mark.slow
def test_both_arms_are_trained_evaluated_and_compared(tmp_path, commands, capsys):
    assert replication.main(arguments(tmp_path)) == 1  # void: nothing is learned in five steps
    assert len(commands) == 6
    out = tmp_path / "out"
    report = json.loads((out / "replication_tiny.json").read_text())
    for picture in ("replication_tiny.png", "replication_tiny_tools.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert list(report["tool_use"]["grpo"]) == ["steps 1 to 1", "steps 2 to 3", "steps 4 to 5"]
    [found] = report["algorithms"]["grpo"].values()
    assert not found["calibration"]["valid"] and "1 void" in capsys.readouterr().out
    for arm, name in (("interpreter", "interpreter-5"), ("text only", "text-only-5")):
        folder = tmp_path / "runs" / name / "grpo"
        curve = found["arms"][arm]["curve"]
        assert curve["steps"] == [0, 2, 4] and curve["tokens"][0] == 0 == curve["seconds"][0]
        rollouts = list(read_transcripts(folder / "transcripts.jsonl"))
        assert curve["tokens"][-1] == sum(sum(t.loss_mask) for t in rollouts[:16])
        assert curve["tokens"][1] == sum(sum(t.loss_mask) for t in rollouts[:8])
        for step, accuracy in zip(curve["steps"], curve["accuracy"], strict=True):
            evaluated = list(read_transcripts(folder / "along" / f"{step}.jsonl"))
            assert len(evaluated) == 6
            assert accuracy == pytest.approx(sum(bool(t.correct) for t in evaluated) / 6)
            assert {t.interpreter for t in evaluated} == {arm == "interpreter"}
        thirds = found["arms"][arm]["training"]
        assert {step: third["episodes"] for step, third in thirds.items()} == {
            "1": 4,
            "3": 8,
            "5": 8,
        }
    cold = {json.dumps(c) for c in report["commands"] if " agents sft " in c}
    assert len(cold) == 2 and all("traces=12" in c for c in cold)  # equally large

    # The same command again trains and evaluates nothing, and gives the same figures.
    before = (tmp_path / "runs" / "interpreter-5" / "grpo" / "along" / "2.jsonl").stat()
    assert replication.main(arguments(tmp_path)) == 1
    again = json.loads((out / "replication_tiny.json").read_text())
    assert again["algorithms"] == report["algorithms"]
    after = (tmp_path / "runs" / "interpreter-5" / "grpo" / "along" / "2.jsonl").stat()
    assert after.st_mtime_ns == before.st_mtime_ns

    # A damaged run is named; its figures are not computed without the damaged part.
    metrics = tmp_path / "runs" / "interpreter-5" / "grpo" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    for damaged, message in (
        ([lines[0], lines[1][:40] + "\n", *lines[2:]], "metrics.jsonl, line 2: not a record"),
        ([], "metrics.jsonl: it holds no step"),
    ):
        metrics.write_text("".join(damaged))
        assert replication.main(arguments(tmp_path)) == 2
        assert message in capsys.readouterr().err
    metrics.write_text("".join([lines[0], *lines[2:]]))  # as the message advises
    assert replication.main(arguments(tmp_path)) == 1

    # Evaluations with different settings are not mixed.
    run = tmp_path / "runs" / "text-only-5" / "grpo"
    assert along.main([str(run), "--problems", "2", "--k", "2"]) == 2
    assert "holds an evaluation with" in capsys.readouterr().err
    shutil.rmtree(run / "along")
    assert along.main([str(run), "--problems", "2", "--k", "2"]) == 0


@pytest.mark.parametrize("setting", ["stepz=3", "seed=1"])
def test_wrong_settings_are_refused_before_a_command_runs(tmp_path, commands, capsys, setting):
    assert replication.main(arguments(tmp_path, "--set", setting)) == 2
    assert setting.partition("=")[0] in capsys.readouterr().err and not commands


def test_too_many_problems_are_refused_before_a_command_runs(tmp_path, commands, capsys):
    assert replication.main(arguments(tmp_path, "--problems", "100000000")) == 2
    assert "held-out problems, not 100000000" in capsys.readouterr().err and not commands


def test_a_failing_command_stops_the_benchmark_and_is_named(tmp_path, commands, capsys):
    assert replication.main(arguments(tmp_path, "--set", "steps=0")) == 2
    error = capsys.readouterr().err
    assert "This failed" in error and "log.txt" in error and "steps=0" in error
    assert "replication: here\nThis" in error  # the last line of the log
    assert len(commands) == 2  # the cold start, and the failing command


def test_too_few_models_for_a_curve_are_named_before_the_next_run(tmp_path, commands, capsys):
    assert replication.main(arguments(tmp_path, "--set", "export_steps=4")) == 2
    assert "set export_steps lower" in capsys.readouterr().err
    assert len(commands) == 3


def test_a_run_without_exported_models_is_named(tmp_path, capsys):
    assert along.main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"settings": {"model": "m"}}')
    (tmp_path / "checkpoints" / "2.part").mkdir(parents=True)  # a half-written model
    (tmp_path / "checkpoints" / "2.part" / "config.json").touch()
    assert along.main([str(tmp_path)]) == 2
    assert "export_steps=10" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"settings": {"mod')
    assert along.main([str(tmp_path)]) == 2
