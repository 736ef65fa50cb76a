"""TRL's fused head, limited to the positions whose log-probs are wanted.

On a GPU the head skips the other positions by itself. On a CPU it also projects prompts, padding
and the interpreter's text onto the vocabulary, which costs time and memory.
"""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel


def skip_unwanted(model: Any) -> None:
    """Limit a model's fused head to the wanted positions, on a CPU. The output stays the same.

    Args:
        model: The model for which `trl.trainer.utils.add_fused_lm_head` was called, with adapters
            around it or without.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    fused = base.forward

    @functools.wraps(type(base).forward)
    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.get("shift_labels")
        if not kwargs.get("fused_lm_head") or labels is None or labels.device.type != "cpu":
            return fused(*args, **kwargs)
        wanted = labels != -100
        if wanted.all():
            return fused(*args, **kwargs)
        if not wanted.any():  # so that gradients still flow from the output to the model
            wanted.view(-1)[0] = True

        def keep(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[wanted][None]
            return output

        # The head reads `base_model` at the call: wrappers may have replaced it until then.
        hook = self.base_model.register_forward_hook(keep)
        try:
            output = fused(*args, **{**kwargs, "shift_labels": labels[wanted][None]})
        finally:
            hook.remove()
        for name, value in output.items():
            if isinstance(value, torch.Tensor) and value.shape == (1, int(wanted.sum())):
                output[name] = value.new_zeros(wanted.shape).masked_scatter(wanted, value)
        return output

    base.forward = MethodType(forward, base)
