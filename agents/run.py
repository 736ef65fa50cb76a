"""Run: the folder of a training run, and how a stopped one goes on.

runs/<name>/
config.json         settings, seeds, versions, number of processes, the environments' revision
lock                held by the process that is at work here
metrics.jsonl       one object a logged step
transcripts.jsonl   the episodes, each with the step whose weights sampled it; of several processes, each but the first
                    has a file of its own, transcripts-1.jsonl and so on
curves.png          the learning curves, drawn anew every minute
trainer/            TRL's own checkpoints, for resuming
checkpoint/         the trained model with its tokenizer
checkpoints/<step>/ the same along training, where the settings ask for it
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from agents.curves import draw_curves
from agents.settings import SettingsError
from agents.sharding import prepare_sharding
from retool_env.provenance import REVISION, versions
from retool_env.transcript import Transcript, write_transcripts

PICTURE_SECONDS = 60.0
"""Between two drawings of a run's curves, at least, while it goes on."""


_locks: dict[Path, IO[str]] = {}
"""This process's. They are kept open: a process loses its lock on a file with the first of its descriptors that it closes."""


def processes() -> PartialState:
    """This process among those of the run. Where there is no accelerator, accelerate sees several only if told to look.

    Raises:
        SettingsError: If FSDP is to be used in a way that is not supported.
    """
    prepare_sharding()
    cpu = not torch.accelerator.is_available()
    if cpu:
        # Otherwise the second process's is "cpu:1", which no checkpoint of an optimizer can be loaded to.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    # A process may wait for the slowest one's rollouts for as long as these take; the default is minutes.
    wait = datetime.timedelta(hours=12)
    return PartialState(cpu=cpu, timeout=wait)


