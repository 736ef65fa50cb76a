"""Sharding: FSDP2 on GPUs and on CPU processes, as `accelerate launch` starts it.

The configuration files of `accelerate launch` are in `agents/launch/`. Before the first accelerator
is made, this module works around these behaviours of accelerate 1.15 and TRL 1.16:

- accelerate enables FSDP only if each process has an accelerator. On several CPU processes it
  leaves FSDP off without a message. PyTorch's `fully_shard` works there with gloo, so sharded
  training can be tested without GPUs.
- accelerate's bfloat16 policy also casts the outputs of a model, such as log-probs, which then have
  three digits, and it sums the gradients of the processes in bfloat16. With the policy set here
  only the parameters of the layer being computed are in bfloat16.
- TRL shards a reference model as one unit, so that each process gathers the whole model. It reads
  the model's file again in every process.
- Only the first process of all should read a model (`fsdp_cpu_ram_efficient_loading`); see
  `agents/base/shards.py`.
"""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import accelerate.utils.fsdp_utils
import torch
import trl.trainer.grpo_trainer
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import str_to_bool
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.fsdp import MixedPrecisionPolicy

from agents.base.settings import SettingsError
from agents.base.shards import copied, hand_over, prepared

TIME_LIMIT = datetime.timedelta(minutes=10)
"""The longest time that a process waits for the others in a collective of the training.

The processes wait longer for rollouts and files; see `retool_env.training.processes`."""


def processes() -> PartialState:
    """The state of this process: its rank and device, and the number of the run's processes.

    Raises:
        SettingsError: If accelerate's configuration asks for an unsupported form of FSDP.
    """
    prepare_sharding()
    cpu = not torch.accelerator.is_available()
    if cpu:
        # The device of the second process would be "cpu:1", to which an optimizer's checkpoint
        # can't be loaded.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    # Without an accelerator, accelerate only sees several processes if `cpu` is set.
    return PartialState(cpu=cpu, timeout=TIME_LIMIT)


def sharded() -> bool:
    """Whether the launcher asks for FSDP. accelerate ignores that without a process group."""
    state = processes()
    return _set("ACCELERATE_USE_FSDP") and state.distributed_type != DistributedType.NO


def launched() -> bool:
    """Whether `torchrun` or `accelerate launch` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def leave_process_group() -> None:
    """Leave the process group of the run, if there is one.

    gloo's threads can abort a process that exits with an open group while another process of the
    group still runs. A run that has finished would then count as failed.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def prepare_sharding() -> None:
    """Apply the workarounds that the module's docstring lists. Further calls change nothing.

    Raises:
        SettingsError: If accelerate's configuration asks for FSDP1, whose shards do not give whole
            weights, or for FSDP's activation checkpointing.
    """
    if _set("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise SettingsError(
                "only FSDP2 is supported: set fsdp_version: 2 in accelerate's configuration, as in "
                "the files in agents/launch/"
            )
        if _set("FSDP_ACTIVATION_CHECKPOINTING"):
            # The option wraps the layers in modules. Under the new names peft 0.21 does not find
            # the adapters, and saves nothing without a message.
            raise SettingsError(
                "fsdp_activation_checkpointing prevents the saving of adapters: remove it from "
                "accelerate's configuration, and set gradient_checkpointing=true, which saves the "
                "same memory"
            )
    _patch()


@functools.cache
def _patch() -> None:
    original = AcceleratorState.__init__

    @functools.wraps(original)
    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
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
    trl.trainer.grpo_trainer.prepare_fsdp = shard_frozen  # type: ignore[assignment]  # replaced
    Accelerator._prepare_fsdp2 = prepared(Accelerator._prepare_fsdp2)
    accelerate.utils.fsdp_utils.fsdp2_load_full_state_dict = hand_over


def shard_frozen(model: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """Shard a frozen model layer by layer, as accelerate shards a trained model.

    Args:
        model: The model. Its parameters no longer require gradients.
        accelerator: The accelerator with FSDP2.
    """
    return fsdp2_prepare_model(accelerator, model.requires_grad_(False))


def accelerator_config() -> dict[str, Any]:
    """The value of TRL's field `accelerator_config`.

    With shards, the processes exchange gradients after each backward pass. By default they exchange
    them after the last pass of an optimizer step. Until then each process would hold the gradients
    of the whole model.
    """
    sharded = _set("ACCELERATE_USE_FSDP")
    return {"gradient_accumulation_kwargs": {"sync_each_batch": True}} if sharded else {}


def first_reads() -> bool:
    """Whether only the first of several processes reads a model that will be sharded."""
    options = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")
    return all(map(_set, options)) and processes().num_processes > 1


@contextmanager
def reference_of(model: torch.nn.Module) -> Iterator[None]:
    """While this block runs, TRL copies its reference model from a model that is not yet sharded.

    Unless `first_reads`, TRL reads the model's file again.

    Args:
        model: The trained model. Its copy shares the memory of the weights.
    """
    module = trl.trainer.grpo_trainer
    before = module.create_model_from_path
    if first_reads():
        module.create_model_from_path = lambda *_, **__: copied(model)
    try:
        yield
    finally:
        module.create_model_from_path = before


@contextmanager
def read_by_all() -> Iterator[None]:
    """While this block runs, each process reads the weights of the models that it loads.

    The option `fsdp_cpu_ram_efficient_loading`, by which only the first process reads them, is off.
    """
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    before = os.environ.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before


@contextmanager
def sharded_apart(accelerator: Accelerator, layer: str) -> Iterator[None]:
    """While this block runs, a prepared model also shards each module of a class as its own unit.

    Without it accelerate uses the classes that the run's first model names, for all models.

    Args:
        accelerator: The accelerator that prepares the model.
        layer: The name of the class.
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
