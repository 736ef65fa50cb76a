"""Weights as files for other processes."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agents.models.tiny import make_checkpoint, make_model
from retool_env.rollout import weights as module
from retool_env.rollout.weights import Inventory, WeightFiles, passing_folder, remove_abandoned


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", 0))


@pytest.mark.parametrize("times", [1, 2])
def test_when_writing_is_cancelled_its_folder_goes_after_the_last_file_and_no_more_is_read(
    checkpoint, tmp_path, monkeypatch, times
):
    monkeypatch.setattr("retool_env.rollout.weights._SHARD_BYTES", 1)  # each tensor in a file
    weights = make_model(7)[0].state_dict()
    read, begun, may_go_on = [], threading.Event(), threading.Event()

    def tensors():
        for name, tensor in weights.items():
            if len(read) == 2:
                begun.set()
                assert may_go_on.wait(20)
            read.append(name)
            yield name, tensor

    async def main():
        files = WeightFiles(tmp_path)
        writing = asyncio.create_task(files.write("new", tensors(), checkpoint))
        await asyncio.to_thread(begun.wait, 20)
        for _ in range(times):
            writing.cancel()
            await asyncio.wait([writing], timeout=0.05)
        assert not writing.done() and list((tmp_path / "new").iterdir())
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await writing

    asyncio.run(main())
    assert not list(tmp_path.iterdir()) and len(read) == 3 < len(weights)


def test_weights_for_which_the_disk_has_no_room_are_an_oserror(checkpoint, tmp_path):
    writing = Inventory.of(checkpoint).write(tmp_path, make_model(7)[0].state_dict())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # as good as a full disk
    try:
        with pytest.raises(OSError, match=r"can't be written as .*weights-00000.*too large"):
            asyncio.run(writing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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
from retool_env.rollout import weights
weights._MEMORY = sys.argv[1]
with weights.passing_folder(1) as folder:
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
