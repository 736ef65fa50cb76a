"""Simulates a rank of FSDP2 training with PyTorch's `FSDPMemTracker`, to check the memory plan.

No tensor has memory (fake tensors) and no rank has a partner (fake process group), so one thread of
a CPU simulates a rank of a large model in under a minute. The tracker counts the bytes of every
tensor that PyTorch makes, and which of them live at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker, _FSDPModMemStats
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, PretrainedConfig
from trl.trainer.utils import add_fused_lm_head


@contextmanager
def _ranks(number: int) -> Iterator[Any]:
    """A device mesh of ranks that do not exist; this process is the first of them."""
    dist.init_process_group("fake", rank=0, world_size=number, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (number,), mesh_dim_names=("dp",))
    finally:
        dist.destroy_process_group()


def track(config: PretrainedConfig, gpus: int, tokens: int) -> dict[str, int]:
    """The bytes of a rank, by kind, at the peak of a pass in the midst of an optimizer step.

    The pass is not the first of its step, so there are gradients, and there are Adam's moments. It
    has one row of tokens, the trainers' head and a loss of log-probs and entropy.

    Args:
        config: The model's configuration.
        gpus: The number of ranks.
        tokens: The tokens of the pass.

    Returns:
        Bytes by the tracker's names of their kinds, and their sum as `Total`.
    """
    with _ranks(gpus) as mesh, FakeTensorMode():
        with torch.device("cpu"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        add_fused_lm_head(model, 1.0, outputs=("log_probs", "entropy"))
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        model = sharded(model.train(), mesh)
        optimizer = torch.optim.AdamW(model.parameters())
        ids = torch.ones((1, tokens), dtype=torch.long)
        places = torch.arange(tokens)[None]
        # With a mask transformers does not look for one in the values of the positions.
        mask = torch.ones((1, 1, tokens, tokens), dtype=torch.bool)

        for parameter in model.parameters():  # as an earlier pass of the step leaves them
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes Adam's moments
        tracker = FSDPMemTracker(model, optimizer)
        # The trainers' head is a function of the weights, so that the module is never called.
        tracker.memory_tracking[model.get_output_embeddings()] = _FSDPModMemStats("lm_head")
        with tracker:
            with torch.autocast("cpu", torch.bfloat16):
                output = model(
                    input_ids=ids,
                    position_ids=places,
                    attention_mask=mask,
                    shift_labels=ids,
                    fused_lm_head=True,
                )
            (output.log_probs.mean() + output.entropy.mean()).backward()
        peak = tracker.get_tracker_snapshot("peak")
    return {str(getattr(k, "value", k)): size for k, size in peak[torch.device("cpu")].items()}


def sharded(model: Any, mesh: Any, device: str = "cpu", handed_over: bool = False) -> Any:
    """Shard a model by the function and the settings by which accelerate shards trained models.

    Args:
        model: The model.
        mesh: A device mesh of one dimension.
        device: The device of the shards.
        handed_over: Whether the weights go to the shards one after the other, as in a sharded run
            whose first process reads the model.
    """
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(model._no_split_modules),
        reshard_after_forward=True,
        cpu_ram_efficient_loading=handed_over,
    )
    plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    accelerator: Any = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh=mesh,
        parallelism_config=SimpleNamespace(fsdp_dim_names=("dp",)),
        mixed_precision="bf16",
        is_main_process=True,
        device=torch.device(device),
    )
    return fsdp2_prepare_model(accelerator, model)
