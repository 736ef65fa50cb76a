"""Run: the folder of a training run, and how a stopped run is resumed.

runs/<name>/
config.json         algorithm, settings, versions, processes, revision; changes of settings
lock                held by the process that uses the folder
status.json         whether the run is at work, finished, stopped or failed (`status.py`)
metrics.jsonl       one JSON object for each logged step, and one for each evaluation
transcripts.jsonl   the episodes, each with the version of the weights that sampled it; each further
                    process has another file, transcripts-1.jsonl and so on
eval-<step>.jsonl   the episodes of an evaluation on held-out problems
curves.png          the learning curves, redrawn every minute
batches/            the newest rollouts, with which a run goes on after a stop inside a batch
trainer/            checkpoints for resuming, each with the sizes of its files (`files.json`)
checkpoint/         the trained model and its tokenizer
checkpoints/<step>/ the model during training, if the settings ask for it
done                exists once the run is finished
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, override

from transformers import TrainerCallback

from agents.base.changes import find_changes, noted
from agents.base.config import RESTART_CURE, begin_config, read_config
from agents.base.curves import write_curves
from agents.base.disk import naming
from agents.base.lock import lock
from agents.base.records import damaged, read_records, write_atomically
from agents.base.resuming import (
    Cut,
    check_form,
    close_large,
    cut_metrics,
    cut_transcripts,
    last_point,
)
from agents.base.settings import SettingsError
from agents.base.sharding import processes, sharded
from retool_env.durable import sync, sync_files
from retool_env.provenance import REVISION
from retool_env.rotation import complete, open_names
from retool_env.training.kept_batches import begun_batches
from retool_env.training.processes import everywhere
from retool_env.transcript import Transcript, write_transcripts

PICTURE_SECONDS = 60.0
"""The minimum number of seconds between two drawings of a run's curves."""

_dry = ContextVar("dry", default=False)


class _Checked(Exception):
    """A dry run reached the point where a run would start."""


@contextlib.contextmanager
def dry_run() -> Iterator[None]:
    """Check a run without starting it: the block ends where the run would start."""
    before = _dry.set(True)
    try:
        yield
    except _Checked:
        pass
    finally:
        _dry.reset(before)


def is_dry() -> bool:
    """Whether a run is checked, and not started."""
    return _dry.get()


