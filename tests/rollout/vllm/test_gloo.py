"""vLLM's weight transfer over gloo: a group of a trainer and two workers, as threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from helpers.vllm_models import needs_vllm
from helpers.vllm_servers import unused_port

from retool_env.rollout.vllm.transfer_group import Source, open_engine

pytestmark = needs_vllm


@pytest.fixture
def gloo():
    """The module, which needs vLLM."""
    from retool_env.rollout.vllm import gloo

    return gloo


class Model:
    """A served model that keeps the tensors that it loads."""

    def __init__(self):
        self.got = {}

    def load_weights(self, weights):
        self.got.update((name, tensor.clone()) for name, tensor in weights)


class Workers:
    """The workers of a server, and vLLM's client that speaks to them."""

    def __init__(self, gloo, count, fails=False):
        self.engines = [self._engine(gloo, rank, count) for rank in range(count)]
        self.calls, self._fails = [], fails

    def _engine(self, gloo, rank, count):
        config = SimpleNamespace(data_parallel_index=0, world_size=count, rank=rank)
        vllm_config = SimpleNamespace(parallel_config=config, model_config=None)
        return gloo.GlooEngine(None, vllm_config, torch.device("cpu"), Model())

    def _all(self, call):
        with ThreadPoolExecutor(len(self.engines)) as threads:
            list(threads.map(call, self.engines))

    def init_weight_transfer_engine(self, init_info):
        self.calls.append("init")
        self._all(lambda engine: engine.init_transfer_engine(engine.parse_init_info(init_info)))

    def start_weight_update(self):
        self.calls.append("start")

    def update_weights(self, update_info):
        self.calls.append("update")
        if not self._fails:
            self._all(lambda engine: engine.update_weights(update_info))

    def finish_weight_update(self, weight_version=None):
        self.calls.append("finish")


def test_all_workers_receive_the_weights_again_and_again(gloo):
    source, workers = Source("cpu"), Workers(gloo, 2)
    engine = open_engine("gloo", "127.0.0.1", 3, workers, source)
    for seed in range(2):
        torch.manual_seed(seed)
        source.pairs = [
            ("a", torch.randn(3, 5, dtype=torch.bfloat16).T),  # not contiguous
            ("b", torch.randn(7)),
            ("steps", torch.tensor(2**40)),
        ]
        engine.send_weights()
        for each in workers.engines:
            assert [name for name, _ in source.pairs] == list(each.model.got)
            assert all(torch.equal(each.model.got[name], sent) for name, sent in source.pairs)
    assert workers.calls == ["init", *["start", "update", "finish"] * 2]
    engine.shutdown()
    for each in workers.engines:
        each.shutdown()
    with pytest.raises(RuntimeError, match="was not made"):
        workers.update_weights({"names": [], "dtype_names": [], "shapes": []})


def test_a_broadcast_without_a_peer_ends(gloo, monkeypatch):
    """Unlike NCCL's, so the workers of servers that are left can receive weights again."""
    monkeypatch.setattr(gloo, "SECONDS", 1.0)
    port = unused_port()
    with ThreadPoolExecutor(2) as threads:
        made = [threads.submit(gloo.Group, "127.0.0.1", port, rank, 2) for rank in range(2)]
        _, worker = [each.result() for each in made]
    with pytest.raises(RuntimeError, match=r"(?i)time.?out|timed out"):
        worker.broadcast(torch.zeros(3))
