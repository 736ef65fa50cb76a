"""The main job at its smallest: every stage, the table, the picture, and a resumption."""

from __future__ import annotations

import json
import signal

import pytest
from helpers.signals import status_of, told_at

from agents import demo, grpo, sft
from agents.__main__ import _terminate, main
from agents.base.presets import load_settings
from agents.base.session import Session

SMALL = [
    "sft.traces=24",
    "sft.epochs=1",
    "grpo.steps=2",
    "grpo.prompts=2",
    "grpo.rollouts=2",
    "grpo.micro_batch=4",
    "grpo.save_steps=1",
    "problems=3",
    "k=2",
    "env.max_tokens=60",
]


def test_all_stages_run_and_a_stopped_job_goes_on(tmp_path, monkeypatch, capsys):
    command = ["demo", "--preset", "tiny", "--runs", str(tmp_path), *SMALL]

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grpo, "train", stop)
        assert main(command) == 130
    assert "--resume" in capsys.readouterr().err
    assert main(command) == 2  # it would overwrite what is there

    folder = tmp_path / "tiny"
    cold = folder / "stages" / "interpreter-sft" / "checkpoint" / "model.safetensors"
    written = cold.stat().st_mtime_ns
    assert main([*command, "--resume"]) == 0
    assert cold.stat().st_mtime_ns == written  # what was done is not done again
    shown = capsys.readouterr().out
    for arm in demo.ARMS:
        assert f"{arm}, cold start" in shown and f"RL, {arm}:" in shown
    assert (folder / "table.md").read_text().strip() in shown
    for name in (
        "config.json",
        "metrics.jsonl",
        "transcripts.jsonl",
        "checkpoint/config.json",
        "curves.png",
    ):
        assert (folder / name).is_file(), name
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["grpo"]["steps"] == 2 and config["versions"]["trl"]

    assert main([*command, "--resume"]) == 0
    assert "interpreter, after RL" in capsys.readouterr().out

    figures = folder / "stages" / "text-only-cold-start.json"
    whole = json.loads(figures.read_text())
    for damaged in ("", "[]", json.dumps({**whole, "accuracy": 3}), json.dumps({"episodes": "x"})):
        figures.write_text(damaged)
        assert main([*command, "--resume"]) == 2
        said = capsys.readouterr().err
        assert f"{figures}: " in said and "so that the model is evaluated again" in said


@pytest.mark.parametrize(
    ("owner", "name"), [(sft, "train"), (demo, "load_policy"), (Session, "save")]
)
def test_a_signal_in_any_phase_stops_the_job(owner, name, tmp_path, monkeypatch, capsys):
    told_at(monkeypatch, owner, name)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        assert main(["demo", "--preset", "tiny", "--runs", str(tmp_path), *SMALL]) == 75
    finally:
        signal.signal(signal.SIGTERM, before)
    assert status_of(tmp_path / "tiny") == ("stopped", 75, None)
    assert "the same command with --resume goes on" in capsys.readouterr().err


def test_evaluation_uses_held_out_problems(tmp_path):
    settings = load_settings(demo.Settings, "demo", "tiny", SMALL)
    stage = demo.stage_settings(
        grpo, settings, "x", {**settings.env, "interpreter": False}, model="m"
    )
    train_rules, train = demo.find_task(stage.env)
    _, test = demo.find_task({**stage.env, "split": "test"})
    assert not train_rules.interpreter and stage.steps == 2
    questions = {train[i].question for i in range(len(train))}
    assert not questions & {test[i].question for i in range(200)}


@pytest.mark.parametrize(
    "override",
    [
        "grpo.stepz=3",
        "stepz=3",
        "sft.model=nowhere/at/all",
        "env.max_callz=3",
        "env.errors=short",
        "sandbox=nsjial",
        "sandbox.pakages=[numpy]",
        "sft.trl={foo: 1}",
        "seed=-1",
    ],
)
def test_bad_settings_end_with_a_clear_line(tmp_path, capsys, override):
    assert main(["demo", "--runs", str(tmp_path), *SMALL, override]) == 2
    error = capsys.readouterr().err
    assert "python -m agents demo:" in error and "Traceback" not in error
