"""Weights on their way into files."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agents.tiny import make_checkpoint, make_model
from retool_env.rollout.weights import WeightFiles


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
