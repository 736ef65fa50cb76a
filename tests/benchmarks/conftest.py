"""Fixtures of the benchmarks of training."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM

from agents.models.tiny import make_checkpoint, make_tokenizer
from benchmarks.parts import batches
from benchmarks.parts.chains import Turn


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the tiny model."""
    return str(make_checkpoint(tmp_path_factory.mktemp("tiny"), seed=0))


@pytest.fixture(scope="module")
def batch(checkpoint: str) -> batches.Batch:
    """Eight episodes of different lengths, in two groups."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    special = make_tokenizer().all_special_ids
    chains = [(Turn(5 + i, 0.0), Turn(3 * i + 1, None)) for i in range(8)]
    return batches.make(chains, 10, 4, model, special, seed=0)
