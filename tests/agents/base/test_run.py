"""The folder of a run: who may use it, and where a stopped run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT

from agents.base import run as runs
from agents.base.run import Run
from agents.base.settings import SettingsError
from retool_env.provenance import REVISION

HOLD = """
import sys
from dataclasses import dataclass
from pathlib import Path
from agents.base.run import Run

@dataclass(frozen=True)
class Settings:
    seed: int = 0

Run(Path(sys.argv[1]), Settings(), resume=True).start()
print("held", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Settings:
    seed: int = 0


def started(folder, seed=0, resume=False):
    run = Run(folder, Settings(seed), resume)
    run.start()
    return run


def test_two_processes_are_never_at_work_in_one_folder(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(SettingsError, match="another process is at work"):
            started(folder, resume=True)
    finally:
        holder.kill()
        holder.communicate()
    started(folder, resume=True)  # the lock ended with the killed process
    started(folder, resume=True)  # one process may lock the folder twice


def test_a_folder_in_which_nothing_came_of_a_start_is_free(tmp_path):
    started(tmp_path, seed=1)
    started(tmp_path, seed=2)
    assert json.loads((tmp_path / "config.json").read_text())["settings"] == {"seed": 2}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(SettingsError, match="holds a run already"):
        started(tmp_path, seed=2)
    with pytest.raises(SettingsError, match=r"other settings \(seed\)"):
        started(tmp_path, seed=3, resume=True)
    started(tmp_path, seed=2, resume=True)


def test_a_run_does_not_go_on_with_another_number_of_processes(tmp_path, monkeypatch):
    started(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    two = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
    monkeypatch.setattr(runs, "processes", lambda: two)
    with pytest.raises(SettingsError, match=r"started with 1 processes.*can't be resumed with 2"):
        Run(tmp_path, Settings(), resume=True)


def test_the_first_process_decides_whether_a_run_exists(tmp_path, monkeypatch):
    """The folder that another process sees may be older."""
    other = SimpleNamespace(num_processes=2, process_index=1, is_main_process=False)
    answers = {"begun": True, "done": True}

    def everywhere(own):
        if own == "":
            return ["", ""]  # no errors
        assert own == []  # only the first process has looked
        return [[answers[asked.pop(0)]], own]

    monkeypatch.setattr(runs, "processes", lambda: other)
    monkeypatch.setattr(runs, "everywhere", everywhere)
    asked = ["done", "begun"]
    with pytest.raises(SettingsError, match="holds a run already"):
        Run(tmp_path / "unseen", Settings(), resume=False)
    answers["config"] = {"settings": {"seed": 0}, "processes": 2, "revision": REVISION}
    asked = ["done", "begun", "config"]
    assert Run(tmp_path / "unseen", Settings(), resume=True).finished
    answers["begun"] = answers["done"] = False
    asked = ["done", "begun"]
    assert not Run(tmp_path / "unseen", Settings(), resume=True).finished


def test_it_goes_on_at_the_last_checkpoint_that_is_whole(tmp_path):
    run = started(tmp_path)
    for step, state in ((2, '{"global_step": 2}'), (4, '{"global_step": 4}'), (6, '{"cut sho')):
        folder = run.trainer / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(state)
    (run.trainer / "checkpoint-8").mkdir()
    for step in range(1, 9):
        run.log({"step": step})
    assert Path(run.resume_point()).name == "checkpoint-4"
    assert [record["step"] for record in run.metrics()] == [1, 2, 3, 4]


def test_a_run_older_than_a_setting_goes_on_with_its_default(tmp_path):
    started(tmp_path, seed=0)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    config = json.loads((tmp_path / "config.json").read_text())
    del config["settings"]["seed"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    started(tmp_path, seed=0, resume=True)
    with pytest.raises(SettingsError, match=r"other settings \(seed\)"):
        started(tmp_path, seed=1, resume=True)


def test_curves_are_drawn_at_intervals(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PICTURE_SECONDS", 0.0)
    drawn = []
    monkeypatch.setattr(runs, "write_curves", lambda arms, path: drawn.append((arms, path)))
    made = started(tmp_path / "named")
    made.log({"step": 1, "env/accuracy": 0.5})
    assert drawn == [
        ({"named": [{"step": 1, "env/accuracy": 0.5}]}, tmp_path / "named" / "curves.png")
    ]
    monkeypatch.setattr(runs, "PICTURE_SECONDS", 1e9)
    made.log({"step": 2, "env/accuracy": 0.5})
    assert len(drawn) == 1
    monkeypatch.setattr(runs, "write_curves", _without_matplotlib)
    made.draw()


def _without_matplotlib(arms, path):
    raise ImportError("matplotlib")
