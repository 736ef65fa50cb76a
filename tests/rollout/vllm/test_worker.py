"""The extension of vLLM's worker, with stand-ins for the modules of vLLM."""

import asyncio
import contextlib
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from retool_env.rollout.vllm.worker import WeightLoader
from retool_env.rollout.weight_deltas import DeltaFiles
from retool_env.rollout.weights import Inventory, checksum


class Head:
    """An output layer that counts how often its weights are packed."""

    def __init__(self) -> None:
        self.packed = 0
        self.quant_method = self

    def process_weights_after_loading(self, layer) -> None:
        layer.packed += 1


@pytest.mark.parametrize("cpu", [True, False])
def test_a_cpus_output_layer_is_packed_anew(cpu, monkeypatch):
    embedding = "vllm.model_executor.layers.vocab_parallel_embedding"
    modules = {
        embedding: {"ParallelLMHead": Head},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: cpu)},
    }
    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.layers", *modules):
        module = ModuleType(name)
        vars(module).update(modules.get(name, {}), __path__=[])
        monkeypatch.setitem(sys.modules, name, module)

    class Worker(WeightLoader):
        head, loaded = Head(), ""
        vllm_config = SimpleNamespace(load_config=SimpleNamespace(load_format="dummy"))

        def reload_weights(self, weights_path) -> None:
            assert self.head.packed == 0
            assert self.vllm_config.load_config.load_format == "auto"  # "dummy" reads no folder
            self.loaded = weights_path

        @property
        def model_runner(self):
            model = SimpleNamespace(modules=lambda: [object(), self.head])
            return SimpleNamespace(get_model=lambda: model)

    worker = Worker()
    monkeypatch.setattr("retool_env.rollout.weight_files.SEEN_SECONDS", 0.0)
    with pytest.raises(FileNotFoundError, match="STABLE is missing"):
        worker.load_checkpoint("/folder", marked=True)
    assert not worker.loaded
    worker.load_checkpoint("/folder")
    assert worker.loaded == "/folder" and worker.head.packed == int(cpu)


def test_deltas_are_merged_for_the_model_and_checked_after_it_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr("retool_env.rollout.vllm.worker.pack_heads", lambda model: None)
    weights = {"a": torch.arange(9.0), "b": torch.ones(3)}
    files = DeltaFiles(tmp_path)
    files._inventory = Inventory.of_tensors(weights)

    class Worker(WeightLoader):
        device, model_runner = "cpu", SimpleNamespace(get_model=lambda: None)

        def reload_weights(self, weights_iterator) -> None:
            self.loaded = dict(weights_iterator)

    worker = Worker()
    for version in range(2):
        weights["a"][3] = version
        folder = asyncio.run(files.write(f"{version}-x", weights.items(), "model"))
        worker.load_checkpoint(folder, marked=True)
        assert worker.loaded["a"].tolist() == weights["a"].tolist()
        assert worker.loaded["b"].tolist() == [1] * 3
    chain = tmp_path / "1-x" / "chain.json"
    chain.write_text(json.dumps({**json.loads(chain.read_text()), "checksum": 7}))
    monkeypatch.setattr("retool_env.rollout.vllm.worker.wait_until_stable", lambda folder: None)
    with pytest.raises(OSError, match=r"have the checksum \d+, not 7"):
        worker.load_checkpoint(folder, marked=True)


def test_a_transfer_begins_anew_and_its_tensors_are_summed_up(monkeypatch):
    calls, loaded = [], []
    modules = {
        "vllm.config": {"set_current_vllm_config": lambda config: contextlib.nullcontext()},
        "vllm.model_executor.model_loader.reload": {
            "finalize_layerwise_reload": lambda *args: calls.append(args)
        },
    }
    names = ("vllm", "vllm.model_executor", "vllm.model_executor.model_loader", *modules)
    for name in names:
        module = ModuleType(name)
        vars(module).update(modules.get(name, {}), __path__=[])
        monkeypatch.setitem(sys.modules, name, module)

    class Model:
        def load_weights(self, weights):
            loaded.extend(weights)

    class Worker(WeightLoader):
        weight_transfer_engine = None
        vllm_config = _weight_update_active = "a transfer that was cut"

    worker = Worker()
    with pytest.raises(RuntimeError, match="needs --weight-transfer-config"):
        worker.prepare_update()
    model = Model()
    worker.weight_transfer_engine = SimpleNamespace(model=model, model_config="config")
    weights = [("a", torch.arange(6.0)), ("b", torch.ones(3, dtype=torch.bfloat16))]
    for _ in range(2):
        worker.prepare_update()
        assert worker._weight_update_active is False and calls.pop() == (model, "config")
        model.load_weights(weights[:1])
        assert worker.received_checksum() == {"checksum": checksum(weights[:1])}
        model.load_weights(weights[1:])
        assert worker.received_checksum() == {"checksum": checksum(weights)}
    assert loaded == weights * 2