class Run:
    """A run's folder.

    Args:
        folder: Where it lies.
        settings: The run's settings, a dataclass.
        resume: Go on where the run in that folder was, or start it if there is none.

    Raises:
        SettingsError: If the folder holds a run and `resume` is not set, or that run's settings, number of processes, or
            revision of the environments are others.
    """

    def __init__(self, folder: Path, settings: Any, resume: bool) -> None:
        self.folder = folder
        self._state = processes()
        self._config = folder / "config.json"
        self._settings = json.loads(json.dumps(dataclasses.asdict(settings)))
        self._defaults = {
            field.name: field.default_factory() if field.default is MISSING else field.default
            for field in dataclasses.fields(settings)
            if (field.default, field.default_factory) != (MISSING, MISSING)
        }
        self._drawn = time.monotonic()
        if not self._begun():
            return
        if not resume:
            raise SettingsError(
                f"{folder} holds a run already: go on with --resume, or choose another name=..."
            )
        record = json.loads(self._config.read_text(encoding="utf-8"))
        number = self._state.num_processes
        if record.get("processes", number) != number:
            raise SettingsError(
                f"{folder} was started with {record['processes']} processes, so it can't go on with {number}"
            )
        revision = record.get("revision", 1)
        if revision != REVISION:
            raise SettingsError(
                f"{folder} holds episodes of revision {revision}, and these environments are of revision {REVISION} "
                "(CHANGELOG.md says what differs): choose another name=..., or mix them with --force"
            )
        now = self._settings
        before = {**self._defaults, **record["settings"]}  # a setting may be newer than the run
        changed = sorted(k for k in {**before, **now} if before.get(k) != now.get(k))
        if changed:
            raise SettingsError(
                f"{folder} was started with other settings ({', '.join(changed)}), so it can't go on with these: choose "
                "another name=..."
            )

    def _begun(self) -> bool:
        """Whether there is more than what `start` leaves: a mistake that is found after it must not keep the folder."""
        if not self._config.is_file():
            return False
        ours = {self._config, self.folder / "lock"}
        return any(path.is_file() and path not in ours for path in self.folder.rglob("*"))

    def start(self) -> None:
        """Make the folder, and keep other processes' runs out of it until this process ends.

        Called once all that the settings name was found, so that a mistake leaves nothing behind. Of several processes, all
        call it, and the first one writes.

        Raises:
            SettingsError: If another process is at work there.
        """
        self._state.wait_for_everyone()  # who has not looked yet would take it for another run's
        said: list[str | None] = [None]
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._taken():
                said = [f"another process is at work in {self.folder}: wait for it, or stop it"]
            elif not self._begun():
                record = {
                    "settings": self._settings,
                    "versions": versions(),
                    "processes": self._state.num_processes,
                    "revision": REVISION,
                }
                write_atomically(self._config, json.dumps(record, indent=2) + "\n")
        broadcast_object_list(said)
        if said[0]:
            raise SettingsError(said[0])

    def _taken(self) -> bool:
        """Whether another process has the folder; if not, this one has it now."""
        path = (self.folder / "lock").resolve()
        if path in _locks:  # a run that goes on in the process that began it
            return False
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            return True
        except OSError:  # a file system without locks
            file.close()
            return False
        _locks[path] = file
        return False

    @property
    def main(self) -> bool:
        """Whether this process is the run's first one, which keeps its records."""
        return self._state.is_main_process

    @property
    def transcripts(self) -> Path:
        """This process's episodes."""
        rank = self._state.process_index
        return self.folder / (f"transcripts-{rank}.jsonl" if rank else "transcripts.jsonl")

    @property
    def trainer(self) -> Path:
        """Where TRL keeps its checkpoints."""
        return self.folder / "trainer"

    @property
    def checkpoint(self) -> Path:
        """The trained model."""
        return self.folder / "checkpoint"

    @property
    def exports(self) -> Path:
        """The model along training, a folder a step."""
        return self.folder / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.folder / "done").is_file()

    def finish(self) -> None:
        """Note that the run came to its end."""
        if self.main:
            (self.folder / "done").touch()
        self._state.wait_for_everyone()

    def resume_point(self) -> str | None:
        """The latest of TRL's checkpoints, once the records after it are dropped; `None` to begin anew."""
        # The trainer's first process writes this file last, so that a checkpoint which a stop, or a full disk, cut short is
        # passed over.
        states = self.trainer.glob("checkpoint-*/trainer_state.json")
        complete = [path.parent for path in states if _is_json(path)]
        steps = {int(path.name.rpartition("-")[2]): path for path in complete}
        step = max(steps, default=0)
        if self.main:
            self._keep(self.folder / "metrics.jsonl", lambda record: record["step"] <= step)
        self._keep(self.transcripts, lambda record: (record["trained_version"] or 0) < step)
        return str(steps[step]) if steps else None

    def log(self, record: dict[str, Any]) -> None:
        """Append to `metrics.jsonl`, and draw the curves if that was a while ago."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if time.monotonic() - self._drawn >= PICTURE_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Draw `curves.png`, if this is the first process; without matplotlib there is none."""
        if self.main:
            with contextlib.suppress(ImportError):
                draw_curves({self.folder.name: self.metrics()}, self.folder / "curves.png")
        self._drawn = time.monotonic()

    def metrics(self) -> list[dict[str, Any]]:
        """What was logged so far."""
        return read_records(self.folder / "metrics.jsonl")

    def write(self, transcripts: Iterable[Transcript]) -> None:
        """Append to this process's transcripts."""
        write_transcripts(self.transcripts, transcripts)

    def _keep(self, path: Path, wanted: Any) -> None:
        if not path.is_file():
            return
        temporary = path.with_name(path.name + ".part")
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in _read(path) if wanted(record))
        temporary.replace(path)


class RunLogger(TrainerCallback):
    """Writes each of the trainer's logs to a run's `metrics.jsonl`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._started = time.monotonic()
        past = run.metrics()
        self._before = past[-1]["seconds"] if past else 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Called by the trainer; only the rank that is world's first writes."""
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            seconds = round(self._before + time.monotonic() - self._started, 3)
            self._run.log({"step": state.global_step, "seconds": seconds, **logs})


def accept_revision(folder: Path) -> None:
    """Let the run in `folder` go on with episodes of this revision; `config.json` keeps those of before.

    Args:
        folder: A run's; nothing happens where there is none.
    """
    path = folder / "config.json"
    if not path.is_file():
        return
    record = json.loads(path.read_text(encoding="utf-8"))
    before = record.get("revision", 1)
    if before != REVISION:
        record["earlier_revisions"] = [*record.get("earlier_revisions", []), before]
        record["revision"] = REVISION
        write_atomically(path, json.dumps(record, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a stop in the middle leaves the old one."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_transcripts_atomically(path: Path, transcripts: Iterable[Transcript]) -> None:
    """Write a file of transcripts, in place of any before, so that a stop in the middle leaves the old one."""
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    write_transcripts(part, transcripts)
    part.replace(path)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; lines that a stop cut short are left out."""
    return list(_read(path))


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue  # a stop cut it short
