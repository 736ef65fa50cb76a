"""Folders for files that another process reads for a short while."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from retool_env.rollout.vllm import passing_folder as module
from retool_env.rollout.vllm.passing_folder import passing_folder, remove_abandoned


@pytest.mark.parametrize("memory", ["there", "full", "none"])
def test_a_passing_folder_is_in_memory_where_there_is_room(memory, tmp_path, monkeypatch):
    places = {"there": tmp_path / "memory", "full": tmp_path / "memory", "none": tmp_path / "no"}
    (tmp_path / "memory").mkdir()
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(module, "_MEMORY", str(places[memory]))
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "disk"))
    with passing_folder(2**60 if memory == "full" else 1) as folder:
        (folder / "file").touch()
        assert folder.parent.name == ("memory" if memory == "there" else "disk")
    assert not folder.exists() and not list(folder.parent.iterdir())


KILLED = """
import os, signal, sys
from retool_env.rollout.vllm import passing_folder as module
module._MEMORY = sys.argv[1]
with module.passing_folder(1) as folder:
    (folder / "weights.safetensors").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    [left] = tmp_path.iterdir()
    assert (left / "weights.safetensors").exists()
    monkeypatch.setattr(module, "_MEMORY", str(tmp_path))
    other = Path(tmp_path / "another's")
    other.mkdir()
    with passing_folder(1) as used:
        remove_abandoned()
        assert sorted(tmp_path.iterdir()) == sorted([other, used])
