"""Recorded runs of every kind, read in one way: evaluations, recovery benchmarks, trainings, files.

| kind       | path                                  | episodes                                    |
|------------|---------------------------------------|---------------------------------------------|
| `eval`     | a folder of `retool eval`             | `episodes.jsonl`                            |
| `recover`  | a model's folder of `retool recover`  | `episodes.jsonl`, each with its arm         |
| `training` | a folder of `python -m agents`        | `transcripts*.jsonl` of every process, with |
|            |                                       | closed parts, and `eval-<step>.jsonl`       |
| `file`     | a file of transcripts or of episodes  | its lines                                   |

`RUN@STEP` names the evaluation on held-out problems after a step of a training run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retool_env.errors import DataError, MissingFile, SettingsError
from retool_env.evaluation.records import (
    EPISODES,
    EVAL,
    OLD_EPISODES,
    OLD_EVAL,
    EvalRecord,
    transcript_from_json,
)
from retool_env.evaluation.recover.records import RECOVER, read_recover
from retool_env.evaluation.rows import describe
from retool_env.files import file_fault, read_lines, read_text
from retool_env.rollout.policy import Usage
from retool_env.rotation import open_names
from retool_env.transcript import Transcript

RunKind = Literal["eval", "recover", "training", "file"]
"""The kind of a run."""

CONFIG, METRICS, DONE = "config.json", "metrics.jsonl", "done"
"""The settings and the figures of the steps of a training run, and the mark of its end."""

_HELD_OUT = re.compile(r"eval-(\d+)\.jsonl")
_AT_STEP = re.compile(r"(.+)@(\d+)")


@dataclass(frozen=True)
class Place:
    """The place of an episode in a run: everything that is known of it beside its transcript."""

    address: str
    """The name of the episode, unique in its run: `PROBLEM/SAMPLE`; in a benchmark of recovery
    `PROTOCOL/ARM/PROBLEM/SAMPLE`, and `PROTOCOL/ARM/PROBLEM/PARENT.CALL/SAMPLE` for a fork; in a
    training run `step-STEP/PROBLEM/SAMPLE` on held-out problems and `FILE/LINE` for a rollout; in a
    file `line/LINE`."""
    problem: str
    """The problem's id."""
    sample: int = 0
    """The number of the episode among the episodes of its problem (and arm), from 0."""
    protocol: str = ""
    """The protocol of the benchmark of recovery; empty elsewhere."""
    arm: str = ""
    """The arm of that protocol; empty elsewhere."""
    parent: int | None = None
    """The number of the parent of a fork; `None` elsewhere."""
    call: int = 0
    """The number of the call at which a fork begins, from 1; 0 elsewhere."""
    step: int | None = None
    """The step of an evaluation on held-out problems; `None` elsewhere."""
    error: str | None = None
    """The words of an API that refused a request of the episode."""
    usage: Usage | None = None
    """Tokens that an API counted; `None` where no API counted."""


@dataclass(frozen=True)
class RunFile:
    """A file of episodes of a run."""

    path: Path
    """The file."""
    step: int | None = None
    """The step, if it holds an evaluation on held-out problems."""


@dataclass(frozen=True)
class Run:
    """A recorded run."""

    path: Path
    """The folder or the file."""
    kind: RunKind
    """The kind."""
    title: str
    """A short name for tables and pages."""
    files: tuple[RunFile, ...]
    """The files of episodes. A run that has just begun may have none."""
    record: EvalRecord | None = None
    """The record of an evaluation, or a `RecoverRecord`; `None` for the other kinds."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The content of a training run's `config.json`; empty for the other kinds."""
    step: int | None = None
    """The step, if the run is one evaluation of a training run (`RUN@STEP`)."""

    def episodes(
        self, tokens: bool = True, only: Collection[str] | None = None
    ) -> Iterator[tuple[Place, Transcript]]:
        """Yields the episodes with their places; of several lines of one episode the last one.

        A last line without a line break is left out, since its writer was killed or still writes.

        Args:
            tokens: Whether token ids and log-probs are kept. Without them, an episode needs a
                fraction of the memory.
            only: The addresses of the episodes; `None`: all.

        Raises:
            DataError: A line is damaged; the message names it.
        """
        for file in self.files:
            places = Places(self.kind, file)
            last: dict[str, tuple[int, Place]] = {}
            for number, line in enumerate(_whole_lines(file.path), 1):
                place = places.of(number, values_of(file.path, number, line))
                last[place.address] = number, place
            wanted = {
                number: place
                for address, (number, place) in last.items()
                if only is None or address in only
            }
            for number, line in enumerate(_whole_lines(file.path), 1):
                if number in wanted:
                    values = values_of(file.path, number, line)
                    yield wanted[number], transcript_of(file.path, number, values, tokens)

    def episode(self, address: str, tokens: bool = True) -> tuple[Place, Transcript]:
        """The episode with this address.

        Args:
            address: The address; see `Place.address`.
            tokens: See `episodes`.

        Raises:
            SettingsError: The run has no such episode.
            DataError: A line is damaged; the message names it.
        """
        for found in self.episodes(tokens, {address}):
            return found
        known = examples(address, self._addresses())
        raise SettingsError(f"{self.path} has no episode {address!r:.200}: {known}")

    def _addresses(self) -> Iterator[str]:
        for file in self.files:
            places = Places(self.kind, file)
            for number, line in enumerate(_whole_lines(file.path), 1):
                yield places.of(number, values_of(file.path, number, line)).address


