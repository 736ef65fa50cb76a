"""`python -m agents` as a program."""

from __future__ import annotations

import gc
import sys

import pytest
from torch import distributed

from agents import grpo
from agents.__main__ import main


def test_only_a_program_of_its_own_freezes_what_was_imported(monkeypatch, capsys):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    assert main(["grpo", "--help"]) == 0 and not frozen
    monkeypatch.setattr(sys, "argv", ["agents", "grpo", "--help"])
    assert main() == 0 and frozen
    assert "settings of grpo:" in capsys.readouterr().out


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
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
