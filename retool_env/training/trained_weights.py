"""The weights of a model that is being trained, as a policy takes them: whole tensors by transformers' names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

_CHANGED = re.compile(r"\.(base_layer|original_module)\.")
"""In the name of a tensor that a policy sees changed, or replaced."""


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether a process holds only parts of the parameters (FSDP, tensor parallelism, DeepSpeed's ZeRO-3)."""
    return _is_sharded_otherwise(model) or any(isinstance(p, DTensor) for p in model.parameters())


def _is_sharded_otherwise(model: torch.nn.Module) -> bool:
    wrapped = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    return wrapped or any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@torch.no_grad()
def trained_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights, one by one: shards gathered, LoRA added to what it adapts, neither changed in the model.

    The sums are in float32, whatever the model is in: added in bfloat16, most of a small update would be rounded away.

    Where the model is sharded, all processes must iterate together, to the end.

    Raises:
        ValueError: If the model has adapters other than plain LoRA, or on one of several tied layers, or shards of another
            kind than FSDP2's.
    """
    if _is_sharded_otherwise(model):
        raise ValueError(
            "the weights of a model under FSDP1 or DeepSpeed's ZeRO-3 can't be had: use FSDP2 (fsdp_version: 2)"
        )
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    adapted: dict[str, Any] = {
        _plain(name): m for name, m in base.named_modules() if isinstance(m, LoraLayer)
    }
    for name, layer in adapted.items():
        other = any(layer.lora_variant.values()) or any(layer.lora_bias.values())
        if other or isinstance(layer, ParamWrapper):
            raise ValueError(f"{name} has an adapter that is no plain LoRA, and can't be merged")
    names: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(_plain(name))
    for several in names.values():
        if len(several) > 1 and any(_CHANGED.search(name) for name in several):
            raise ValueError(
                f"one tensor is both {' and '.join(several)}, and of these an adapter changes some alone: leave them out of "
                "target_modules and modules_to_save, or untie the model's embeddings"
            )
    active = getattr(model, "active_adapters", []) if isinstance(model, PeftModel) else []
    for full_name, tensor in base.state_dict().items():
        name = _plain(full_name)
        owner, part, rest = name.partition(".base_layer.")
        if part:
            weight = whole(tensor)
            if rest == "weight":
                layer = adapted[owner]
                added = [name for name in layer.active_adapters if name in layer.scaling]
                for adapter in added:
                    weight = weight.float() + whole(layer.get_delta_weight(adapter)).float()
            yield f"{owner}.{rest}", weight
            continue
        # A layer that is trained whole beside the adapters: its copy, not the original.
        owner, part, rest = name.partition(".modules_to_save.")
        if part:
            adapter, _, rest = rest.partition(".")
            if adapter in active:
                yield f"{owner}.{rest}", whole(tensor)
        elif ".original_module." not in name and not any(
            name.startswith(f"{each}.") for each in adapted
        ):
            yield name, whole(tensor)


def _plain(name: str) -> str:
    """A name without what activation checkpointing puts into it."""
    return name.replace("_checkpoint_wrapped_module.", "")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, its shards gathered: all processes call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