def examples(wanted: str, addresses: Iterable[str]) -> str:
    """The end of an error about an unknown address: addresses that hold its text, or the first.

    Args:
        wanted: The unknown address.
        addresses: The addresses that exist.

    Example:
        >>> examples("7", ["sums/3/0", "sums/7/0", "sums/7/1"])
        'its addresses with this part are sums/7/0, sums/7/1'
        >>> examples("8", ["sums/3/0", "sums/7/0", "sums/7/1"])
        'its addresses are such as sums/3/0, sums/7/0, sums/7/1'
    """
    known = list(dict.fromkeys(addresses))
    if alike := [one for one in known if f"/{wanted}/" in f"/{one}/"][:_MOST_EXAMPLES]:
        return f"its addresses with this part are {', '.join(alike)}"
    first = known[:_MOST_EXAMPLES]
    return f"its addresses are such as {', '.join(first)}" if first else "it has none at all"


_MOST_EXAMPLES = 4


class Places:
    """The places of the lines of one file, which are asked for in the order of the lines.

    Args:
        kind: The kind of the run.
        file: The file.
        samples: The `samples` of the lines before, where reading goes on after them.
    """

    def __init__(
        self, kind: RunKind, file: RunFile, samples: Mapping[str, int] | None = None
    ) -> None:
        self._kind = kind
        self._file = file
        self.samples = dict(samples or {})
        """The number of lines so far by the problem's id, where lines do not hold it."""

    def of(self, number: int, values: Mapping[str, Any]) -> Place:
        """The place of a line.

        Args:
            number: The number of the line, from 1.
            values: The values of the line.

        Raises:
            DataError: The line is not an episode.
        """
        try:
            return self._of(number, values)
        except (KeyError, TypeError, ValueError, OverflowError) as error:  # the last: Infinity
            raise _damaged(self._file.path, number, error) from None

    def _of(self, number: int, values: Mapping[str, Any]) -> Place:
        wrapped = "transcript" in values
        problem = str(values["problem"] if wrapped else values["problem"]["id"])
        if self._kind in ("eval", "recover") and wrapped:
            sample, used = int(values["sample"]), values.get("usage")
            told: dict[str, Any] = {"error": values.get("error")}
            told["usage"] = None if used is None else Usage(**used)
            if "arm" not in values:
                return Place(f"{problem}/{sample}", problem, sample, **told)
            protocol, arm = str(values["protocol"]), str(values["arm"])
            parent, call = values["parent"], int(values["call"])
            where = "" if parent is None else f"{parent}.{call}/"
            address = f"{protocol}/{arm}/{problem}/{where}{sample}"
            return Place(address, problem, sample, protocol, arm, parent, call, **told)
        sample = self.samples.get(problem, 0)
        self.samples[problem] = sample + 1
        if self._file.step is not None:
            address = f"step-{self._file.step}/{problem}/{sample}"
            return Place(address, problem, sample, step=self._file.step)
        if self._kind == "eval":  # an earlier version's folder
            return Place(f"{problem}/{sample}", problem, sample)
        stem = "line" if self._kind == "file" else self._file.path.name.partition(".")[0]
        return Place(f"{stem}/{number}", problem, sample)


