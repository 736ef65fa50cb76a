"""WeightLoader: what is added to vLLM's worker, the process that holds the model, so that it takes new weights.

vLLM imports this in that process, by its name.
"""

from __future__ import annotations

from typing import Any


class WeightLoader:
    """Mixed into `vllm.v1.worker.worker_base.WorkerBase`."""

    def load_checkpoint(self: Any, folder: str) -> None:
        """Load a checkpoint's weights in place of those that are served."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.platforms import current_platform

        self.reload_weights(weights_path=folder)
        if not current_platform.is_cpu():
            return
        # On a CPU the output layer multiplies with a packed copy of its weights. One that is tied to the embedding has no
        # weights in the checkpoint, and vLLM 0.31 leaves its copy as it was.
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
