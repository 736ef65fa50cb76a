"""Weights as files for other processes."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from agents.models.tiny import make_checkpoint, make_model
from retool_env.errors import SettingsError
from retool_env.rollout import weight_files as module
from retool_env.rollout.vllm.passing_folder import passing_folder
from retool_env.rollout.weight_files import (
    MARK,
    WeightFiles,
    finish,
    wait_until_stable,
    write_part,
    write_whole_model,
)
from retool_env.rollout.weights import Inventory, Parts


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", 0))


@pytest.mark.parametrize("times", [1, 2])
def test_when_writing_is_cancelled_its_folder_goes_after_the_last_file_and_no_more_is_read(
    checkpoint, tmp_path, monkeypatch, times
):
    monkeypatch.setattr(module, "_SHARD_BYTES", 1)  # each tensor in a file
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
    weights = make_model(7)[0].state_dict()
    writing = write_whole_model(tmp_path, Inventory.of(checkpoint), weights, torch.float32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # as good as a full disk
    try:
        with pytest.raises(OSError, match=r"can't be written as .*part-000-00000.*too large"):
            asyncio.run(writing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class Clock:
    """A clock that passes only while somebody sleeps, and calls a function then."""

    def __init__(self, on_sleep=lambda seconds: None):
        self.now, self._on_sleep = 0.0, on_sleep

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self._on_sleep(self.now)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def written(folder):
    """The tensors of all files of a folder, each from one file."""
    pairs = [
        pair for file in sorted(folder.glob("*.safetensors")) for pair in load_file(file).items()
    ]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=12), st.integers(1, 4), st.integers(1, 300))
def test_the_parts_of_all_processes_are_the_whole_and_about_equal(sizes, ranks, shard):
    weights = {f"w{i}": torch.full((size,), float(i)) for i, size in enumerate(sizes)}
    with passing_folder(1) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SHARD_BYTES", shard)
        parts = list(range(ranks))
        random.Random(0).shuffle(parts)  # no process waits for another
        for rank in parts:
            write_part(folder, weights.items(), torch.float32, rank, ranks)
        finish(folder, weights, ranks)
        wait_until_stable(folder)
        assert written(folder).keys() == weights.keys()
        assert all(torch.equal(each, weights[name]) for name, each in written(folder).items())
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        for name, file in index.items():
            assert name in load_file(folder / file)
        lengths = [
            sum(t.numel() for f in folder.glob(f"part-{r:03}-*") for t in load_file(f).values())
            for r in range(ranks)
        ]
        assert max(lengths) - min(lengths) <= max(sizes, default=0)


def test_tensors_are_cast_and_whole_numbers_stay(tmp_path):
    weights = {"a": torch.tensor([1 / 3]), "steps": torch.tensor([2**40])}
    write_part(tmp_path, weights.items(), torch.bfloat16)
    found = written(tmp_path)
    assert found["a"].dtype == torch.bfloat16 and torch.equal(found["steps"], weights["steps"])
    with pytest.raises(SettingsError, match="one of bfloat16, float16, float32, not 'half'"):
        WeightFiles(tmp_path, "half")


def test_the_mark_is_the_last_file_and_a_reader_waits_for_it_and_for_whole_files(
    tmp_path, monkeypatch
):
    """On a shared file system, files of another machine appear late and in any order."""
    weights = {"a": torch.zeros(9), "b": torch.ones(9)}
    order = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append(to), replace(self, to))[1])
    write_part(tmp_path, weights.items(), torch.float32)
    finish(tmp_path, weights)
    assert order[-1].name == MARK
    mark, file = tmp_path / MARK, tmp_path / "part-000-00000.safetensors"
    content, whole = mark.read_bytes(), file.read_bytes()
    mark.unlink()
    file.write_bytes(whole[:-1])

    def appear(now):
        if now > 5 and not mark.exists():
            mark.write_bytes(content)
        if now > 20:
            file.write_bytes(whole)

    monkeypatch.setattr(module, "time", clock := Clock(appear))
    wait_until_stable(tmp_path)
    assert 20 < clock.now < 21


def test_a_reader_gives_up_without_a_mark_or_with_half_a_file(tmp_path, clock):
    with pytest.raises(FileNotFoundError, match=r"STABLE is missing.*same on every machine"):
        wait_until_stable(tmp_path)
    assert 60 <= clock.now < 61
    write_part(tmp_path, {"a": torch.zeros(9)}.items(), torch.float32)
    finish(tmp_path, ["a"])
    file = tmp_path / "part-000-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(OSError, match=r"part-000-00000.safetensors has \d+ bytes, and should have"):
        wait_until_stable(tmp_path)


def test_parts_that_another_machine_wrote_elsewhere_are_missed(checkpoint, tmp_path, clock):
    weights = make_model(7)[0].state_dict()
    files, parts = WeightFiles(tmp_path), Parts("3-x", 2)
    files.write_part(parts, weights.items(), checkpoint, 0)
    with pytest.raises(OSError, match=r"part-001.json is missing.*same on every machine"):
        asyncio.run(files.write("3-x", parts, checkpoint))
    assert not list(tmp_path.iterdir())
    for rank in (0, 1):
        files.write_part(parts, weights.items(), checkpoint, rank)
    path = Path(asyncio.run(files.write("3-x", parts, checkpoint)))
    assert written(path).keys() == weights.keys() - {"lm_head.weight"}
    files.keep("")
    assert not path.exists()


def test_a_part_that_lacks_tensors_is_found_before_the_mark(tmp_path):
    write_part(tmp_path, {"a": torch.zeros(2)}.items(), torch.float32)
    with pytest.raises(OSError, match="lacks 1 weights, for example 'b'"):
        finish(tmp_path, ["a", "b"])
    assert not (tmp_path / MARK).exists()
