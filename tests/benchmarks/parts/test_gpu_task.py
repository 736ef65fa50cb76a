"""The task of a part of the GPU suite, and its helpers."""

from __future__ import annotations

import time

import pytest
from transformers import AutoConfig

from benchmarks.parts import gpu_task


def test_a_task_has_at_least_a_second_left(tmp_path) -> None:
    assert gpu_task.Task(True, tmp_path, time.monotonic() - 5).left == 1
    assert gpu_task.Task(True, tmp_path, time.monotonic() + 60).left == pytest.approx(60, abs=10)


def test_utilisation_is_the_mean_of_its_samples(monkeypatch) -> None:
    samples = iter([10, 30])
    monkeypatch.setattr(gpu_task.torch.cuda, "utilization", lambda: next(samples))
    with gpu_task.busy() as utilisation:
        time.sleep(0.7)
    assert utilisation["mean"] == 20  # the third look failed, and ended the measurement


def test_utilisation_that_can_not_be_read_is_unknown(monkeypatch) -> None:
    def fails() -> int:
        raise RuntimeError("no library")

    monkeypatch.setattr(gpu_task.torch.cuda, "utilization", fails)
    with gpu_task.busy() as utilisation:
        time.sleep(0.3)
    assert utilisation == {"mean": None}


def test_small_models_ignore_the_sizes(tmp_path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = gpu_task.save_model(tmp_path / "whole", False, num_key_value_heads=2, **sizes)
    small = gpu_task.save_model(tmp_path / "small", True, num_key_value_heads=2, **sizes)
    assert AutoConfig.from_pretrained(whole).hidden_size == 32
    assert AutoConfig.from_pretrained(small).hidden_size != 32
