"""Measures a sharded model on a GPU for the GPU suite: its loading, and its memory in a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from agents.base.sharding import prepare_sharding
from agents.models.tiny import make_model
from benchmarks.memory import Setup, plan
from benchmarks.parts.gpu_task import CUDA, DEVICE, MEDIUM, Task, save_model
from benchmarks.parts.machine import growth
from benchmarks.parts.tracked_memory import sharded
from retool_env.training.packing import pack, score
from retool_env.training.trained_weights import whole


@contextmanager
def one_rank(task: Task) -> Iterator[Any]:
    """A device mesh of this process alone.

    Args:
        task: The task of the part.
    """
    prepare_sharding()
    torch.distributed.init_process_group(
        "nccl" if CUDA else "gloo",
        init_method=f"file://{task.folder / 'store'}",
        rank=0,
        world_size=1,
    )
    try:
        yield init_device_mesh(DEVICE, (1,), mesh_dim_names=("dp",))
    finally:
        torch.distributed.destroy_process_group()


def loading(task: Task) -> dict[str, Any]:
    """Part `loading`: memory and time while the weights of a file go to the shards of one GPU."""
    folder = save_model(task.folder / "model", task.small, **MEDIUM)
    with one_rank(task) as mesh:
        began = time.perf_counter()
        with growth() as host:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            model = sharded(model, mesh, DEVICE, handed_over=True)
        seconds = time.perf_counter() - began
        peak = torch.cuda.max_memory_allocated() if CUDA else None
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        held = {name: whole(tensor).cpu() for name, tensor in model.state_dict().items()}
        held |= {name: buffer.cpu() for name, buffer in model.named_buffers()}
        wanted = {**expected.state_dict(), **dict(expected.named_buffers())}
    return {
        "same": held.keys() == wanted.keys()
        and all(torch.equal(held[name], tensor) for name, tensor in wanted.items()),
        "model_bytes": 4 * expected.num_parameters(),
        "host_growth_bytes": host["most"],
        "peak_bytes": peak,
        "seconds": round(seconds, 2),
    }


def memory_plan(task: Task) -> dict[str, Any]:
    """Part `plan`: the peak of the second pass of an optimizer step, against the plan."""
    tokens = 96 if task.small else 18_432
    model: Any = make_model(0, **({} if task.small else MEDIUM))[0]
    config = model.config
    rows = plan(config, Setup("grpo", 1, tokens))
    with one_rank(task) as mesh:
        add_fused_lm_head(model, 1.0, outputs=("log_probs", "entropy"))
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model = sharded(model.train(), mesh, DEVICE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
        ids = torch.randint(config.vocab_size, (1, tokens)).to(DEVICE)
        batch = pack(ids, torch.ones_like(ids), torch.ones_like(ids))

        def one_pass() -> None:
            with torch.autocast(DEVICE, torch.bfloat16):
                output = score(model, batch)
            (output.log_probs.mean() + output.entropy.mean()).backward()

        one_pass()
        optimizer.step()
        optimizer.zero_grad()
        one_pass()
        if CUDA:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        one_pass()
        peak = torch.cuda.max_memory_allocated() if CUDA else None
    together = sum(rows.values())
    return {
        "tokens": tokens,
        "planned_bytes": rows,
        "planned_bytes_together": together,
        "peak_bytes": peak,
        "ratio": peak and round(together / peak, 3),
    }
