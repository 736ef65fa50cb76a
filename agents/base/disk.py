"""Disk: the room that a run's checkpoints and models need, computed before the run starts."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from agents.base.settings import SettingsError
from agents.base.sharding import launched

GIB = 2**30

SHUTDOWN_TIME = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""The variable with the seconds between a signal and the launcher's SIGKILL; by default 30."""

BYTES_PER_SECOND = GIB
"""A speed of disks, to tell whether a checkpoint is written in time."""


@dataclass(frozen=True)
class DiskNeed:
    """The bytes that a run writes besides its records."""

    checkpoint: int
    """Bytes of a checkpoint for resuming: weights, and the two moments of Adam."""
    checkpoints: int
    """The largest number of checkpoints at a time. The last complete one stays until the next one
    is complete."""
    model: int
    """Bytes of a saved model."""
    models: int
    """The number of saved models: the last one, and one for each `export_steps`."""

    @property
    def least(self) -> int:
        """The bytes without which the run can't end.

        The last model and two checkpoints need room, because a checkpoint stays until the next is
        complete. A run that saves once has one checkpoint.
        """
        return self.checkpoint * min(self.checkpoints, 2) + self.model

    @property
    def total(self) -> int:
        """All bytes."""
        return self.checkpoint * self.checkpoints + self.model * self.models

    def __str__(self) -> str:
        return (
            f"{_gib(self.total)} on the disk: {_count(self.checkpoints, 'checkpoint')} of "
            f"{_gib(self.checkpoint)}, {_count(self.models, 'model')} of {_gib(self.model)}"
        )


def disk_need(settings: Any, model: torch.nn.Module) -> DiskNeed:
    """The room that a run needs, from its settings and its model's shapes.

    Args:
        settings: The run's settings, with the fields of `TuningSettings`.
        model: The model that is trained, without adapters.
    """
    parameters = list(model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    count = sum(p.numel() for p in parameters)
    critic = hasattr(settings, "critic_learning_rate")
    if settings.lora_rank:
        adapters = 4 * settings.lora_rank * _edges(model)
        # PPO's checkpoints hold the frozen weights, TRL's only the adapters.
        checkpoint = 3 * adapters + (weights if critic else 0)
        merged = 4 * count
    else:
        adapters, checkpoint, merged = 0, 3 * weights, weights
    saved = 2 * count if settings.export_dtype == "bfloat16" else merged
    steps, every = getattr(settings, "steps", 0), getattr(settings, "export_steps", 0)
    keep = getattr(settings, "trl", {}).get("save_total_limit", 1)
    saves = math.ceil(steps / settings.save_steps) if steps else math.inf
    checkpoints = int(min(keep + 1 if keep else saves, saves))
    return DiskNeed(
        checkpoint * (2 if critic else 1),
        checkpoints,
        saved + adapters,
        1 + (steps // every if every else 0),
    )


def check_disk(need: DiskNeed, folder: Path, show: bool = False) -> None:
    """Compare a run's need with the free room, and say it if it is large.

    Args:
        need: The need of the whole run.
        folder: The run's folder. The files that a resumed run replaces count as free.
        show: Whether a small need is also said.

    Raises:
        SettingsError: If the checkpoints that are there at a time and the last model do not fit.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    ours = [folder / name for name in ("trainer", "checkpoint", "checkpoints")]
    files = (path for part in ours for path in part.rglob("*") if path.is_file())
    free = shutil.disk_usage(existing).free + sum(path.stat().st_size for path in files)
    room = f"{_gib(free)} are free in {existing}"
    if need.least > free:
        least = "two checkpoints" if need.checkpoints > 1 else "one checkpoint"
        raise SettingsError(
            f"the run needs {need}, and {room}: {least} and the last model do not fit. Free some "
            "room, or choose another folder with --runs"
        )
    if need.total > free:
        print(
            f"warning: the run needs {need}, and {room}: free some room, or take a larger "
            "export_steps",
            file=sys.stderr,
        )
    elif show or need.total >= GIB:
        print(f"the run needs {need}; {room}", file=sys.stderr)


def check_time(need: DiskNeed) -> None:
    """Warn if a launcher may kill the run after a signal, before a large checkpoint is written.

    Args:
        need: The need of the whole run.
    """
    seconds = int(os.environ.get(SHUTDOWN_TIME, "30"))
    if launched() and need.checkpoint > seconds * BYTES_PER_SECOND:
        print(
            f"warning: the launcher kills the run {seconds} s after a signal, and a checkpoint has "
            f"{_gib(need.checkpoint)}: start it with a longer time, {SHUTDOWN_TIME}=600",
            file=sys.stderr,
        )


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a path in the errors of the block, which writes it: most of them name no file.

    Args:
        path: The file or folder.

    Raises:
        OSError: If it can't be written, for example because the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    except RuntimeError as error:
        if "inline_container" not in str(error):  # torch's writer of files
            raise
        raise OSError(f"{path}: {str(error).splitlines()[0]}") from error


def _edges(model: torch.nn.Module) -> int:
    """The inputs and outputs of all linear layers but the head: adapters of rank 1."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return sum(
        layer.in_features + layer.out_features
        for layer in model.modules()
        if isinstance(layer, torch.nn.Linear) and layer is not head
    )


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f} GiB" if size < 100 * GIB else f"{size / GIB:,.0f} GiB"
