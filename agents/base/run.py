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
import datetime
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import IO, Any, get_type_hints

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback, TrainerState

from agents.base.curves import draw_curves
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
    read_records,
    write_atomically,
)
from agents.base.settings import SettingsError
from agents.base.sharding import prepare_sharding
from retool_env.provenance import REVISION, versions
from retool_env.transcript import Transcript, write_transcripts

PICTURE_SECONDS = 60.0
"""Between two drawings of a run's curves, at least, while it goes on."""

_NO_CONFIG = "start anew with another name=..."
_NO_EPISODE = "delete that line: its episode is then lost"
"""What to do about records that can't be restored."""

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
            field.name: field.default_factory() if field.default is MISSING else field.default
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
            raise damaged(self._config, f'"{length}" is {before!r:.60}', _NO_CONFIG)
        done = self._reached(length) if reached is None else reached()
        if now < done:
            raise SettingsError(
                f"{self.folder} has done {length}={done} already, so that it can't be given {length}={now}: set it to {done} "
                "or more"
            )
        return {"setting": length, "from": before, "to": now, "at": done}

    def _reached(self, length: str) -> float:
        point = self._last_point()
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
        point = self._on_all(self._last_point)
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
        files = self._on_all(lambda: [self._kept(path, step) for path in self._records()])
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

    def _last_point(self) -> Point | None:
        """The latest checkpoint that is whole.

        A trainer's first process writes `trainer_state.json` last but for the seal: without both, a stop or a full disk cut the
        checkpoint short, and the one before it is taken.

        Raises:
            SettingsError: If it was whole once, and is no longer.
        """
        found: dict[int, Path] = {}
        for path in self.trainer.glob("checkpoint-*"):
            number = path.name.removeprefix("checkpoint-")
            if not (number.isascii() and number.isdecimal() and path.is_dir()):
                raise SettingsError(
                    f"{path}: it is none of the run's checkpoints, which are folders checkpoint-<step>. Move it out of "
                    f"{self.trainer}, whose older checkpoints are deleted"
                )
            found[int(number)] = path
        for step in sorted(found, reverse=True):
            before = max((each for each in found if each < step), default=None)
            then = "begins anew" if before is None else f"goes on from step {before}"
            cure = f"delete {found[step]}: the run then {then}"
            if (state := read_state(found[step], step, cure)) is not None:
                return Point(step, found[step], state)
        return None

    def _records(self) -> list[Path]:
        """What this process keeps of the run."""
        return [self.folder / "metrics.jsonl", self.transcripts][not self.main :]

    def _kept(self, path: Path, step: int) -> tuple[Path, Path] | None:
        """A copy of a file of records without those after a step, and the file; `None` where nothing is left out.

        What is kept stays as it was written.
        """
        if not os.path.lexists(path):
            return None
        if step and path.is_file() and not path.stat().st_size:
            cure = "delete it: what it held is then lost"
            raise damaged(path, f"it is empty, and the run has come to {step}", cure)
        lines: Iterable[Line]
        if path == self.transcripts:
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

    def _on_all[T](self, work: Callable[[], T]) -> T:
        """Do something on every process. An error of one is an error of all, so that none waits for it.

        Raises:
            SettingsError: The first process's.
        """
        said, found = "", None
        try:
            found = work()
        except SettingsError as error:
            said = str(error)
        for each in gather_object([said]):
            if each:
                raise SettingsError(each)
        return found  # type: ignore[return-value]

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


class RunLogger(TrainerCallback):
    """Writes each of the trainer's logs to a run's `metrics.jsonl`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._started = time.monotonic()
        past = run.metrics()
        self._before = seconds_of(past)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Called by the trainer; only the rank that is world's first writes."""
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            seconds = round(self._before + time.monotonic() - self._started, 3)
            self._run.log({"step": state.global_step, "seconds": seconds, **logs})


def seconds_of(past: Sequence[Mapping[str, Any]]) -> float:
    """The seconds that a run had taken when the last of these records was logged."""
    return past[-1].get("seconds", 0.0) if past else 0.0


def accept_revision(folder: Path) -> None:
    """Let the run in `folder` go on with episodes of this revision; `config.json` keeps those of before.

    Args:
        folder: A run's; nothing happens where there is none.

    Raises:
        SettingsError: If its `config.json` is damaged.
    """
    path = folder / "config.json"
    if not os.path.lexists(path):
        return
    record = read_config(folder)
    before = record.get("revision", 1)
    if before != REVISION:
        record["earlier_revisions"] = [*record.get("earlier_revisions", []), before]
        record["revision"] = REVISION
        write_atomically(path, json.dumps(record, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """What `config.json` says of a run.

    Raises:
        SettingsError: If it is damaged.
    """
    path = folder / "config.json"
    record = read_object(path, _NO_CONFIG)
    try:
        kinds = {"settings": dict, "processes": int, "changes": list[dict]}
        kinds |= {"revision": int, "earlier_revisions": list[int]}
        check_kinds(record, kinds, ["settings"])
        for change in record.get("changes", []):
            check_kinds(
                change, {"setting": str, "from": float, "to": float}, ["setting", "from", "to"]
            )
    except ValueError as error:
        raise damaged(path, str(error), _NO_CONFIG) from None
    return record


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
