"""The GPU suite's comparison of attention kernels, on small models."""

from __future__ import annotations

import time

from benchmarks.gpu_suite import Task, table
from benchmarks.parts import gpu_attention
from benchmarks.parts.gpu_attention import attention


def test_kernels_that_are_not_installed_are_skipped_with_the_reason(tmp_path):
    found = attention(Task(True, tmp_path, time.monotonic() + 300))
    assert found["sdpa"]["same"] and found["sdpa"]["difference"]["max"] == 0
    text = table({"attention": found})
    for kernel in ("flash_attention_2", "flash_attention_3"):
        if "skipped" in found[kernel]:
            assert f"attention, {kernel}: skipped: " in text and found[kernel]["skipped"]
        else:
            assert found[kernel]["tokens_per_s"] > 0


def test_kernels_are_compared_on_the_same_episodes(tmp_path, monkeypatch):
    rows = []

    def load(folder, dtype, attn_implementation):
        rows.append(attn_implementation)
        return original(folder, dtype=dtype, attn_implementation="sdpa")

    original = gpu_attention.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(gpu_attention.AutoModelForCausalLM, "from_pretrained", load)
    found = attention(Task(True, tmp_path, time.monotonic() + 300))
    assert rows == list(found) == ["sdpa", "flash_attention_2", "flash_attention_3"]
    # One row of all episodes with a mask of blocks has the log-probs of several rows.
    assert all(figures["same"] for figures in found.values())
