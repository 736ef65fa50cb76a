"""The weights of a trained model in the form that policies load: whole tensors, by their names.

The names are transformers' names of the model's tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from retool_env.rollout.weights import Adapter

_CHANGED = re.compile(r"\.(base_layer|original_module)\.")
"""Matches the name of a tensor to which an adapter adds a change, or which it replaces."""


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether a process holds only parts of the parameters.

    This is so with FSDP, tensor parallelism and DeepSpeed's ZeRO-3.
    """
    return _is_sharded_otherwise(model) or any(isinstance(p, DTensor) for p in model.parameters())


def _is_sharded_otherwise(model: torch.nn.Module) -> bool:
    wrapped = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    return wrapped or any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@torch.no_grad()
def trained_weights(
    model: torch.nn.Module, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all weights: shards are gathered and LoRA deltas are added; the model stays unchanged.

    The sums are in float32, whatever the model's data type: in bfloat16, rounding would remove most
    of a small update.

    If the model is sharded, all processes must iterate together, to the end.

    Args:
        model: The model in training.
        dtype: The data type of the yielded floating-point tensors. Shards are cast before they are
            gathered, which halves the exchanged bytes for bfloat16. `None`: sums are in float32,
            other tensors keep their type.

    Yields:
        A tensor's name and the whole tensor.

    Raises:
        ValueError: If the model has an adapter other than plain LoRA, an adapter on only some of
            several tied layers, or shards of another kind than FSDP2's.
    """
    if _is_sharded_otherwise(model):
        raise ValueError(
            "weights that FSDP1 or DeepSpeed's ZeRO-3 has sharded can't be gathered: use FSDP2 "
            "(fsdp_version: 2)"
        )
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    adapted: dict[str, Any] = {
        _plain(name): m for name, m in base.named_modules() if isinstance(m, LoraLayer)
    }
    for name, layer in adapted.items():
        other = any(layer.lora_variant.values()) or any(layer.lora_bias.values())
        if other or isinstance(layer, ParamWrapper):
            raise ValueError(
                f"the adapter of {name} can't be merged: it is not plain LoRA. Use plain LoRA"
            )
    names: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(_plain(name))
    for several in names.values():
        if len(several) > 1 and any(_CHANGED.search(name) for name in several):
            raise ValueError(
                f"{' and '.join(several)} share one tensor, and an adapter changes only some of "
                "them: leave them out of target_modules and modules_to_save, or untie the model's "
                "embeddings"
            )
    active = getattr(model, "active_adapters", []) if isinstance(model, PeftModel) else []
    for full_name, tensor in base.state_dict().items():
        name = _plain(full_name)
        owner, part, rest = name.partition(".base_layer.")
        if part:
            if rest == "weight":
                layer = adapted[owner]
                for adapter in layer.active_adapters:
                    if adapter in layer.scaling:
                        tensor = tensor.float() + layer.get_delta_weight(adapter).float()
            yield f"{owner}.{rest}", whole(_cast(tensor, dtype))
            continue
        # Of a layer that is trained whole beside the adapters, the trained copy is sent.
        owner, part, rest = name.partition(".modules_to_save.")
        if part:
            adapter, _, rest = rest.partition(".")
            if adapter in active:
                yield f"{owner}.{rest}", whole(_cast(tensor, dtype))
        elif ".original_module." not in name and not any(
            name.startswith(f"{layer}.") for layer in adapted
        ):
            yield name, whole(_cast(tensor, dtype))


@torch.no_grad()
def trained_adapter(model: torch.nn.Module) -> Adapter:
    """The LoRA adapter of a model in training, in the form in which peft saves it.

    If the model is sharded, all processes must iterate over the tensors together, to the end.

    Args:
        model: The model with its adapter.

    Raises:
        ValueError: If the model has no adapter, several active adapters, an adapter other than
            plain LoRA on linear layers, or layers that are trained whole beside it.
    """
    names = model.active_adapters if isinstance(model, PeftModel) else []
    if len(names) != 1:
        raise ValueError(
            f"weights=adapter needs a model with one active LoRA adapter, and this model has "
            f"{len(names)}: train with LoRA, or set weights=files"
        )
    assert isinstance(model, PeftModel)
    [active] = names
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    odd = any(layer.lora_variant or any(layer.lora_bias.values()) for layer in layers)
    embeds = any(len(layer.lora_embedding_A) for layer in layers)
    state = {_plain(name): tensor for name, tensor in model.state_dict().items()}
    wrapped = any(isinstance(layer, ParamWrapper) for layer in layers)
    whole_layers = any(".modules_to_save." in name for name in state)
    others = [n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n]
    if odd or embeds or wrapped or whole_layers or others:
        raise ValueError(
            "weights=adapter takes plain LoRA on linear layers only: remove modules_to_save, "
            "trained tokens, embeddings and variants of LoRA, or set weights=files"
        )
    end = f".{active}.weight"
    tensors = (
        (f"{name.removesuffix(end)}.weight", whole(tensor))
        for name, tensor in state.items()
        if ".lora_" in name and name.endswith(end)
    )
    return Adapter(_jsonable(model.peft_config[active].to_dict()), tensors)


def _jsonable(value: Any) -> Any:
    """A value of peft's configuration as JSON holds it."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_jsonable, value))
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A floating-point tensor or shard in the data type; other tensors stay as they are."""
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def _plain(name: str) -> str:
    """A tensor's name, without the part that activation checkpointing inserts."""
    return name.replace("_checkpoint_wrapped_module.", "")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Gather the shards of a tensor. All processes must call it.

    Args:
        tensor: The tensor, sharded or not, of any shape.

    Returns:
        The whole tensor.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
