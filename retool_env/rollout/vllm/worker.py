"""WeightLoader: an extension of vLLM's worker, the process that holds the model, for new weights.

vLLM imports this module in the worker process by its name.
"""

from __future__ import annotations

from typing import Any

from retool_env.rollout.weight_files import wait_until_stable


class WeightLoader:
    """A mixin of `vllm.v1.worker.worker_base.WorkerBase`."""

    def load_checkpoint(self: Any, folder: str, marked: bool = False) -> None:
        """Replace the served weights by the weights of a checkpoint's folder.

        Args:
            folder: The folder of the checkpoint.
            marked: Whether a mark in the folder tells that it is complete; see `weight_files`.

        Raises:
            OSError: If the mark, or a file that it lists, is missing.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.platforms import current_platform

        if marked:
            wait_until_stable(folder)
        self.reload_weights(weights_path=folder)
        if not current_platform.is_cpu():
            return
        # On a CPU the output layer multiplies with a packed copy of its weights. An output layer
        # that is tied to the embedding has no weights in the checkpoint, and vLLM 0.31 does not
        # renew its copy.
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