def open_run(path: str | Path) -> Run:
    """Opens a recorded run; its episodes are not read yet.

    Args:
        path: The folder or file of a run, or `RUN@STEP`.

    Raises:
        MissingFile: There is no such folder or file.
        DataError: The folder holds no run, or several, or its record is damaged.
    """
    path = Path(path)
    if not path.exists() and (match := _AT_STEP.fullmatch(str(path))):
        return _held_out(open_run(match[1]), int(match[2]))
    if not path.exists():
        raise MissingFile(f"{path} was not found: name the folder of a run, or a file of episodes")
    if not path.is_dir():
        if fault := file_fault(path):
            raise DataError(fault)
        return Run(path, "file", path.name, (RunFile(path),))
    if (path / RECOVER).exists():
        recover = read_recover(path)
        return Run(path, "recover", recover.model.title, _present(path / EPISODES), recover)
    if any((path / name).exists() for name in (EVAL, OLD_EVAL)) or (path / EPISODES).exists():
        record = describe(path)
        files = _present(path / EPISODES) or _present(path / OLD_EPISODES)
        return Run(path, "eval", record.model.title, files, record)
    if (path / CONFIG).exists():
        return Run(path, "training", path.name, _training_files(path), config=_config(path))
    raise DataError(_no_run(path))


def _held_out(run: Run, step: int) -> Run:
    files = tuple(file for file in run.files if file.step == step)
    if not files:
        steps = sorted(file.step for file in run.files if file.step is not None)
        known = ", ".join(map(str, steps)) or "none"
        raise MissingFile(f"{run.path} has no evaluation of step {step}; its steps: {known}")
    title = f"{run.title}@{step}"
    return Run(run.path, "training", title, files, config=run.config, step=step)


def _present(path: Path) -> tuple[RunFile, ...]:
    return (RunFile(path),) if path.exists() else ()


def _training_files(folder: Path) -> tuple[RunFile, ...]:
    names = [path.name for path in folder.iterdir()]
    rollouts = [RunFile(folder / name) for name in sorted(open_names(folder))]
    steps = sorted(int(match[1]) for name in names if (match := _HELD_OUT.fullmatch(name)))
    return (*rollouts, *(RunFile(folder / f"eval-{step}.jsonl", step) for step in steps))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        values = json.loads(read_text(path))
        if isinstance(values, dict) and isinstance(values.get("settings"), dict):
            return values
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if isinstance(values, dict) and "model_type" in values:
        raise DataError(
            f"{folder} is a model's checkpoint, not a run: evaluate it by `retool eval --model "
            f"{folder}`, or name the folder of a run"
        )
    raise DataError(f"{path} is damaged: it is not the record of a training run")


def _no_run(folder: Path) -> str:
    below = sorted(
        path.parent
        for name in (EVAL, RECOVER, CONFIG)
        for path in folder.glob(f"*/{name}")
        if name != CONFIG or (path.parent / METRICS).exists()
    )
    if below:
        return f"{folder} holds {len(below)} runs: name one of them, {', '.join(map(str, below))}"
    return (
        f"{folder} is not the folder of a run: none of {EVAL}, {RECOVER} and {CONFIG} was found in "
        "it"
    )


def _whole_lines(path: Path) -> Iterator[bytes]:
    return (line for line in read_lines(path) if line.endswith(b"\n"))


def values_of(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """The values of a line of any kind of run.

    Args:
        path: The file, for the error.
        number: The number of the line, for the error.
        line: The line.

    Raises:
        DataError: The line is not a JSON object.
    """
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, number, error) from None
    if not isinstance(values, dict):
        raise _damaged(path, number, ValueError("not a JSON object"))
    return values


def transcript_of(
    path: Path, number: int, values: Mapping[str, Any], tokens: bool = True
) -> Transcript:
    """The transcript of a line of any kind of run.

    Args:
        path: The file, for the error.
        number: The number of the line, for the error.
        values: The values of the line.
        tokens: Whether token ids and log-probs are kept.

    Raises:
        DataError: The line is not an episode.
    """
    try:
        return transcript_from_json(dict(values.get("transcript", values)), tokens)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, number, error) from None


def _damaged(path: Path, number: int, error: Exception) -> DataError:
    return DataError(
        f"{path}, line {number} is not an episode ({error!r:.200}): remove the line, or restore it"
    )