class Run:
    """A run's folder.

    Args:
        folder: The path of the folder.
        settings: The run's settings, a dataclass.
        resume: Continue the run in the folder, or start it if the folder holds no run.
        length: The name of the setting for the run's length (`"steps"`), which a resumed run may
            change to any length that it has not passed. `None`: the length is fixed. The other
            settings that may change are listed in `changes.RULES`.
        reached: Returns the length that the run has reached. `None`: the last checkpoint tells it.

    Raises:
        SettingsError: If the folder holds a run and `resume` is false; if that run has other
            frozen settings, or another revision of the environments; or if its records are damaged.
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
        self.trainer = folder / "trainer"
        """The folder of the checkpoints for resuming."""
        self.checkpoint = folder / "checkpoint"
        """The folder of the trained model."""
        self.exports = folder / "checkpoints"
        """The folder of the models during training, with a folder for each exported step."""
        self.batches = folder / "batches"
        """The folder of the newest rollouts, with which a resumed run goes on."""
        self._done = folder / "done"
        self._state = processes()
        self._config = folder / "config.json"
        self._settings = json.loads(json.dumps(dataclasses.asdict(settings)))
        self._algorithm = type(settings).__module__.rpartition(".")[2]
        self._drawn = time.monotonic()
        self._changes: list[dict[str, Any]] = []
        self._longer = False
        self.earlier: list[Any] = []
        self._done_before = self._decided(self._done.exists)
        if not self._decided(self._begun):
            return
        if not resume:
            raise SettingsError(
                f"{folder} holds a run already: go on with --resume, or choose another name=..."
            )
        record = self._decided(lambda: read_config(folder))
        revision = record.get("revision", 1)
        if revision != REVISION:
            raise SettingsError(
                f"{folder} holds episodes of revision {revision}, and these environments are of "
                f"revision {REVISION} (CHANGELOG.md lists the differences): choose another "
                "name=..., or mix the episodes with --force"
            )
        if (algorithm := record.get("algorithm", self._algorithm)) != self._algorithm:
            raise SettingsError(
                f"{folder} is a run of {algorithm}, which {self._algorithm} can't continue: choose "
                f"another name=..., or `python -m agents {algorithm}`"
            )
        past = [change for change in record.get("changes", []) if change["setting"] == length]
        self.earlier = [change["from"] for change in past]
        try:
            changes = find_changes(settings, record, self._state.num_processes, length, folder)
        except SettingsError as error:
            raise SettingsError(f"{folder}: {error}") from None
        if not changes:
            return
        done = None
        if length is not None:
            done = self._decided(reached or (lambda: self._reached(length)))
        for change in changes:
            if change["setting"] == length:
                self._check_length(change, done or 0)
                self._longer = True
                self.earlier.append(change["from"])
        self._changes = [noted(change, done) for change in changes]

    def _check_length(self, change: Mapping[str, Any], done: float) -> None:
        """Check a change of the run's length.

        Raises:
            SettingsError: If the run has passed the new length.
        """
        length, before, now = change["setting"], change["from"], change["to"]
        if type(before) not in (int, float) or not math.isfinite(before):
            raise damaged(self._config, f'"{length}" is {before!r:.60}', RESTART_CURE)
        if now < done:
            raise SettingsError(
                f"{self.folder} has already done {length}={done}, which is more than "
                f"{length}={now}: set {length} to {done} or more"
            )

    def _reached(self, length: str) -> float:
        point = last_point(self.trainer)
        if point is None:
            return 0
        return point.state.get("epoch", 0.0) if length == "epochs" else point.step

    def _begun(self) -> bool:
        """Whether the folder holds other files than `start` writes.

        If not, an error stopped the run after `start`, and the folder can be used again.

        Raises:
            SettingsError: If `config.json` is missing beside records.
        """
        if not os.path.lexists(self._config):
            for name in ("metrics.jsonl", "transcripts.jsonl", "trainer", "done"):
                if os.path.lexists(self.folder / name):
                    raise damaged(
                        self._config, f"it is missing beside {name}", "choose another name=..."
                    )
            return False
        if not self._config.is_file():
            read_config(self.folder)  # raises an error that names the kind of the file
        of_start = {self._config, self.folder / "lock", self.folder / "status.json"}
        return any(path.is_file() and path not in of_start for path in self.folder.rglob("*"))

    def start(self) -> None:
        """Make the folder, and lock it until this process ends.

        It is called after all settings were checked, so that a mistake leaves no folder behind. All
        processes call it together, and the first one writes.

        Raises:
            SettingsError: If another process uses the folder, or this start can't load the form of
                the last checkpoint.
        """
        if _dry.get():
            self._check_form()
            raise _Checked
        everywhere(None)  # all processes have checked the folder before it changes
        error = None
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            error = lock(self.folder)
            if error is None and not self._begun():
                count = self._state.num_processes
                begin_config(self.folder, self._algorithm, self._settings, count)
        if error := everywhere(error)[0]:
            raise SettingsError(error)
        self._check_form()
        for path in self._transcript_files():
            complete(path)

    def _check_form(self) -> None:
        self._decided(lambda: check_form(self.trainer, sharded()))

    @property
    def main(self) -> bool:
        """Whether this process is the run's first one, which writes the records."""
        return self._state.is_main_process

    @property
    def transcripts(self) -> Path:
        """The file of this process's episodes."""
        rank = self._state.process_index
        return self.folder / (f"transcripts-{rank}.jsonl" if rank else "transcripts.jsonl")

    def evaluation(self, step: int) -> Path:
        """The file of the episodes of the evaluation after a step."""
        return self.folder / f"eval-{step}.jsonl"

    @property
    def finished(self) -> bool:
        """Whether the run reached its end, and was not made longer since."""
        return self._done_before and not self._longer

    def finish(self) -> None:
        """Mark the run as finished. All processes call this together."""
        if self.main:
            self._note_change()
            sync_files(self.folder, "*.jsonl*")
            self._done.touch()
            sync(self.folder)
        everywhere(None)
        self._changes, self._longer, self._done_before = [], False, True

    def resume_point(self) -> str | None:
        """Find the last checkpoint, and drop the records after it.

        All processes call this together.

        Returns:
            The checkpoint's folder; `None` if the run starts at its beginning.

        Raises:
            SettingsError: If the checkpoint or a record of any process is damaged. Then no record
                is dropped.
        """
        point = self._decided(lambda: last_point(self.trainer))
        if point is None and self._longer and self._done_before:
            raise SettingsError(
                f"{self.folder} is finished, and {self.trainer} holds no checkpoint for resuming: "
                f"choose another name=... with model={self.checkpoint}"
            )
        self.resume_at(point.step if point else 0)
        return str(point.folder) if point else None

    def resume_at(self, step: int) -> None:
        """Drop the records after a step. All processes call this together.

        Args:
            step: The last step whose records are kept.

        Raises:
            SettingsError: If a record of any process is damaged. Then no record is dropped.
        """
        count = self._state.num_processes
        begun = self._decided(lambda: begun_batches(self.batches, step, count))
        if step >= self._settings.get("steps", math.inf):
            begun = []  # no batch is trained on, so no transcript would be written anew
        for cut in self._on_all(lambda: [*self._cuts(step, begun)]):
            cut.apply()
        if self.main:
            for path in self.folder.glob("eval-*.jsonl"):
                number = path.stem.removeprefix("eval-")
                if number.isdecimal() and int(number) > step:
                    path.unlink()
        everywhere(None)

    def _note_change(self) -> None:
        """Record the changed settings when the run makes progress.

        A run with a new length stays finished until then.
        """
        if not self._changes:
            return
        if self._longer:
            # First: a stop between the two writes would leave a longer run that seems finished.
            self._done.unlink(missing_ok=True)
        record = read_config(self.folder)
        record["settings"] |= self._settings
        record["processes"] = self._state.num_processes
        record["changes"] = [*record.get("changes", []), *self._changes]
        write_atomically(self._config, json.dumps(record, indent=2) + "\n")
        self._changes, self._longer = [], False

    def _cuts(self, step: int, begun: list[int]) -> Iterator[Cut]:
        """The cuts of this process's files, and of the files of processes that no longer exist."""
        if self.main:
            yield cut_metrics(self.folder / "metrics.jsonl", step)
        for path in self._transcript_files():
            yield cut_transcripts(path, step, begun)

    def _transcript_files(self) -> Iterator[Path]:
        """The open files of this process and of processes that no longer exist."""
        names = open_names(self.folder) if self.folder.is_dir() else set()
        for name in sorted(names):
            rank = int(name.removesuffix(".jsonl").partition("-")[2] or 0)
            if rank % self._state.num_processes == self._state.process_index:
                yield self.folder / name

    def _on_all[T](self, work: Callable[[], T]) -> T:
        """Call a function on every process, and raise an error of one process on all of them.

        Otherwise the other processes would wait for the failed one.

        Raises:
            SettingsError: The error of the first process that failed.
        """
        error = ""
        results: list[T] = []
        try:
            results.append(work())
        except SettingsError as fault:
            error = str(fault)
        for text in filter(None, everywhere(error)):
            raise SettingsError(text)
        return results[0]

    def _decided[T](self, look: Callable[[], T]) -> T:
        """Look at the folder on the first process, and return its answer on every process.

        A network file system may show other processes an older folder.

        Raises:
            SettingsError: The error of the first process.
        """
        answer: list[T] = []
        self._on_all(lambda: answer.append(look()) if self.main else None)
        return everywhere(answer)[0][0]

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to `metrics.jsonl`; draw the curves if they are older than a minute."""
        self._note_change()
        path = self.folder / "metrics.jsonl"
        with naming(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if time.monotonic() - self._drawn >= PICTURE_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Draw `curves.png` on the first process, if matplotlib is installed."""
        if self.main:
            # A picture that can't be drawn must not end a training.
            with contextlib.suppress(ImportError, SettingsError):
                write_curves({self.folder.name: self.metrics()}, self.folder / "curves.png")
        self._drawn = time.monotonic()

    def metrics(self) -> list[dict[str, Any]]:
        """The records in `metrics.jsonl`.

        Raises:
            SettingsError: If the file is damaged.
        """
        return read_records(self.folder / "metrics.jsonl")

    def write(self, transcripts: Iterable[Transcript]) -> None:
        """Append episodes to this process's transcripts, after a large file was closed."""
        close_large(self.transcripts)
        with naming(self.transcripts):
            write_transcripts(self.transcripts, transcripts)


class Clock:
    """Measures the seconds that a run has taken, including its earlier starts.

    Args:
        run: The run, which starts or is resumed now.
    """

    def __init__(self, run: Run) -> None:
        self._before = seconds_of(run.metrics())
        self._started = time.monotonic()

    def seconds(self) -> float:
        """The seconds until now, rounded to milliseconds."""
        return round(self._before + time.monotonic() - self._started, 3)


class RunLogger(TrainerCallback):
    """Writes the figures that a trainer logs to a run's `metrics.jsonl`.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._clock = Clock(run)

    @override
    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write the figures, on the first process only."""
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            self._run.log({"step": state.global_step, "seconds": self._clock.seconds(), **logs})


def seconds_of(past: Sequence[Mapping[str, Any]]) -> float:
    """The seconds that a run had taken at its last record; 0 without records.

    Args:
        past: The run's records of `metrics.jsonl`.
    """
    return past[-1].get("seconds", 0.0) if past else 0.0
