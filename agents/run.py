"""Run: the folder of a training run, and how a stopped one goes on.

runs/<name>/
config.json         settings, seeds, versions
metrics.jsonl       one object a logged step
transcripts.jsonl   the episodes, each with the step whose weights sampled it; of several processes, each but the first
                    has a file of its own, transcripts-1.jsonl and so on
curves.png          the learning curves
trainer/            TRL's own checkpoints, for resuming
checkpoint/         the trained model with its tokenizer
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from agents.settings import SettingsError
from retool_env.provenance import versions
from retool_env.transcript import Transcript, write_transcripts


def processes() -> PartialState:
    """This process among those of the run. Where there is no accelerator, accelerate sees several only if told to look."""
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
        SettingsError: If the folder holds a run and `resume` is not set, or that run's settings are others.
    """

    def __init__(self, folder: Path, settings: Any, resume: bool) -> None:
        self.folder = folder
        self._state = processes()
        self._config = folder / "config.json"
        self._settings = json.loads(json.dumps(dataclasses.asdict(settings)))
        if not self._config.is_file():
            return
        if not resume:
            raise SettingsError(
                f"{folder} holds a run already: go on with --resume, or choose another name=..."
            )
        before = json.loads(self._config.read_text(encoding="utf-8"))["settings"]
        now = self._settings
        changed = sorted(k for k in {**before, **now} if before.get(k) != now.get(k))
        if changed:
            raise SettingsError(
                f"{folder} was started with other settings ({', '.join(changed)}), so it can't go on with these: choose "
                "another name=..."
            )

    def start(self) -> None:
        """Make the folder. Called once all that the settings name was found, so that a mistake leaves nothing behind.

        Of several processes, all call it, and the first one writes.
        """
        self._state.wait_for_everyone()  # who has not looked yet would take it for another run's
        if self.main and not self._config.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            record = {"settings": self._settings, "versions": versions()}
            write_atomically(self._config, json.dumps(record, indent=2) + "\n")
        self._state.wait_for_everyone()

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
        # The trainer writes this file last, so that a checkpoint which a stop cut short is passed over.
        complete = [path.parent for path in self.trainer.glob("checkpoint-*/trainer_state.json")]
        steps = {int(path.name.rpartition("-")[2]): path for path in complete}
        step = max(steps, default=0)
        if self.main:
            self._keep(self.folder / "metrics.jsonl", lambda record: record["step"] <= step)
        self._keep(self.transcripts, lambda record: (record["trained_version"] or 0) < step)
        return str(steps[step]) if steps else None

    def log(self, record: dict[str, Any]) -> None:
        """Append to `metrics.jsonl`."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

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


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a stop in the middle leaves the old one."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; what a stop cut short at its end is left out."""
    return list(_read(path))


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                return  # a stop cut the last line
