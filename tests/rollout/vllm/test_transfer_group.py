"""The client of a transfer for several servers, and the source of its weights."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from concurrent import futures

import pytest
import torch

from retool_env.errors import MissingPackage
from retool_env.rollout.vllm.routing import Server
from retool_env.rollout.vllm.transfer_group import FanOut, Member, Source, open_engine
from retool_env.servers.background import BackgroundLoop
from retool_env.servers.hosts import Failure


class Requests:
    """A client that keeps the requests; those to a server of this name fail or never end."""

    def __init__(self):
        self.sent, self.fails, self.hangs, self.ended = [], "", "", []

    async def send(self, server, method, path, body, seconds):
        self.sent.append((server.url, path, body))
        if server.url == self.fails:
            raise Failure("broken")
        if server.url == self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.append(server.url)


@pytest.fixture
def requests():
    return Requests()


@pytest.fixture
def fan_out(requests):
    loop = BackgroundLoop("test")

    async def running():
        return asyncio.get_running_loop()

    members = [Member(Server(name), workers) for name, workers in (("a", 2), ("b", 3), ("c", 1))]
    yield FanOut(loop.run_blocking(running()), requests, members, 9.0)
    loop.close()


def test_each_server_has_the_number_of_its_first_worker(fan_out, requests):
    fan_out.init_weight_transfer_engine({"rank_offset": 1, "world_size": 7, "packed": True})
    infos = {url: body["init_info"] for url, _, body in requests.sent}
    assert {url: info["rank_offset"] for url, info in infos.items()} == {"a": 1, "b": 3, "c": 6}
    assert all(info["world_size"] == 7 and info["packed"] for info in infos.values())
    fan_out.update_weights({"names": []})
    fan_out.finish_weight_update()
    assert [path for _, path, _ in requests.sent[3:]] == [
        *["/update_weights"] * 3,
        *["/finish_weight_update"] * 3,
    ]


def test_the_first_failure_ends_the_requests_to_the_other_servers(fan_out, requests):
    requests.fails, requests.hangs = "b", "c"
    with pytest.raises(ExceptionGroup):
        fan_out.start_weight_update()
    assert fan_out.failure == "b at /start_weight_update: broken" and requests.ended == ["c"]


def test_a_call_that_waits_can_be_cancelled(fan_out, requests):
    requests.hangs = "a"
    with futures.ThreadPoolExecutor(1) as threads:
        call = threads.submit(fan_out.update_weights, {})
        while len(requests.sent) < 3:
            time.sleep(0.01)
        fan_out.cancel()
        with pytest.raises(futures.CancelledError):
            call.result(20)


def test_a_call_after_the_cancel_asks_nobody(fan_out, requests):
    fan_out.cancel()  # the thread of the transfer may be between two calls
    with pytest.raises(futures.CancelledError):
        fan_out.update_weights({})
    assert not requests.sent


def test_a_cancel_while_a_call_begins_is_not_lost(fan_out, requests, monkeypatch):
    requests.hangs = "a"
    submit = asyncio.run_coroutine_threadsafe
    cancels = []

    def slowly(work, loop):
        future = submit(work, loop)
        cancels.append(threading.Thread(target=fan_out.cancel))
        cancels[0].start()
        cancels[0].join(0.1)
        return future

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", slowly)
    with pytest.raises(futures.CancelledError):
        fan_out.update_weights({})
    cancels[0].join()


def test_a_source_gives_the_pairs_of_the_update_under_way_each_time():
    source = Source("cpu")
    for size in (2, 3):
        source.pairs = [("a", torch.zeros(size, 1, dtype=torch.bfloat16))]
        [meta] = source.metadata()
        assert (meta.name, meta.dtype, meta.shape) == ("a", torch.bfloat16, (size, 1))
        assert [name for name, _ in source] == ["a"]


def test_a_trainer_without_vllm_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer", None)
    with pytest.raises(MissingPackage, match="set weights=files"):
        open_engine("gloo", "127.0.0.1", 2, None, None)
