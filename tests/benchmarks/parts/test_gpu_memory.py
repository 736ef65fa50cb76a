"""The GPU suite's parts about memory, on small models."""

from __future__ import annotations

import time

from agents.models.tiny import make_model
from benchmarks.gpu_suite import Task, table
from benchmarks.parts.gpu_memory import loading, memory_plan
from benchmarks.parts.gpu_task import CUDA


def test_weights_reach_the_shards_of_one_device(tmp_path):
    found = loading(Task(True, tmp_path, time.monotonic() + 300))
    assert found["same"] and found["model_bytes"] > 1e6
    assert "equal weights" in table({"loading": found})


def test_the_plan_is_that_of_a_sharded_step(tmp_path):
    found = memory_plan(Task(True, tmp_path, time.monotonic() + 300))
    # Weights, gradients and Adam's two moments of float32.
    assert found["planned_bytes_together"] > 16 * make_model(0)[0].num_parameters()
    assert (found["peak_bytes"] is None) is not CUDA
