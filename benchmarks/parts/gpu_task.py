"""Defines the task of a part of the GPU suite, and its helpers: a model, the GPU's utilisation."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents.models.tiny import make_model
from benchmarks.memory import read_config

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
MEDIUM = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4_864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "initializer_range": 0.02,
}
"""The size of Qwen2.5-0.5B (arXiv 2412.15115, table 1).

`benchmarks.train_step` holds four such models with their optimizers at once.
"""


@dataclass(frozen=True)
class Task:
    """The task of one part."""

    small: bool
    """Whether to use models that are small enough for any machine."""
    folder: Path
    """The folder for files of the part."""
    deadline: float
    """The end of the part's time, in seconds of the monotonic clock."""
    sandbox: str = "nsjail"
    """The setting `sandbox` of training runs."""

    @property
    def left(self) -> float:
        """The seconds until the deadline, at least 1."""
        return max(1.0, self.deadline - time.monotonic())


@contextmanager
def busy() -> Iterator[dict[str, float | None]]:
    """Measure the GPU's utilisation during a block, five times a second.

    Yields:
        A mapping with the key `mean`: the mean in percent after the block; `None` if it can't be
        read.
    """
    samples: list[float] = []
    utilisation: dict[str, float | None] = {"mean": None}
    over = threading.Event()

    def sample() -> None:
        with suppress(Exception):  # without a GPU, or without NVIDIA's library
            while not over.wait(0.2):
                samples.append(torch.cuda.utilization())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield utilisation
    finally:
        over.set()
        thread.join()
        if samples:
            utilisation["mean"] = round(sum(samples) / len(samples), 1)


def save_model(folder: Path, small: bool, **config: Any) -> str:
    """Save a model with random weights and its tokenizer, and return the folder's name.

    Args:
        folder: The folder of the model.
        small: Whether to ignore `config` and use the sizes of the tiny model.
        **config: Sizes of the model, as in `agents.models.tiny.make_model`.
    """
    model, tokenizer = make_model(0, **({} if small else config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def config_32b(small: bool) -> Any:
    """The configuration of Qwen2.5-32B.

    Args:
        small: Whether to shrink all sizes, for any machine.
    """
    config: Any = read_config("qwen2.5-32b")
    if small:
        for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
            setattr(config, name, 2)
        config.hidden_size, config.intermediate_size, config.vocab_size = 64, 128, 512
        config.layer_types = config.layer_types[:2]
    return config
