"""The simulated rank: the kinds of memory it finds, and the plan beside it."""

from __future__ import annotations

import torch

from benchmarks import memory
from benchmarks.parts.tracked_memory import track


def test_a_simulated_rank_has_shards_gradients_and_moments_of_the_plan():
    config = memory.read_config("qwen2.5-7b")
    config.num_hidden_layers, config.vocab_size = 2, 8_000
    config.layer_types = config.layer_types[:2]
    found, rows = track(config, 4, 1024), memory.plan(config, memory.Setup("grpo", 4, 1024))
    assert found["Sharded Param"] == found["Sharded Grad"] == rows["actor: weights"]
    # Adam also counts its steps.
    assert 0 <= found["OptState"] - rows["actor: Adam's moments"] < 1000
    assert found["Total"] == sum(size for kind, size in found.items() if kind != "Total")
    assert abs(sum(rows.values()) / found["Total"] - 1) < memory.TOLERANCE
    assert not torch.distributed.is_initialized()
