"""Sharding: FSDP2, as `accelerate launch` starts it from a file in `launch/`, on GPUs and on the processes of a CPU.

Three things of accelerate 1.15 and TRL 1.16 are mended here, before the first accelerator is made:

- accelerate turns FSDP on only where processes have an accelerator each; on several processes of a CPU it leaves it off, and
  says nothing. PyTorch's `fully_shard` works there (with gloo), so that what trains on GPUs can be tried without any.
- accelerate's bfloat16 policy also casts what a model returns, log-probs among it, of which three digits remain, and adds up
  the processes' gradients in bfloat16. Here only the parameters of a layer at work are in it.
- TRL shards a reference model in one piece, which each process then gathers whole, and where the first process alone reads
  weights (`fsdp_cpu_ram_efficient_loading`) it leaves the others' parts of it at zero.
"""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import trl.trainer.grpo_trainer
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import str_to_bool
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.fsdp import MixedPrecisionPolicy

from agents.base.settings import SettingsError


def processes() -> PartialState:
    """This process among those of the run.

    Where there is no accelerator, accelerate sees several only if told to look.

    Raises:
        SettingsError: If FSDP is to be used in a way that is not supported.
    """
    prepare_sharding()
    cpu = not torch.accelerator.is_available()
    if cpu:
        # Otherwise the second's is "cpu:1", which no checkpoint of an optimizer can be loaded to.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    # A process may wait for the slowest one's rollouts; the default is minutes.
    wait = datetime.timedelta(hours=12)
    return PartialState(cpu=cpu, timeout=wait)


def prepare_sharding() -> None:
    """Mend what the module's text names. May be called again.

    Raises:
        SettingsError: If FSDP is to be used in its first version, of whose shards no weights can be had, or is to checkpoint
            activations.
    """
    if _set("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise SettingsError(
                "only FSDP2 is supported: set fsdp_version: 2 in accelerate's configuration, as the files in agents/launch/ do"
            )
        if _set("FSDP_ACTIVATION_CHECKPOINTING"):
            # It puts modules around the layers, under whose names peft 0.21 finds no adapters: it saves none, and says nothing.
            raise SettingsError(
                "with fsdp_activation_checkpointing no adapters are saved: leave it out of accelerate's configuration, and set "
                "gradient_checkpointing=true, which saves the same memory"
            )
    _mend()


@functools.cache
def _mend() -> None:
    made = AcceleratorState.__init__

    @functools.wraps(made)
    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is None:
            return
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
        if self.is_fsdp2 and self.mixed_precision == "bf16":
            self.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32
            )

    AcceleratorState.__init__ = init
    trl.trainer.grpo_trainer.prepare_fsdp = shard_frozen  # type: ignore[assignment]  # in its place


def shard_frozen(model: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """Shard a model that is not trained, layer by layer, as accelerate shards one that is."""
    return fsdp2_prepare_model(accelerator, model.requires_grad_(False))


def accelerator_config() -> dict[str, Any]:
    """TRL's setting of that name. With shards, gradients are exchanged after each pass.

    Kept until an optimizer step's last pass, as is the default, each process's would be those of the whole model.
    """
    sharded = _set("ACCELERATE_USE_FSDP")
    return {"gradient_accumulation_kwargs": {"sync_each_batch": True}} if sharded else {}


@contextmanager
def read_by_all() -> Iterator[None]:
    """Whatever `fsdp_cpu_ram_efficient_loading` says, each process reads the weights of models that are loaded meanwhile."""
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    before = os.environ.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before


@contextmanager
def sharded_apart(accelerator: Accelerator, layer: str) -> Iterator[None]:
    """Modules of this class, too, are sharded one by one in models that are prepared meanwhile.

    Of all models of a run, accelerate takes the classes that the first one names.
    """
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    before = getattr(plugin, "transformer_cls_names_to_wrap", None)
    if before is not None:
        plugin.transformer_cls_names_to_wrap = [*before, layer]
    try:
        yield
    finally:
        if before is not None:
            plugin.transformer_cls_names_to_wrap = before


def _set(name: str) -> bool:
    return bool(str_to_bool(os.environ.get(name, "false")))
