"""Checkpoints: written while the training goes on; the last complete one is always kept."""

from __future__ import annotations

import shutil
import threading

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers.power import Disk
from torch import distributed
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from agents.base.records import INCOMPLETE, SEAL, seal
from agents.base.resuming import last_point
from agents.base.saving import Saving


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.fixture
def held(monkeypatch):
    """Shards are only written once this event is set."""
    event, write = threading.Event(), FileSystemWriter.write_data

    def writing(self, *args):
        assert event.wait(60)
        return write(self, *args)

    monkeypatch.setattr(FileSystemWriter, "write_data", writing)
    yield event
    event.set()


def save(saving, step, *states):
    """Save a checkpoint, the states as accelerate saves shards."""
    with saving.checkpoint(step) as folder:
        (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        for number, state in enumerate(states):
            dcp.save(state, storage_writer=FileSystemWriter(folder / f"shards_{number}"))


def names(saving):
    return sorted(path.name for path in saving.folder.glob("checkpoint-*"))


def point(saving):
    found = last_point(saving.folder)
    return found and found.step


def read(folder):
    state = {"weight": torch.zeros(3)}
    dcp.load(state, checkpoint_id=folder)
    return state["weight"].tolist()


def test_the_last_checkpoint_stays_until_the_next_is_complete(group, held, tmp_path):
    saving = Saving(tmp_path / "trainer")
    held.set()
    weight = torch.ones(3)
    save(saving, 1, {"weight": weight})
    saving.wait()
    held.clear()
    save(saving, 2, {"weight": weight}, {"weight": 10 * weight})  # model and optimizer
    weight += 1  # the training goes on
    assert (saving.begun, saving.step) == (2, 1)
    assert names(saving) == ["checkpoint-1", "checkpoint-2"] and point(saving) == 1
    assert (saving.folder / "checkpoint-2" / INCOMPLETE).exists()
    held.set()
    saving.wait()
    assert saving.step == 2 and names(saving) == ["checkpoint-2"] and point(saving) == 2
    folder = saving.folder / "checkpoint-2"
    assert not (folder / INCOMPLETE).exists() and (folder / SEAL).exists()
    assert read(folder / "shards_0") == [1.0] * 3  # the weights at the time of the save
    assert read(folder / "shards_1") == [10.0] * 3


def test_a_save_in_flight_ends_before_the_next_begins(group, held, tmp_path):
    saving = Saving(tmp_path / "trainer")
    save(saving, 1, {"weight": torch.ones(3)})
    begun = threading.Event()

    def next_one():
        save(saving, 2, {"weight": torch.ones(3)})
        begun.set()

    thread = threading.Thread(target=next_one)
    thread.start()
    assert not begun.wait(0.3) and names(saving) == ["checkpoint-1"]
    held.set()
    thread.join(60)
    saving.wait()
    assert point(saving) == 2


def test_what_a_crash_left_is_written_anew(group, held, tmp_path):
    held.set()
    saving = Saving(tmp_path / "trainer", keep=2)
    for step in (1, 2):
        save(saving, step)
    left = saving.folder / "checkpoint-3"
    left.mkdir()
    (left / INCOMPLETE).touch()
    (left / "shard of another number of processes").touch()
    assert point(saving) == 2
    save(saving, 3)
    assert names(saving) == ["checkpoint-2", "checkpoint-3"] and point(saving) == 3
    assert sorted(path.name for path in left.iterdir()) == [SEAL, "trainer_state.json"]


def test_a_later_incomplete_checkpoint_does_not_count_among_the_kept(tmp_path):
    saving = Saving(tmp_path / "trainer")
    left = saving.folder / "checkpoint-9"
    left.mkdir(parents=True)
    (left / INCOMPLETE).touch()
    save(saving, 4)
    assert point(saving) == 4 and names(saving) == ["checkpoint-4", "checkpoint-9"]


def test_all_checkpoints_are_kept_without_a_limit(tmp_path):
    saving = Saving(tmp_path / "trainer", keep=None)
    for step in (1, 2, 3):
        save(saving, step)
    assert names(saving) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_an_error_of_a_write_is_raised_later_and_the_checkpoint_stays_incomplete(
    group, tmp_path, monkeypatch
):
    saving = Saving(tmp_path / "trainer")
    save(saving, 1)

    def full(self, *args):
        raise OSError("no space left")

    monkeypatch.setattr(FileSystemWriter, "write_data", full)
    save(saving, 2, {"weight": torch.ones(3)})
    with pytest.raises(OSError, match=r"could not be written: process 0: no space left"):
        saving.wait()
    assert saving.step == 1 and point(saving) == 1
    assert names(saving) == ["checkpoint-1", "checkpoint-2"]


def test_an_error_of_the_block_ends_the_save(tmp_path):
    saving = Saving(tmp_path / "trainer")
    save(saving, 1)
    before = dcp.save
    with pytest.raises(OSError, match="disk"), saving.checkpoint(2):
        raise OSError("disk")
    assert dcp.save is before and point(saving) == 1


def test_a_power_failure_finds_a_whole_checkpoint_before_the_older_one_is_deleted(
    group, held, tmp_path, monkeypatch
):
    held.set()
    disk, saving, lost = Disk(monkeypatch), Saving(tmp_path / "run" / "trainer"), []
    delete = shutil.rmtree

    def deleting(path, **options):
        if not options:  # not what a crash left
            lost.append(disk.lost(saving.folder / "checkpoint-2", *records))
        delete(path, **options)

    monkeypatch.setattr(shutil, "rmtree", deleting)
    records = [saving.folder.parent / f"{name}.jsonl" for name in ("metrics", "transcripts-1")]
    for step in (1, 2):
        saving.folder.parent.mkdir(exist_ok=True)
        for path in records:
            with open(path, "a") as file:
                file.write("{}\n")
        save(saving, step, {"weight": torch.ones(3)})
        saving.wait()
    assert lost == [[]] and names(saving) == ["checkpoint-2"]


def test_the_files_are_on_the_disk_before_the_seal(tmp_path, monkeypatch):
    disk, saving, lost = Disk(monkeypatch), Saving(tmp_path / "trainer"), []

    def sealing(folder):
        lost.extend(disk.lost(*(path for path in folder.iterdir())))
        seal(folder)

    monkeypatch.setattr("agents.base.saving.seal", sealing)
    save(saving, 1)
    assert lost == [] and point(saving) == 1


def test_an_older_checkpoint_that_can_not_be_deleted_is_said_once(tmp_path, monkeypatch, capsys):
    saving, delete = Saving(tmp_path / "trainer"), shutil.rmtree

    def deleting(path, **options):
        if path.name == "checkpoint-1" and not options:
            raise PermissionError(1, "Operation not permitted", str(path))
        delete(path, **options)

    monkeypatch.setattr(shutil, "rmtree", deleting)
    for step in (1, 2, 3):
        save(saving, step)
    assert names(saving) == ["checkpoint-1", "checkpoint-3"] and point(saving) == 3
    told = capsys.readouterr().err
    assert told.count("warning: ") == 1 and str(saving.folder / "checkpoint-1") in told
