"""The extension of vLLM's worker, with stand-ins for the modules of vLLM."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from retool_env.rollout.vllm.worker import WeightLoader


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

        def reload_weights(self, weights_path) -> None:
            assert self.head.packed == 0
            self.loaded = weights_path

        @property
        def model_runner(self):
            model = SimpleNamespace(modules=lambda: [object(), self.head])
            return SimpleNamespace(get_model=lambda: model)

    worker = Worker()
    monkeypatch.setattr("retool_env.rollout.weight_files._SEEN_SECONDS", 0.0)
    with pytest.raises(FileNotFoundError, match="STABLE is missing"):
        worker.load_checkpoint("/folder", marked=True)
    assert not worker.loaded
    worker.load_checkpoint("/folder")
    assert worker.loaded == "/folder" and worker.head.packed == int(cpu)
