"""Critic: a model that predicts a value for each token that the actor samples."""

from __future__ import annotations

from typing import Any

import torch
from peft import get_peft_model
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedModel

from retool_env.training.packing import Packed


class ValueHead(torch.nn.Linear):
    """The critic's head, which computes in float32.

    The trunk may compute in bfloat16, but a value in bfloat16 has only two or three digits.
    """

    def values(self, hidden: torch.Tensor) -> torch.Tensor:
        """The values of hidden states.

        This is not `forward`, because FSDP gathers the weights in bfloat16 when a module is called.

        Args:
            hidden: The trunk's last hidden states, shape `(B, L, H)`.

        Returns:
            Float32 values, shape `(B, L)`.
        """
        weight, bias = (
            # FSDP averages the gradients of all processes.
            parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)
            if isinstance(parameter, DTensor)
            else parameter
            for parameter in (self.weight, self.bias)
        )
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), weight.float(), bias.float())[..., 0]


class Critic(torch.nn.Module):
    """The trunk of a causal model with a scalar head, whose initial value is 0 for every token.

    Args:
        model: The causal model. Its language-model head is not used.
        lora: The LoRA configuration of the trunk; `None` trains the whole trunk.
    """

    def __init__(self, model: PreTrainedModel, lora: Any = None) -> None:
        super().__init__()
        trunk = model.base_model
        if lora is not None:
            lora.task_type = "FEATURE_EXTRACTION"
            trunk = get_peft_model(trunk, lora)
        self.trunk = trunk
        self._no_split_modules = model._no_split_modules  # FSDP shards each of these layers
        self.head = ValueHead(model.config.get_text_config().hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, rows: Packed) -> torch.Tensor:
        """Predict the value of the state before each sampled token.

        Args:
            rows: The packed episodes.

        Returns:
            The values, shape `(B, T)`, one for each token of an episode after its first token.
        """
        hidden = self.trunk(
            input_ids=rows.input_ids,
            attention_mask=rows.mask,
            position_ids=rows.position_ids,
            use_cache=False,
        ).last_hidden_state
        return rows.unpacked(self.head.values(hidden))[:, 1:]
