"""Compares the kernels of attention on packed rows for the GPU suite: log-probs and speed."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from benchmarks.parts.gpu_task import CUDA, DEVICE, MEDIUM, Task, save_model
from retool_env.training.packing import Packed, pack, score


def attention(task: Task) -> dict[str, Any]:
    """Part `attention`: log-probs of packed rows and tokens/s, by the setting `attention`."""
    count, longest = (6, 48) if task.small else (16, 4096)
    folder = save_model(task.folder / "model", task.small, **MEDIUM)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(longest // 8, longest + 1, (count,), generator=generator)
    ids = torch.randint(3, 200, (count, longest), generator=generator).to(DEVICE)
    real = (torch.arange(longest) < lengths[:, None]).to(DEVICE)
    scored = real.clone()
    scored[:, : longest // 16] = False  # the prompts
    by_kernel: dict[str, Any] = {}
    base: torch.Tensor | None = None
    for kernel in ("sdpa", "flash_attention_2", "flash_attention_3"):
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.bfloat16, attn_implementation=kernel
            )
        except (ImportError, ValueError) as error:
            by_kernel[kernel] = {"skipped": str(error)}
            continue
        model = model.to(DEVICE)
        add_fused_lm_head(model, 1.0)
        batch = pack(ids, real, scored, one_row=kernel != "sdpa")
        seconds, logps = _timed_scores(model, batch)
        base = logps if base is None else base
        apart = (logps - base).abs()[scored[:, : base.shape[1]]]
        by_kernel[kernel] = {
            "tokens_per_s": round(int(lengths.sum()) / seconds, 1),
            "difference": {"mean": apart.mean().item(), "max": apart.max().item()},
            # Log-probs in bfloat16 have three digits; other episodes in a row change them by more.
            "same": apart.mean().item() < 0.05,
        }
    return by_kernel


def _timed_scores(model: Any, batch: Packed) -> tuple[float, torch.Tensor]:
    """The seconds of a forward and backward pass, and log-probs of shape `(B, L)`."""
    seconds = 0.0
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        logps = score(model, batch).log_probs
        logps.sum().backward()
        model.zero_grad()
        if CUDA:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    return seconds, batch.unpacked(logps.detach().float())


def attention_text(figures: dict[str, Any]) -> str:
    """The figures of one kernel as a line of text, or the reason why it was skipped."""
    if "skipped" in figures:
        return f"skipped: {figures['skipped']}"
    apart = figures["difference"]["mean"]
    return f"{figures['tokens_per_s']:,} tokens/s, log-probs differ by {apart:.1e} on average"
