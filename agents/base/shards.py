"""Shards: the first process of a sharded run reads a model, and each process receives its shards.

    first process                           every other process
    `read_by_first`: reads the file         builds the model without memory for its weights
    `hand_over`: sends each tensor's        receives its shard of each tensor
    shards, and frees the tensor

So a node holds one copy of a model while it loads, and this copy shrinks while the shards grow.
transformers 5.24 reads the file in every process, also if only the first process should read
(`fsdp_cpu_ram_efficient_loading`). accelerate sends each tensor whole to every process, and keeps
the whole model in the first process until the last tensor is sent.
"""

from __future__ import annotations

import copy
import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState, init_empty_weights
from accelerate.utils import broadcast
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from agents.base.settings import SettingsError
from retool_env.training.processes import everywhere

Description = dict[str, tuple[torch.Size, torch.dtype]]
"""The shape and the data type of each parameter and buffer of a model, by name."""


def read_by_first(
    name: str, dtype: torch.dtype, attn_implementation: str | None
) -> PreTrainedModel:
    """Read a model in the first process, and build the same model without weights in the others.

    All processes call this function together.

    Args:
        name: The folder's path or the Hub id.
        dtype: The data type of the weights.
        attn_implementation: The kernels of attention; `None`: transformers chooses.

    Returns:
        The model. In all processes but the first, the parameters are on the meta device: they have
        shapes but no memory. The buffers have values.

    Raises:
        OSError: In all processes but the first, if the first process could not read the model. The
            first process raises the error of transformers.
        SettingsError: If the model's configuration does not give the model that was read.
    """
    model: Any = None
    description: Description = {}
    fault: Exception | None = None
    if PartialState().is_main_process:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                name, dtype=dtype, attn_implementation=attn_implementation
            )
            description = _described(model)
        except Exception as error:
            fault = error
    # A large model is read for longer than a collective of the training may take.
    text, description = everywhere((fault and str(fault), description))[0]
    if fault is not None:
        raise fault
    if text is not None:
        raise OSError(text)
    if model is None:
        config = AutoConfig.from_pretrained(name)
        # Rotary frequencies and other buffers that are in no file are computed here.
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attn_implementation
            )
        model.tie_weights()  # the context manager has given each name a parameter of its own
        _agree(name, model, description)
    return model


def _described(model: torch.nn.Module) -> Description:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}


def _agree(name: str, model: torch.nn.Module, description: Description) -> None:
    """Check the shapes of a model without weights, and take over the data types."""
    shapes, wanted = (
        {key: shape for key, (shape, _) in each.items()}
        for each in (_described(model), description)
    )
    if shapes != wanted:
        differ = sorted(key for key in {**shapes, **wanted} if shapes.get(key) != wanted.get(key))
        raise SettingsError(
            f"model {name!r}: its configuration and its weights differ in {len(differ)} tensors "
            f"({', '.join(differ[:3])}): set fsdp_cpu_ram_efficient_loading: false in accelerate's "
            "configuration, so that each process reads the whole model"
        )
    for key, parameter in model.named_parameters():
        parameter.data = parameter.data.to(description[key][1])  # some stay in float32


def copied(model: torch.nn.Module) -> Any:
    """Copy a model whose parameters are not yet sharded; the copy shares their memory.

    Args:
        model: The model.
    """
    shared = {id(p): torch.nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, dict(shared))


def prepared[**P, R](prepare: Callable[P, R]) -> Callable[P, R]:
    """Let `Accelerator._prepare_fsdp2` also take models whose parameters have no memory.

    accelerate finds an optimizer's parameters again by their addresses, which are all 0 on the meta
    device. So each parameter answers a number of its own.

    Args:
        prepare: The method of accelerate.
    """

    @functools.wraps(prepare)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        modules = [value for value in args if isinstance(value, torch.nn.Module)]
        empty = [p for module in modules for p in module.parameters() if p.is_meta]
        for number, parameter in enumerate(empty):
            setattr(parameter, "data_ptr", functools.partial(int, -1 - number))  # noqa: B010
        return prepare(*args, **kwargs)

    return wrapped


def hand_over(
    accelerator: Any, model: Any, full_sd: dict[str, torch.Tensor], cpu_offload: bool = False
) -> Any:
    """Fill a sharded model without weights from the first process's tensors, one after the other.

    All processes call this. It takes the place of accelerate's `fsdp2_load_full_state_dict`, whose
    parameters it has.

    Args:
        accelerator: The run's accelerator.
        model: The model after `fully_shard`, with parameters on the meta device.
        full_sd: The tensors by name, of the shapes of the model's parameters and buffers. Only the
            first process has their values. Each is removed before it is sent, so that its memory is
            free afterwards.
        cpu_offload: Whether the shards stay in host memory.

    Returns:
        The model.
    """
    names = defaultdict(list)
    empties = model.state_dict(keep_vars=True)
    for name, tensor in empties.items():
        names[id(tensor)].append(name)  # tied weights have several names
    shards: dict[str, torch.Tensor] = {}
    for name, empty in empties.items():
        if name in shards:
            continue
        value, *_ = [full_sd.pop(other).detach() for other in names[id(empty)]]
        if isinstance(empty, DTensor):
            shard: torch.Tensor = _shard(value, empty)
            if cpu_offload:
                shard = shard.to("cpu")
        else:
            value = torch.empty_like(empty, device="cpu") if value.is_meta else value
            shard = broadcast(value.to(accelerator.device))
        del value
        shards |= dict.fromkeys(names[id(empty)], shard)
    model.load_state_dict(shards, assign=True)
    return model


def _shard(value: torch.Tensor, empty: DTensor) -> DTensor:
    """This process's shard of a tensor that the first process has."""
    mesh = empty.device_mesh
    if value.is_meta:
        # On a CPU, memory that nobody writes to takes no place.
        value = torch.empty(empty.shape, dtype=empty.dtype, device=mesh.device_type)
    value = value.to(empty.dtype).contiguous()
    return distribute_tensor(value, mesh, empty.placements)
