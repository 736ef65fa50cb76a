"""`status.json`: the state of a run, for whoever starts it again."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from agents.base import status as statuses
from agents.base.status import Status, resume_command


def read(status):
    return json.loads(status.path.read_text())


def test_a_run_at_work_says_where_and_since_when(tmp_path):
    status = Status(tmp_path)
    status.start()
    first = read(status)
    assert (first["state"], first["code"], first["error"]) == ("running", None, None)
    assert first["pid"] == os.getpid() and first["processes"] == 1 and first["host"]
    status.step = 7
    status.refresh(saved=5)
    assert read(status) | {"time": 0} == first | {"step": 7, "saved": 5, "time": 0}


@pytest.mark.parametrize(("state", "code"), [("finished", 0), ("stopped", 75), ("failed", 1)])
def test_each_end_has_a_code(tmp_path, state, code):
    status = Status(tmp_path)
    status.start()
    status.end(state, 4, "disk full" if code == 1 else None)
    found = read(status)
    assert (found["state"], found["code"], found["saved"]) == (state, code, 4)
    assert found["step"] == 4  # no step was logged
    assert found["error"] == ("disk full" if code == 1 else None)
    status.refresh(None)  # the thread that refreshes it may be late
    status.end("stopped")
    assert read(status) == found


def test_nothing_is_written_before_the_start(tmp_path):
    Status(tmp_path / "new").end("failed", error="wrong setting")
    assert not (tmp_path / "new").exists()


def test_a_stop_before_the_start_is_written_but_not_over_an_earlier_status(tmp_path):
    status = Status(tmp_path / "new")
    status.stopped_early()
    assert (read(status)["state"], read(status)["code"]) == ("stopped", 75)
    status.start()
    status.end("finished")
    status.stopped_early()
    assert read(status)["state"] == "finished"


def test_the_first_failure_is_kept_and_any_process_can_write_it(tmp_path, monkeypatch):
    first, second = Status(tmp_path), Status(tmp_path)
    first.start()
    other = SimpleNamespace(process_index=1, is_main_process=False, num_processes=2)
    monkeypatch.setattr(statuses, "processes", lambda: other)
    second.start()
    first.step = 3
    second.end("failed", error="no memory at https://user:secret@host/")
    first.end("failed", error="the connection closed")
    found = read(first)
    assert found["error"].startswith("no memory") and "secret" not in found["error"]
    assert found["pid"] == os.getpid()


def test_other_processes_change_nothing_but_a_run_at_work_that_failed(tmp_path, monkeypatch):
    first, second = Status(tmp_path), Status(tmp_path)
    first.start()
    first.step = 3
    own = statuses.processes
    other = SimpleNamespace(process_index=1, is_main_process=False, num_processes=2)
    monkeypatch.setattr(statuses, "processes", lambda: other)
    second.start()
    second.end("stopped")
    assert read(first)["state"] == "running"
    monkeypatch.setattr(statuses, "processes", own)
    first.end("stopped", saved=3)
    found = read(first)
    late = Status(tmp_path)
    monkeypatch.setattr(statuses, "processes", lambda: other)
    late.start()
    late.end("failed", error="the connection closed")  # because the first process has left
    assert read(first) == found and found["saved"] == 3
    monkeypatch.setattr(statuses, "processes", own)
    again = Status(tmp_path)
    again.start()  # until it has a checkpoint of its own, the earlier one counts
    assert (read(again)["state"], read(again)["saved"]) == ("running", 3)


def test_a_full_disk_does_not_hide_the_runs_own_error(tmp_path):
    status = Status(tmp_path / "gone")
    status.start()
    status.end("failed", error="x")
    assert not status.path.exists()


def test_the_command_that_resumes_is_the_launchers(monkeypatch):
    assert resume_command() is None  # pytest is not a command that trains
    main = SimpleNamespace(__spec__=SimpleNamespace(name="agents.__main__"))
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "agents", "grpo", "name=a b"])
    assert resume_command() == "python -m agents grpo 'name=a b' --resume"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "agents", "grpo", "--resume"])
    assert resume_command() == "python -m agents grpo --resume"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    launched = resume_command()  # this process's parent stands for the launcher
    assert launched.endswith(" --resume") and "agents grpo" not in launched


@pytest.mark.parametrize("length", [20, 100_000])
def test_on_a_full_disk_the_end_is_written_over_the_old_status(tmp_path, monkeypatch, length):
    status = Status(tmp_path)
    status.start()
    write = Path.write_text

    def full(path, text, **options):
        write(path, "", **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    status.refresh(saved=3)
    assert read(status)["saved"] == 3
    status.end("failed", 4, "é" * length)  # six bytes each
    found = read(status)
    assert (found["state"], found["code"], found["saved"]) == ("failed", 1, 4)
    assert set(found["error"]) <= {"é"} and (length > 1000 or len(found["error"]) == length)
    assert status.path.stat().st_size <= 4096 and [*tmp_path.iterdir()] == [status.path]
