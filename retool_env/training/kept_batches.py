"""Kept batches: the rollouts of the newest generation batches on disk, for a resumed run.

A run that is stopped or killed inside a batch goes on from its last checkpoint with the same
rollouts. Each process writes its part of a batch to one file, once the batch is sampled:

    batch-<number>.<first>-<end>.<rank>-of-<processes>.safetensors

The batch is trained on from `first` optimizer steps until `end`. The tokens lie in flat arrays, 4
bytes for an id and 4 for a log-prob; text, rewards and all other parts of a transcript are
compressed JSON. Masks and advantages follow from them. A batch that was used up before the oldest
checkpoint that counts is deleted. A damaged batch is set aside with a warning, and sampled anew
like a missing one. With dynamic sampling, a file says which groups of other batches were trained on
(`DynamicSampling.moved`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from retool_env.errors import SettingsError
from retool_env.rollout.engine import Group
from retool_env.training.dynamic_sampling import Moved
from retool_env.training.processes import gathered, together
from retool_env.training.step import Step
from retool_env.transcript import Transcript

_NAME = re.compile(r"(batch|old|moved)-(\d+)\.(\d+)-(\d+)\.(\d+)-of-(\d+)\.safetensors")
_DAMAGED = ".damaged"
"""The ending of the name of a file that was set aside."""
_log = logging.getLogger(__name__)


class _Damaged(SettingsError):
    """A file of a kept batch can't be used.

    Args:
        path: The file.
        fault: The fault of the file.
    """

    def __init__(self, path: Path, fault: str) -> None:
        self.fault = f"{path}: {fault}"
        super().__init__(
            f"{self.fault}. Restore it, or delete the folder {path.parent}: the batch is then "
            "sampled anew"
        )


@dataclass
class KeptBatch:
    """One process's part of a batch."""

    groups: list[Group]
    """The groups that are trained on."""
    others: list[Transcript]
    """The sampled episodes that are not trained on, without token ids and log-probs."""
    figures: list[tuple[str, float]]
    """The names and values that were logged when the batch was sampled, in their order."""
    asked: list[str]
    """The ids of the problems that the trainer asked for. Resampling may have replaced some."""

    @property
    def version(self) -> int:
        """The number of optimizer steps before the batch was first trained on."""
        return self.groups[0][0].trained_version or 0


@dataclass(frozen=True)
class _File:
    """A file of a kept batch, as its name describes it."""

    path: Path
    kind: str
    """`batch`: the rollouts; `old`: the log-probs before the updates; `moved`: the places whose
    groups took the places of others."""
    number: int
    first: int
    end: int
    rank: int
    processes: int


