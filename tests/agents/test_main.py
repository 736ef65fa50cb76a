"""`python -m agents` as a program."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys

import pytest
from torch import distributed

from agents import grpo
from agents.__main__ import _terminate, main
from agents.base.stopping import Stopped


def test_only_a_program_of_its_own_freezes_what_was_imported(monkeypatch, capsys):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    assert main(["grpo", "--help"]) == 0 and not frozen
    monkeypatch.setattr(sys, "argv", ["agents", "grpo", "--help"])
    assert main() == 0 and frozen
    assert "settings of grpo:" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["grpo", "--help"]])
def test_a_reader_that_leaves_is_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)  # as `| head -0` leaves it
    command = [sys.executable, "-m", "agents", *words]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_leaves_its_process_group(monkeypatch, tmp_path, capsys, stopped):
    """With an open group, gloo can abort a process at its exit: the run would count as failed."""

    def train(settings, folder, resume):
        distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
        )
        if stopped:
            raise KeyboardInterrupt
        return folder

    monkeypatch.setattr(grpo, "train", train)
    try:
        status = main(["grpo", "--runs", str(tmp_path)])
        assert status == (130 if stopped else 0) and not distributed.is_initialized()
        # A scheduler starts a run again that was stopped while it loaded its model.
        found = [json.loads(p.read_text())["code"] for p in tmp_path.glob("*/status.json")]
        assert found == ([75] if stopped else [])
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_signal_after_the_end_of_a_run_changes_nothing(monkeypatch, tmp_path, capsys, stopped):
    """A launcher passes a signal on, when the run may have stopped already."""

    def train(settings, folder, resume):
        if stopped:
            raise Stopped(signal.SIGTERM)
        return folder

    monkeypatch.setattr(grpo, "train", train)
    monkeypatch.setattr(
        "agents.__main__.leave_process_group", lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        assert main(["grpo", "--runs", str(tmp_path)]) == (75 if stopped else 0)
    finally:
        signal.signal(signal.SIGTERM, before)
