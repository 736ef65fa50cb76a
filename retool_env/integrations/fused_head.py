"""TRL's fused head, given only the positions whose log-probs are wanted.

On a GPU that head skips the others by itself. On a CPU it projects prompts, padding and what the interpreter wrote onto the
vocabulary too, at the cost of their time and memory.
"""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel


def skip_unwanted(model: Any) -> None:
    """Have a model's fused head compute, on a CPU, the wanted positions alone. What the model returns stays the same.

    Args:
        model: What `trl.trainer.utils.add_fused_lm_head` was called with, adapters around it or not.
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
        if not wanted.any():  # so that the output still hangs together with the model
            wanted.view(-1)[0] = True

        def keep(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[wanted][None]
            return output

        # As the head finds it: wrappers may have replaced it since.
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
