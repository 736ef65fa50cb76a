"""Resuming: a stopped run's last checkpoint, and its records up to that checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from transformers import TrainerState

from agents.base.records import (
    SEAL,
    Line,
    check_kinds,
    check_seal,
    damaged,
    intact,
    is_cut,
    read_file,
    read_lines,
    read_metrics,
    read_object,
)
from agents.base.settings import SettingsError

_EPISODE_CURE = "delete that line: its episode is then lost"
"""The advice of an error about an episode's record that can't be restored."""

_STATE = {
    **get_type_hints(TrainerState),
    "log_history": list[dict] | None,
    "stateful_callbacks": dict | None,
}
"""The kind of each value in `trainer_state.json`."""


@dataclass(frozen=True)
class Point:
    """A checkpoint from which a run can be resumed."""

    step: int
    """The number of optimizer steps before the checkpoint."""
    folder: Path
    """The checkpoint's folder."""
    state: Mapping[str, Any]
    """The object in the checkpoint's `trainer_state.json`."""


def last_point(trainer: Path) -> Point | None:
    """The latest complete checkpoint of a run; `None` without one.

    A trainer's first process writes the seal last, and `trainer_state.json` just before it. If both
    are missing, a stop or a full disk left the checkpoint incomplete, and the previous one is used.

    Args:
        trainer: The folder of the run's checkpoints.

    Raises:
        SettingsError: If the checkpoint is damaged, or the folder holds another folder with a name
            like a checkpoint's.
    """
    checkpoints: dict[int, Path] = {}
    for path in trainer.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if not (number.isascii() and number.isdecimal() and path.is_dir()):
            raise SettingsError(
                f"{path}: it is not a checkpoint of the run, a folder checkpoint-<step>. Move it "
                f"out of {trainer}, where older checkpoints are deleted"
            )
        checkpoints[int(number)] = path
    for step in sorted(checkpoints, reverse=True):
        before = max((earlier for earlier in checkpoints if earlier < step), default=None)
        then = "begins anew" if before is None else f"goes on from step {before}"
        cure = f"delete {checkpoints[step]}: the run then {then}"
        if (state := read_state(checkpoints[step], step, cure)) is not None:
            return Point(step, checkpoints[step], state)
    return None


def oldest_step(trainer: Path) -> int:
    """The step of the oldest complete checkpoint of a run; 0 without one.

    Args:
        trainer: The folder of the run's checkpoints.
    """
    sealed = (path.parent.name for path in trainer.glob(f"checkpoint-*/{SEAL}"))
    return min((int(name.removeprefix("checkpoint-")) for name in sealed), default=0)


def read_state(folder: Path, step: int, cure: str) -> dict[str, Any] | None:
    """The object in a checkpoint's `trainer_state.json`; `None` if the checkpoint is incomplete.

    Args:
        folder: The checkpoint's folder.
        step: The number of the checkpoint's step.
        cure: The advice of the error, if the checkpoint can't be restored.

    Raises:
        SettingsError: If the checkpoint was complete, and is now damaged.
    """
    path = folder / "trainer_state.json"
    if os.path.lexists(folder / SEAL):
        check_seal(folder, cure)
    elif not os.path.lexists(path) or not (text := read_file(path)) or is_cut(text):
        return None
    state = read_object(path, cure)
    with intact(path, cure):
        check_kinds(state, _STATE, ["global_step"])
        if state["global_step"] != step:
            raise ValueError(f'"global_step" is {state["global_step"]}, not {step}')
    return state


def kept_records(path: Path, step: int) -> tuple[Path, Path] | None:
    """Copy a file of records up to a step. The kept lines stay byte for byte.

    Args:
        path: `metrics.jsonl`, or the transcripts of a process.
        step: The last step whose records are kept.

    Returns:
        The copy and the file; `None` if no record is left out.

    Raises:
        SettingsError: If a record is damaged.
    """
    if not os.path.lexists(path):
        return None
    if step and path.is_file() and not path.stat().st_size:
        cure = "delete it: its records are then lost"
        raise damaged(path, f"it is empty, but the run has reached step {step}", cure)
    lines: Iterable[Line]
    if path.name.startswith("transcripts"):
        lines = read_lines(path, _EPISODE_CURE, appended=True, what="transcript")
        number, last = _trained_version, step - 1
    else:
        lines, number, last = read_metrics(path), _step, step
    part = path.with_name(path.name + ".part")
    ended = True
    try:
        with open(part, "wb") as file:
            for line in lines:
                ended = line.text.endswith(b"\n")
                if number(line) <= last:
                    file.write(line.text if ended else line.text + b"\n")
    except BaseException:
        part.unlink()
        raise
    if ended and part.stat().st_size == path.stat().st_size:
        part.unlink()
        return None
    return part, path


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Turn every error of the block, which loads a checkpoint, into an error that names it.

    Args:
        folder: The checkpoint's folder.

    Raises:
        SettingsError: If the checkpoint can't be loaded.
    """
    try:
        yield
    except (SettingsError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the libraries that read a checkpoint raise many kinds
        raise damaged(
            folder,
            f"it can't be loaded ({type(error).__name__}: {error})",
            "delete it: the run then goes on from the previous checkpoint, or begins anew",
        ) from error


def _step(line: Line) -> int:
    return line.record["step"]


def _trained_version(line: Line) -> int:
    """The number of the step that trained on an episode; 0 if no step did."""
    with intact(line.location, _EPISODE_CURE, "not a transcript of a training run: "):
        check_kinds(line.record, {"trained_version": int | None}, ["trained_version"])
    return line.record["trained_version"] or 0
