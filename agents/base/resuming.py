"""Resuming: a stopped run's last checkpoint, and its records up to that checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch.distributed.checkpoint.api import CheckpointException
from transformers import TrainerState

from agents.base.records import (
    INCOMPLETE,
    SEAL,
    Line,
    check_kinds,
    check_seal,
    damaged,
    intact,
    is_cut,
    read_file,
    read_metrics,
    read_object,
    read_part,
)
from agents.base.settings import SettingsError
from retool_env.files import MOST_LINE
from retool_env.rotation import PART_BYTES, Stream, close_part, closed_parts, delete, reopen

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

    A checkpoint with the mark `INCOMPLETE`, or without seal and `trainer_state.json`, was left by a
    stop or a full disk, and the previous one is used.

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


def check_form(trainer: Path, sharded: bool) -> None:
    """Check that the last checkpoint has the form which this start can load.

    Args:
        trainer: The folder of the run's checkpoints.
        sharded: Whether this start shards the model.

    Raises:
        SettingsError: If the checkpoint has the other form, or is damaged.
    """
    point = last_point(trainer)
    if point is None or any(point.folder.glob("pytorch_model_fsdp*")) == sharded:
        return
    if sharded:
        raise SettingsError(
            f"{point.folder} was saved without shards, and this start has shards (FSDP2): resume "
            "the run without FSDP, with one process or with torchrun"
        )
    raise SettingsError(
        f"{point.folder} was saved in shards (FSDP2), and this start has none: resume the run with "
        "`accelerate launch` and a configuration of FSDP2, on any number of processes above 1"
    )


def needed_step(trainer: Path) -> int:
    """The step of the oldest checkpoint whose later batches are kept; 0 without a checkpoint.

    This is the last complete checkpoint but one, from which a run goes on if the last one is
    damaged; of a single one, its step. A run may keep all its checkpoints, but not all its batches.

    Args:
        trainer: The folder of the run's checkpoints.
    """
    sealed = (path.parent.name for path in trainer.glob(f"checkpoint-*/{SEAL}"))
    steps = sorted(int(name.removeprefix("checkpoint-")) for name in sealed)
    return steps[-2:][0] if steps else 0


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
    if os.path.lexists(folder / INCOMPLETE):
        return None
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


@dataclass(frozen=True)
class Cut:
    """The change of a file of records that drops the records after a checkpoint."""

    path: Path
    """The file."""
    part: Path | None
    """A copy of its kept records, which replaces it; `None`: it stays as it is."""
    dropped: tuple[Path, ...] = ()
    """Closed parts of transcripts that are deleted, the last first."""
    reopened: Path | None = None
    """The closed part of which `part` is a copy, and which becomes the open file; `None`: none."""

    def apply(self) -> None:
        """Change the file. After a stop in the middle the kept records are there once each.

        The change can then be made again.
        """
        if self.reopened is not None:
            self.path.unlink(missing_ok=True)
        elif self.part is not None and self.part.stat().st_size:
            self.part.replace(self.path)
        elif self.part is not None:
            self.part.unlink()
            self.path.unlink(missing_ok=True)
        for closed in self.dropped:
            delete(closed)
        if self.reopened is not None and self.part is not None:
            reopen(self.path, self.reopened, self.part)


def cut_metrics(path: Path, step: int) -> Cut:
    """Find the records of `metrics.jsonl` up to a step. The kept lines stay byte for byte.

    Args:
        path: The file.
        step: The last step whose records are kept.

    Raises:
        SettingsError: If a record is damaged.
    """
    if not os.path.lexists(path):
        return Cut(path, None)
    _check_not_empty(path, step)
    return Cut(path, _copy(path, read_metrics(path), lambda line: line.record["step"] <= step))


def cut_transcripts(path: Path, step: int, begun: Iterable[int] = ()) -> Cut:
    """Find the transcripts of a process up to a step. The kept lines stay byte for byte.

    Closed parts are not read, except for a part in which the step lies.

    Args:
        path: The open file of transcripts.
        step: The number of optimizer steps after which the run goes on.
        begun: The steps that sampled a batch which the run has begun to train on, and goes on with.
            It writes their transcripts anew.

    Raises:
        SettingsError: If a record is damaged.
    """
    last = min([step, *begun]) - 1  # the number of the last step whose transcripts are kept
    closed = closed_parts(path)
    later = [part for part in closed if part.last > last]
    source, reopened = path, None
    if later and later[0].first <= last:  # the step lies in this part
        source = reopened = later.pop(0).path
    elif later:
        empty = path.with_name(path.name + ".part")
        empty.write_bytes(b"")  # a resumption that was killed may have left another copy
        return Cut(path, empty, tuple(part.path for part in reversed(later)))
    elif not os.path.lexists(path):
        return Cut(path, None)
    elif not closed:
        _check_not_empty(path, step if last >= 0 else 0)
    lines = read_part(source, _EPISODE_CURE, appended=True, what="transcript")
    copied = _copy(path, lines, lambda line: _trained_version(line) <= last, whole=source != path)
    return Cut(path, copied, tuple(part.path for part in reversed(later)), reopened)


def last_version(path: Path) -> int | None:
    """The step that sampled the last episode of a process's transcripts; `None` without one.

    Args:
        path: The open file of transcripts.
    """
    with Stream(path) as stream:
        end = stream.size
        for width in (1 << 20, MOST_LINE + 1):
            found = stream.read(max(end - width, 0), width)
            lines = found[: found.rfind(b"\n") + 1].splitlines()
            if len(lines) > 1 or width >= end:
                break
    return json.loads(lines[-1])["trained_version"] if lines else None


def close_large(path: Path) -> None:
    """Close an open file of transcripts that has `PART_BYTES` or more; see `rotation`.

    Args:
        path: The open file, which may be missing.
    """
    if not path.is_file() or path.stat().st_size < PART_BYTES:
        return
    with open(path, "rb") as file:
        first = json.loads(file.readline(MOST_LINE))["trained_version"]
    # The names of parts are their steps, so a file of other episodes stays open.
    if first is not None and all(part.last < first for part in closed_parts(path)):
        close_part(path, first, last_version(path) or first)


def _check_not_empty(path: Path, step: int) -> None:
    if step and path.is_file() and not path.stat().st_size:
        cure = "delete it: its records are then lost"
        raise damaged(path, f"it is empty, but the run has reached step {step}", cure)


def _copy(
    path: Path, lines: Iterable[Line], keeps: Callable[[Line], bool], whole: bool = False
) -> Path | None:
    """Copy the kept lines to a file beside `path`; `None` if all are kept, unless `whole` is set.

    Args:
        path: The file that the copy replaces.
        lines: The lines.
        keeps: Whether a line is kept.
        whole: Whether the copy is made in any case.
    """
    part = path.with_name(path.name + ".part")
    ended = True
    try:
        with open(part, "wb") as file:
            for line in lines:
                ended = line.text.endswith(b"\n")
                if keeps(line):
                    file.write(line.text if ended else line.text + b"\n")
    except BaseException:
        part.unlink()
        raise
    if not whole and ended and part.stat().st_size == path.stat().st_size:
        part.unlink()
        return None
    return part


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
    # The libraries that read a checkpoint raise many kinds; the last one is not an `Exception`.
    except (Exception, CheckpointException) as error:
        raise damaged(
            folder,
            f"it can't be loaded ({type(error).__name__}: {error})",
            "delete it: the run then goes on from the previous checkpoint, or begins anew",
        ) from error


def _trained_version(line: Line) -> int:
    """The number of the step that trained on an episode; 0 if no step did."""
    with intact(line.location, _EPISODE_CURE, "not a transcript of a training run: "):
        check_kinds(line.record, {"trained_version": int | None}, ["trained_version"])
    return line.record["trained_version"] or 0
