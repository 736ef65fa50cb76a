"""Critic: a model of values, one for each token that the actor samples."""

from __future__ import annotations

from typing import Any

import torch
from peft import get_peft_model
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedModel

from retool_env.training.packing import Packed


class ValueHead(torch.nn.Linear):
    """The critic's head.

    It works in float32 whatever the trunk does: of a value in bfloat16 two digits would remain.
    """

    def values(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values in float32, shape `(B, L)`, of hidden states, `(B, L, H)`.

        A method of its own: the module's call would have FSDP gather the weights in bfloat16.
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
    """A causal model's trunk under a scalar head that says 0 at first.

    Args:
        model: The causal model. Its own head is not used.
        lora: LoRA on the trunk; `None`: all of it is trained.
    """

    def __init__(self, model: PreTrainedModel, lora: Any = None) -> None:
        super().__init__()
        trunk = model.base_model
        if lora is not None:
            lora.task_type = "FEATURE_EXTRACTION"
            trunk = get_peft_model(trunk, lora)
        self.trunk = trunk
        self._no_split_modules = model._no_split_modules  # what FSDP shards one by one
        self.head = ValueHead(model.config.get_text_config().hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, rows: Packed) -> torch.Tensor:
        """Values of the states in which the tokens that `rows` scores were sampled.

        Returns:
            Shape `(B, T)`: the columns of `rows` but the first.
        """
        hidden = self.trunk(
            input_ids=rows.input_ids,
            attention_mask=rows.mask,
            position_ids=rows.position_ids,
            use_cache=False,
        ).last_hidden_state
        values = self.head.values(hidden)
        return rows.unpacked(values)[:, 1:]
