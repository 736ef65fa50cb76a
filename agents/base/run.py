"""Run: the folder of a training run, and how a stopped one goes on.

runs/<name>/
config.json         settings, seeds, versions, number of processes, the environments' revision; changes of its length
lock                held by the process that is at work here
metrics.jsonl       one object a logged step
transcripts.jsonl   the episodes, each with the step whose weights sampled it; of several processes, each but the first
                    has a file of its own, transcripts-1.jsonl and so on
curves.png          the learning curves, drawn anew every minute
trainer/            TRL's own checkpoints, for resuming, each with the sizes of its files (`files.json`)
checkpoint/         the trained model with its tokenizer
checkpoints/<step>/ the same along training, where the settings ask for it
done                there is one once the run came to its end
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import MISSING
from pathlib import Path
from typing import IO, Any

from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback

from agents.base.config import ANEW, read_config
from agents.base.curves import draw_curves
from agents.base.records import (
    damaged,
    read_records,
    write_atomically,
)
from agents.base.resuming import kept_records, last_point
from agents.base.settings import SettingsError
from agents.base.sharding import processes
from retool_env.provenance import REVISION, versions
from retool_env.transcript import Transcript, write_transcripts

PICTURE_SECONDS = 60.0
"""Between two drawings of a run's curves, at least, while it goes on."""

_locks: dict[Path, IO[str]] = {}
"""This process's. They are kept open: a process loses its lock on a file with the first of its descriptors that it closes."""

_dry = ContextVar("dry", default=False)


class _Checked(Exception):
    """A dry run has come to where a run would start."""


@contextlib.contextmanager
def dry_run() -> Iterator[None]:
    """Check a run without starting it: where it would start, this block ends."""
    before = _dry.set(True)
    try:
        yield
    except _Checked:
        pass
    finally:
        _dry.reset(before)


