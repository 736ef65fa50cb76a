"""WeightLoader: an extension of vLLM's worker, the process that holds the model, for new weights.

vLLM imports this module in the worker process by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retool_env.rollout.weight_deltas import CHAIN, MergedWeights
from retool_env.rollout.weight_files import wait_until_stable
from retool_env.rollout.weights import checksum

if TYPE_CHECKING:
    import torch

with suppress(ImportError):  # a trainer may lack vLLM
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    WeightTransferEngineFactory.register_engine(
        "gloo", "retool_env.rollout.vllm.gloo", "GlooEngine"
    )


class WeightLoader:
    """A mixin of `vllm.v1.worker.worker_base.WorkerBase`."""

    def load_checkpoint(self: Any, folder: str, marked: bool = False) -> None:
        """Replace the served weights by the weights of a checkpoint's folder.

        Args:
            folder: The folder of the checkpoint.
            marked: Whether a mark in the folder tells that it is complete; see `weight_files`.

        Raises:
            OSError: If the mark, or a file that it lists, is missing, or deltas do not give the
                weights that were sent.
        """
        if marked:
            wait_until_stable(folder)
        if marked and (Path(folder) / CHAIN).exists():
            merged = MergedWeights(folder, self.device)
            self.reload_weights(weights_iterator=iter(merged))
            merged.check()
        else:
            load_config = self.vllm_config.load_config
            if load_config.load_format == "dummy":  # vLLM would refuse to read another folder
                load_config.load_format = "auto"
            self.reload_weights(weights_path=folder)
        pack_heads(self.model_runner.get_model())

    def prepare_update(self: Any) -> None:
        """Forget a transfer that ended halfway, and sum up the tensors of the next one.

        vLLM would otherwise count tensors of the earlier transfer as tensors of the next one, and
        serve a mixture of both.

        Raises:
            RuntimeError: If the server was started without `--weight-transfer-config`.
        """
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        engine = self.weight_transfer_engine
        if engine is None:
            raise RuntimeError("weight transfer needs --weight-transfer-config")
        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(engine.model, engine.model_config)
        self._weight_update_active = False
        self.received = 0
        if "load_weights" not in vars(engine.model):
            load = engine.model.load_weights

            def counted(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Any]:
                for name, tensor in weights:
                    self.received += checksum([(name, tensor)])
                    yield name, tensor

            engine.model.load_weights = lambda weights: load(counted(weights))

    def received_checksum(self: Any) -> dict[str, int]:
        """The `checksum` of the tensors that this worker received since `prepare_update`."""
        return {"checksum": self.received % 2**64}


def pack_heads(model: torch.nn.Module) -> None:
    """On a CPU, renew the packed copy of the weights with which an output layer multiplies.

    An output layer that is tied to the embedding has no weights in the checkpoint, and vLLM does
    not renew its copy. On other devices nothing is done.

    Args:
        model: The served model.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
