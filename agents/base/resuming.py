"""Resuming: the checkpoint that a stopped run goes on from, and its records up to there."""

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
    is_cut,
    read_file,
    read_lines,
    read_metrics,
    read_object,
)
from agents.base.settings import SettingsError

_NO_EPISODE = "delete that line: its episode is then lost"
"""What to do about an episode's record that can't be restored."""

_STATE = {
    **get_type_hints(TrainerState),
    "log_history": list[dict] | None,
    "stateful_callbacks": dict | None,
}
"""The kinds of the values in `trainer_state.json`."""


@dataclass(frozen=True)
class Point:
    """A checkpoint that a run can go on from."""

    step: int
    folder: Path
    state: Mapping[str, Any]
    """Its `trainer_state.json`."""


def last_point(trainer: Path) -> Point | None:
    """The latest whole checkpoint of a run.

    A trainer's first process writes `trainer_state.json` last but for the seal: without both, a stop
    or a full disk cut the checkpoint short, and the one before it is taken.

    Args:
        trainer: The folder of its checkpoints.

    Raises:
        SettingsError: If it was whole once, and is no longer.
    """
    found: dict[int, Path] = {}
    for path in trainer.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if not (number.isascii() and number.isdecimal() and path.is_dir()):
            raise SettingsError(
                f"{path}: it is none of the run's checkpoints, which are folders "
                f"checkpoint-<step>. Move it out of {trainer}, whose older checkpoints are deleted"
            )
        found[int(number)] = path
    for step in sorted(found, reverse=True):
        before = max((each for each in found if each < step), default=None)
        then = "begins anew" if before is None else f"goes on from step {before}"
        cure = f"delete {found[step]}: the run then {then}"
        if (state := read_state(found[step], step, cure)) is not None:
            return Point(step, found[step], state)
    return None


def read_state(folder: Path, step: int, cure: str) -> dict[str, Any] | None:
    """A checkpoint's `trainer_state.json`; `None` where a stop cut the checkpoint short.

    Raises:
        SettingsError: If the checkpoint was whole once, and is no longer.
    """
    path = folder / "trainer_state.json"
    if os.path.lexists(folder / SEAL):
        check_seal(folder, cure)
    elif not os.path.lexists(path) or not (text := read_file(path)) or is_cut(text):
        return None
    state = read_object(path, cure)
    try:
        check_kinds(state, _STATE, ["global_step"])
        if state["global_step"] != step:
            raise ValueError(f'"global_step" is {state["global_step"]}, not {step}')
    except ValueError as error:
        raise damaged(path, str(error), cure) from None
    return state


def kept_records(path: Path, step: int) -> tuple[Path, Path] | None:
    """A copy of a file of records without those after a step.

    What is kept stays as it was written.

    Args:
        path: `metrics.jsonl`, or the transcripts of a process.
        step: The last step that is kept.

    Returns:
        The copy and the file; `None` where nothing is left out.

    Raises:
        SettingsError: If a record is damaged.
    """
    if not os.path.lexists(path):
        return None
    if step and path.is_file() and not path.stat().st_size:
        cure = "delete it: what it held is then lost"
        raise damaged(path, f"it is empty, and the run has come to {step}", cure)
    lines: Iterable[Line]
    if path.name.startswith("transcripts"):
        lines = read_lines(path, _NO_EPISODE, appended=True, what="transcript")
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
    """Reads a checkpoint: whatever is wrong with it is an error that names it.

    Raises:
        SettingsError: If it can't be read.
    """
    try:
        yield
    except (SettingsError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each of the libraries that read one has its own
        raise damaged(
            folder,
            f"it can't be loaded ({type(error).__name__}: {error})",
            "delete it: the run then goes on from the checkpoint before it, or begins anew",
        ) from error


def _step(line: Line) -> int:
    return line.record["step"]


def _trained_version(line: Line) -> int:
    """The number of the step that trained on an episode; 0 if none did."""
    try:
        check_kinds(line.record, {"trained_version": int | None}, ["trained_version"])
    except ValueError as error:
        raise damaged(line.place, f"not a transcript of a training: {error}", _NO_EPISODE) from None
    return line.record["trained_version"] or 0