class Run:
    """A run's folder.

    Args:
        folder: Where it lies.
        settings: The run's settings, a dataclass.
        resume: Go on where the run in that folder was, or start it if there is none.
        length: The setting that says how long the run is (`"steps"`), which a later start may change: a finished run can be given
            more, and none can be given less than it has done. `None`: no setting may change.
        reached: How far the run has come, in this setting's unit. `None`: what its last checkpoint says.

    Raises:
        SettingsError: If the folder holds a run and `resume` is not set, that run's settings, number of processes, or revision
            of the environments are others, or its records are damaged.
    """

    def __init__(
        self,
        folder: Path,
        settings: Any,
        resume: bool,
        length: str | None = None,
        reached: Callable[[], float] | None = None,
    ) -> None:
        self.folder = folder
        self._state = processes()
        self._config = folder / "config.json"
        self._settings = json.loads(json.dumps(dataclasses.asdict(settings)))
        self._defaults = {
            field.name: field.default
            if field.default_factory is MISSING
            else field.default_factory()
            for field in dataclasses.fields(settings)
            if (field.default, field.default_factory) != (MISSING, MISSING)
        }
        self._drawn = time.monotonic()
        self._change: dict[str, Any] | None = None
        self.earlier: list[Any] = []
        if not self._begun():
            return
        if not resume:
            raise SettingsError(
                f"{folder} holds a run already: go on with --resume, or choose another name=..."
            )
        record = read_config(folder)
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
        self.earlier = [change["from"] for change in record.get("changes", [])]
        now = self._settings
        before = {**self._defaults, **record["settings"]}  # a setting may be newer than the run
        changed = sorted(k for k in {**before, **now} if before.get(k) != now.get(k))
        others = [name for name in changed if name != length]
        if others:
            raise SettingsError(
                f"{folder} was started with other settings ({', '.join(others)}), so it can't go on with these: choose "
                "another name=..."
            )
        if changed:
            assert length is not None
            self._change = self._checked(length, before.get(length), now[length], reached)
            self.earlier.append(before[length])

    def _checked(
        self, length: str, before: Any, now: Any, reached: Callable[[], float] | None
    ) -> dict[str, Any]:
        """The change of a run's length, as it is recorded.

        Raises:
            SettingsError: If the run has done more.
        """
        if type(before) not in (int, float) or not math.isfinite(before):
            raise damaged(self._config, f'"{length}" is {before!r:.60}', ANEW)
        done = self._reached(length) if reached is None else reached()
        if now < done:
            raise SettingsError(
                f"{self.folder} has done {length}={done} already, so that it can't be given {length}={now}: set it to {done} "
                "or more"
            )
        return {"setting": length, "from": before, "to": now, "at": done}

    def _reached(self, length: str) -> float:
        point = last_point(self.trainer)
        if point is None:
            return 0
        return point.state.get("epoch", 0.0) if length == "epochs" else point.step

    def _begun(self) -> bool:
        """Whether there is more than what `start` leaves: a mistake that is found after it must not keep the folder.

        Raises:
            SettingsError: If there are records without the settings that they were made with.
        """
        if not os.path.lexists(self._config):
            for name in ("metrics.jsonl", "transcripts.jsonl", "trainer", "done"):
                if os.path.lexists(self.folder / name):
                    raise damaged(
                        self._config, f"it is missing beside {name}", "choose another name=..."
                    )
            return False
        if not self._config.is_file():
            read_config(self.folder)  # says what it is
        ours = {self._config, self.folder / "lock"}
        return any(path.is_file() and path not in ours for path in self.folder.rglob("*"))

    def start(self) -> None:
        """Make the folder, and keep other processes' runs out of it until this process ends.

        Called once all that the settings name was found, so that a mistake leaves nothing behind. Of several processes, all
        call it, and the first one writes.

        Raises:
            SettingsError: If another process is at work there.
        """
        if _dry.get():
            raise _Checked
        self._state.wait_for_everyone()  # who has not looked yet would take it for another run's
        said: list[str | None] = [None]
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            said = [self._taken()]
            if said == [None] and not self._begun():
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

    def _taken(self) -> str | None:
        """Why this process can't have the folder; if it can, it has it now."""
        path = (self.folder / "lock").resolve()
        if path in _locks:  # a run that goes on in the process that began it
            return None
        if path.exists() and not path.is_file():  # a pipe would be waited for
            return f"{self.folder / 'lock'}: it is not a file. Remove it"
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            return f"another process is at work in {self.folder}: wait for it, or stop it"
        except OSError:  # a file system without locks
            file.close()
            return None
        _locks[path] = file
        return None

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
    def _done(self) -> Path:
        return self.folder / "done"

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
        """Whether the run came to its end, and has not been given another one since."""
        return self._done.exists() and self._change is None

    def finish(self) -> None:
        """Note that the run came to its end."""
        if self.main:
            self._note_change()
            self._done.touch()
        self._state.wait_for_everyone()

    def resume_point(self) -> str | None:
        """The latest of TRL's checkpoints, once the records after it are dropped; `None` to begin anew.

        Of several processes, all call it.

        Raises:
            SettingsError: If the checkpoint or a record is damaged, on any process. Nothing is dropped then.
        """
        point = self._on_all(lambda: last_point(self.trainer))
        if point is None and self._change is not None and self._done.exists():
            raise SettingsError(
                f"{self.folder} is finished, and {self.trainer} holds no checkpoint that it could go on from: choose another "
                f"name=... with model={self.checkpoint}"
            )
        self.resume_at(point.step if point else 0)
        return str(point.folder) if point else None

    def resume_at(self, step: int) -> None:
        """Drop the records after a step.

        Of several processes, all call it.

        Raises:
            SettingsError: If a record is damaged, on any process. Nothing is dropped then.
        """
        files = self._on_all(lambda: [kept_records(path, step) for path in self._records()])
        for part, path in filter(None, files):
            if part.stat().st_size:
                part.replace(path)
            else:
                part.unlink()
                path.unlink()
        self._state.wait_for_everyone()

    def _note_change(self) -> None:
        """Note the run's new length: now that it goes further, and not before, so that a finished one stays one till then."""
        if self._change is None:
            return
        # First, or a stop in between would leave what looks like a longer run that is finished.
        self._done.unlink(missing_ok=True)
        record = read_config(self.folder)
        record["settings"] |= {self._change["setting"]: self._change["to"]}
        change = {**self._change, "versions": versions()}
        record["changes"] = [*record.get("changes", []), change]
        write_atomically(self._config, json.dumps(record, indent=2) + "\n")
        self._change = None

    def _records(self) -> list[Path]:
        """What this process keeps of the run."""
        return [self.folder / "metrics.jsonl", self.transcripts][not self.main :]

    def _on_all[T](self, work: Callable[[], T]) -> T:
        """Do something on every process. An error of one is an error of all, so that none waits for it.

        Raises:
            SettingsError: The first process's.
        """
        said = ""
        found: list[T] = []
        try:
            found.append(work())
        except SettingsError as error:
            said = str(error)
        for each in gather_object([said]):
            if each:
                raise SettingsError(each)
        return found[0]

    def log(self, record: dict[str, Any]) -> None:
        """Append to `metrics.jsonl`, and draw the curves if that was a while ago."""
        self._note_change()
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if time.monotonic() - self._drawn >= PICTURE_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Draw `curves.png`, if this is the first process; without matplotlib there is none."""
        if self.main:
            # Nor does a picture that can't be drawn end a training.
            with contextlib.suppress(ImportError, SettingsError):
                draw_curves({self.folder.name: self.metrics()}, self.folder / "curves.png")
        self._drawn = time.monotonic()

    def metrics(self) -> list[dict[str, Any]]:
        """What was logged so far.

        Raises:
            SettingsError: If the file is damaged.
        """
        return read_records(self.folder / "metrics.jsonl")

    def write(self, transcripts: Iterable[Transcript]) -> None:
        """Append to this process's transcripts."""
        write_transcripts(self.transcripts, transcripts)


class Clock:
    """The seconds that a run has taken, those of its earlier starts included.

    Args:
        run: The run, which goes on now.
    """

    def __init__(self, run: Run) -> None:
        self._before = seconds_of(run.metrics())
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Up to now, in thousandths."""
        return round(self._before + time.monotonic() - self._started, 3)


class RunLogger(TrainerCallback):
    """Writes each of the trainer's logs to a run's `metrics.jsonl`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._clock = Clock(run)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Called by the trainer; only the rank that is world's first writes."""
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            self._run.log({"step": state.global_step, "seconds": self._clock.seconds(), **logs})


def seconds_of(past: Sequence[Mapping[str, Any]]) -> float:
    """The seconds that a run had taken when the last of these records was logged."""
    return past[-1].get("seconds", 0.0) if past else 0.0
