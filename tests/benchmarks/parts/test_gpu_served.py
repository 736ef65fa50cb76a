"""New weights on their way to vLLM's server, in the GPU suite."""

from __future__ import annotations

import importlib.util
import time

import pytest
from helpers.vllm_models import needs_vllm

from benchmarks.gpu_suite import table
from benchmarks.parts.gpu_served import served, served32b
from benchmarks.parts.gpu_task import Task


def test_without_vllm_the_part_says_so(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name)
    )
    for name, part in (("served", served), ("served32b", served32b)):
        figures = part(Task(True, tmp_path, time.monotonic() + 60))
        assert table({name: figures}) == f"{name}: skipped, vLLM is not installed"


def test_a_way_that_was_skipped_says_why():
    assert table({"served": {"nccl": {"skipped": "one GPU"}}}) == "served, nccl: skipped, one GPU"


@needs_vllm
@pytest.mark.slow
def test_each_way_of_new_weights_is_measured(tmp_path):
    figures = served(Task(True, tmp_path, time.monotonic() + 900))
    assert figures.keys() == {"files", "adapter", "gloo"}
    for way, row in figures.items():
        assert len(row["update_s"]) == 3 and max(row["first_token_s"]) > min(row["update_s"]) > 0
        assert (row["cut_turns"] > 0) == (way != "adapter")
    assert figures["adapter"]["bytes"] < figures["files"]["bytes"] / 5
    assert "served, gloo: " in table({"served": figures})


@needs_vllm
@pytest.mark.slow
def test_a_server_with_dummy_weights_takes_whole_weights_and_adapters(tmp_path):
    figures = served32b(Task(True, tmp_path, time.monotonic() + 900))
    assert figures.keys() == {"files", "adapter"}
    assert len(figures["files"]["update_s"]) == 1 and figures["files"]["cut_turns"] > 0
    assert figures["adapter"]["bytes"] < figures["files"]["bytes"]
    assert "served32b, files: " in table({"served32b": figures})