class KeptBatches:
    """The kept batches of a run.

    Args:
        folder: The folder of the files. It is made when the first batch is kept.
        needed: Returns the step of the oldest checkpoint whose later batches are kept. A batch that
            was used up by then is deleted.
    """

    def __init__(self, folder: Path, needed: Callable[[], int]) -> None:
        self.folder = folder
        self._needed = needed
        self._warned = False

    def save(self, step: Step, kept: KeptBatch) -> None:
        """Write this process's part of a batch, atomically. All processes must call it.

        If it can't be written, for example because the disk is full, a warning says so. Then a run
        that is resumed inside the batch samples it anew.

        Args:
            step: The request for the batch.
            kept: The part.
        """
        if step.accelerator.is_main_process:
            self.delete_used()
            self._delete_others(step)
        lengths = [len(group) for group in kept.groups]
        trained = [transcript for group in kept.groups for transcript in group]
        record = {
            "groups": lengths,
            "asked": kept.asked,
            "figures": kept.figures,
            "trained": [_without_tokens(transcript) for transcript in trained],
            "others": [_without_tokens(transcript) for transcript in kept.others],
        }
        text = zlib.compress(json.dumps(record).encode(), level=1)
        spans = [span for transcript in trained for span in transcript.spans]
        self._write(
            "batch",
            step,
            {
                "record": np.frombuffer(text, np.uint8),
                "ids": _joined((span.token_ids for span in spans), np.int32),
                "logprobs": _smallest(_joined((span.logprobs for span in spans), np.float64)),
            },
        )

    def load(self, step: Step) -> KeptBatch | None:
        """Read this process's part of a batch that an earlier start of the run has sampled.

        A batch that another number of processes sampled is divided anew, unless its training has
        begun: then it can't be known which process has trained on which rows.

        Args:
            step: The request for the batch.

        Returns:
            The part; `None` if the batch is not kept or is damaged, or has other problems than the
            request.
        """
        parts = self._parts(step.batch, step)
        if not parts:
            return None
        rank, count = step.accelerator.process_index, step.accelerator.num_processes
        own = [parts[rank]] if len(parts) == count else parts
        if not _intact(own):
            return None
        read = [_read(part.path) for part in own]
        kept = read[0] if len(parts) == count else _divided(read, rank, count)
        # An unfinished batch goes on with its rollouts, even if the run's length has changed since
        # and another problem would stand in their place.
        return kept if step.resumed or kept.asked == asked_of(step) else None

    def delete_used(self) -> None:
        """Delete the batches that were used up before. Only the first process calls it."""
        needed = self._needed()
        endings = "", ".part", _DAMAGED  # also of killed writes
        for file in (file for ending in endings for file in _files(self.folder, ending)):
            # A run that goes on from the end of a batch needs the places that the batch moved.
            if file.end < needed or (file.end == needed and file.kind != "moved"):
                try:
                    file.path.unlink(missing_ok=True)
                except OSError as error:
                    if not self._warned:
                        _log.warning("used rollouts can't be deleted (%s). The run goes on", error)
                    self._warned = True

    def found_by_all(self, numbers: Sequence[int], step: Step) -> set[int]:
        """The batches that are kept and that `load` can read. All processes must call it.

        The processes may see different files, as on a network disk. They must sample the same
        batches, so that a batch counts only if all of them see it.

        Args:
            numbers: The numbers of the batches that are looked for.
            step: A request of the trainer, for any batch.

        Raises:
            RuntimeError: If another process has an error.
        """
        accelerator = step.accelerator
        own = together(accelerator, lambda: [bool(self._parts(n, step)) for n in numbers])
        everywhere = zip(*gathered(accelerator, *own), strict=True)
        return {n for n, seen in zip(numbers, everywhere, strict=True) if all(seen)}

    def save_old(self, step: Step, logps: np.ndarray, mask: np.ndarray) -> None:
        """Write the trainer's log-probs before its updates, which a correction needs.

        Without them the batch can't be trained on further, so if they can't be written, the batch
        is deleted, as `save` leaves it then.

        Args:
            step: The request for the batch.
            logps: The log-probs, shape `(B, T)`.
            mask: The places that are written, shape `(B, T)`.
        """
        self._write("old", step, {"logprobs": logps[mask].astype(np.float32)})

    def load_old(self, step: Step, mask: np.ndarray) -> np.ndarray:
        """Read the log-probs of `save_old`, shape `(B, T)`, 0 at other places.

        Args:
            step: The request for the batch.
            mask: The places that were written, shape `(B, T)`.

        Raises:
            SettingsError: If the file is missing or damaged.
        """
        wanted = "old", step.batch, step.accelerator.process_index, step.accelerator.num_processes
        for file in _files(self.folder):
            if (file.kind, file.number, file.rank, file.processes) == wanted:
                values, logps = _arrays(file.path)["logprobs"], np.zeros(mask.shape, np.float32)
                if len(values) != mask.sum():
                    raise _Damaged(file.path, "it belongs to other rollouts")
                logps[mask] = values
                return logps
        raise _Damaged(self._path("old", step), "it is missing")

    def save_moved(self, step: Step, moved: Moved) -> None:
        """Write the mapping `DynamicSampling.moved`, for a run that is resumed after a batch.

        Args:
            step: The request for the batch.
            moved: The mapping.
        """
        first = step.accelerator.process_index * len(asked_of(step))
        entries = [[batch, first + index, name] for (batch, index), name in moved.items()]
        text = json.dumps(entries).encode()
        self._write("moved", step, {"record": np.frombuffer(text, np.uint8)})

    def moved(self, number: int, step: Step) -> Moved:
        """Read this process's part of the mapping that `save_moved` wrote; empty without a file.

        Args:
            number: The number of the batch of `save_moved`.
            step: A request of the trainer, for a later batch.

        Raises:
            SettingsError: If a file is damaged.
        """
        size = len(asked_of(step))
        first = step.accelerator.process_index * size
        own = range(first, first + size)
        found: Moved = {}
        for part in self._parts(number, step, "moved"):
            try:
                for batch, index, name in json.loads(_arrays(part.path)["record"].tobytes()):
                    if index in own:
                        found[batch, index - own.start] = name
            except (ValueError, KeyError, TypeError) as error:
                raise _Damaged(part.path, f"it can't be read ({error!r:.100})") from None
        return found

    def _parts(self, number: int, step: Step, kind: str = "batch") -> list[_File]:
        """The files of all processes of a batch, by rank; empty if the batch can't be used."""
        files = [file for file in _files(self.folder) if (file.kind, file.number) == (kind, number)]
        count = step.accelerator.num_processes
        begun = step.resumed and number == step.batch
        for processes in sorted({file.processes for file in files}, key=lambda each: each != count):
            parts = [file for file in files if file.processes == processes]
            if len(parts) == processes and not (begun and processes != count):
                return sorted(parts, key=lambda file: file.rank)
        return []

    def _path(self, kind: str, step: Step) -> Path:
        rank, count = step.accelerator.process_index, step.accelerator.num_processes
        name = f"{kind}-{step.batch}.{step.number}-{step.end}.{rank}-of-{count}.safetensors"
        return self.folder / name

    def _write(self, kind: str, step: Step, arrays: Mapping[str, np.ndarray]) -> None:
        path = self._path(kind, step)
        part = path.with_name(path.name + ".part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as opened:
                opened.write(safetensors.numpy.save(dict(arrays)))
                opened.flush()
                os.fsync(opened.fileno())
            part.replace(path)
        except OSError as error:
            # Also files of an earlier start, which hold other rollouts of this batch.
            own = step.batch, step.accelerator.process_index, step.accelerator.num_processes
            for file in _files(self.folder):
                if (file.number, file.rank, file.processes) == own:
                    file.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the folder may be a file
                part.unlink()
            _log.warning(
                "the rollouts of the steps %d to %d can't be kept in %s (%s): free some room. The "
                "run goes on; if it is stopped and resumed inside these steps, it samples their "
                "rollouts anew",
                step.number + 1,
                step.end,
                self.folder,
                error,
            )

    def _delete_others(self, step: Step) -> None:
        """Delete this batch of other processes, or begun at another step: it is sampled anew."""
        count = step.accelerator.num_processes
        for file in _files(self.folder):
            same = (file.processes, file.first) == (count, step.number)
            if file.number == step.batch and not same:
                file.path.unlink(missing_ok=True)


def asked_of(step: Step) -> list[str]:
    """The ids of the problems that a trainer asks for, one for each group of this process.

    Args:
        step: The request for the batch.
    """
    return list(step.prompts[:: step.group])


def begun_batches(folder: Path, step: int, processes: int) -> list[int]:
    """The first steps of the kept batches that a checkpoint lies inside.

    A run that goes on from the checkpoint writes the transcripts of such a batch anew, once it has
    trained on the whole of it. A damaged batch is set aside, so it does not count.

    Args:
        folder: The folder of the kept batches.
        step: The checkpoint's step.
        processes: The number of processes of the run that goes on.
    """
    files = [
        file
        for file in _files(folder)
        if file.kind == "batch" and file.first < step < file.end and file.processes == processes
    ]
    begun = []
    for number in sorted({file.number for file in files}):
        parts = [file for file in files if file.number == number]
        old = [file for file in _files(folder) if (file.kind, file.number) == ("old", number)]
        if len(parts) == processes and _intact(parts + old):
            begun.append(parts[0].first)
    return sorted(begun)


def _files(folder: Path, ending: str = "") -> Iterator[_File]:
    for path in sorted(folder.glob(f"*.safetensors{ending}")):
        if match := _NAME.fullmatch(path.name.removesuffix(ending)):
            yield _File(path, match[1], *(int(number) for number in match.groups()[1:]))


def _intact(files: Sequence[_File]) -> bool:
    """Whether all files of a batch can be read. A warning says if not, and they are set aside."""
    for file in files:
        try:
            if file.kind == "batch":
                _read(file.path)
            else:
                _arrays(file.path)
        except _Damaged as error:
            _log.warning("%s: it is set aside, and its batch is sampled anew", error.fault)
            for each in files:
                with contextlib.suppress(OSError):  # another process has done it
                    each.path.rename(each.path.with_name(each.path.name + _DAMAGED))
            return False
    return True


def _without_tokens(transcript: Transcript) -> dict[str, Any]:
    """A transcript as JSON values; token ids and log-probs are replaced by their numbers."""
    bare = [dataclasses.replace(s, token_ids=None, logprobs=None) for s in transcript.spans]
    record = dataclasses.replace(transcript, spans=tuple(bare)).to_json()
    for values, span in zip(record["spans"], transcript.spans, strict=True):
        values["token_ids"], values["logprobs"] = _size(span.token_ids), _size(span.logprobs)
    return record


def _size(values: Sequence[Any] | None) -> int | None:
    return None if values is None else len(values)


def _joined(columns: Iterable[Sequence[Any] | None], kind: Any) -> np.ndarray:
    return np.array([value for column in columns for value in column or ()], kind)


def _smallest(values: np.ndarray) -> np.ndarray:
    """The values as float32, if none of them changes by that: engines compute in float32."""
    small = values.astype(np.float32)
    return small if (small == values).all() else values


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise _Damaged(path, f"it can't be read ({error})") from None


def _read(path: Path) -> KeptBatch:
    arrays = _arrays(path)
    try:
        record = json.loads(zlib.decompress(arrays["record"].tobytes()))
        ids, logprobs = iter(arrays["ids"].tolist()), iter(arrays["logprobs"].tolist())
        trained = [_with_tokens(each, ids, logprobs) for each in record["trained"]]
        others = [_bare(each) for each in record["others"]]
        rest = iter(trained)
        groups = [[next(rest) for _ in range(length)] for length in record["groups"]]
        figures = [(str(name), value) for name, value in record["figures"]]
        return KeptBatch(groups, others, figures, list(record["asked"]))
    except (zlib.error, ValueError, KeyError, TypeError, StopIteration, RuntimeError) as error:
        raise _Damaged(path, f"it is not a kept batch ({error!r:.100})") from None


def _with_tokens(
    record: dict[str, Any], ids: Iterator[int], logprobs: Iterator[float]
) -> Transcript:
    for span in record["spans"]:
        for name, values in (("token_ids", ids), ("logprobs", logprobs)):
            if span[name] is not None:
                span[name] = [next(values) for _ in range(span[name])]
    return Transcript.from_json(record)


def _bare(record: dict[str, Any]) -> Transcript:
    for span in record["spans"]:
        span["token_ids"] = span["logprobs"] = None
    return Transcript.from_json(record)


def _divided(parts: Sequence[KeptBatch], rank: int, processes: int) -> KeptBatch:
    """The part of a process, of the parts of another number of processes."""
    groups = [group for part in parts for group in part.groups]
    each = len(groups) // processes
    others = [transcript for part in parts for transcript in part.others]
    own = slice(rank * each, (rank + 1) * each)
    asked = [name for part in parts for name in part.asked]
    return KeptBatch(groups[own], others[rank::processes], parts[0].figures, asked[own])
