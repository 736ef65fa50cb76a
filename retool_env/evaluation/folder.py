"""Writing the records of an evaluation: the folder is locked, resumed, and appended to."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from retool_env.errors import SettingsError
from retool_env.evaluation.identity import fingerprint
from retool_env.evaluation.kinds import kind_of
from retool_env.evaluation.records import (
    EPISODES,
    EVAL,
    FIGURES,
    LOCK,
    SCHEMA,
    USAGE,
    EpisodeRecord,
    EvalRecord,
    Status,
    read_episodes,
    read_record,
    read_usage,
)
from retool_env.metrics.figures import Figure
from retool_env.metrics.summary import Summary
from retool_env.problem import Problem
from retool_env.rollout.policy import AnsweredAs, Usage


class Records:
    """The folder of one evaluation, open for writing.

    Args:
        folder: The folder; it is made.
        record: The evaluation. At a resume it must agree with the record of the folder.
        problems: The problems, in their order. At a resume the problems of the folder come first
            among them, or they are the first of the folder's problems.
        resume: Whether the folder's evaluation is continued.
        force: Whether a folder of another revision of the environment is continued.

    Raises:
        SettingsError: The folder holds an evaluation and `resume` is false, holds a different
            evaluation, or another process works in it.
        DataError: The folder's records are damaged.
    """

    file = EVAL
    """The name of the file of the record."""
    written: tuple[str, ...] = (FIGURES, USAGE)
    """Further files that are written into the folder."""
    read_record: Callable[[Path], EvalRecord] = staticmethod(read_record)
    """Reads the record of a folder."""
    read_episodes: Callable[..., Iterator[EpisodeRecord]] = staticmethod(read_episodes)
    """Reads the episodes of a folder."""

    def __init__(
        self,
        folder: Path,
        record: EvalRecord,
        problems: Sequence[Problem],
        resume: bool = False,
        force: bool = False,
    ) -> None:
        self.folder = folder
        self.ended: dict[Any, bool] = {}
        """The episodes on record, each with whether it failed."""
        self.usage = Usage()
        """Tokens of all answered requests on record."""
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self._lock = _locked(folder)
        try:
            self.record = self._begun(record, problems, resume, force)
            self._write_record()
        except BaseException:
            self._lock.close()
            raise

    @classmethod
    def check(cls, folder: Path, resume: bool = False, locked: bool = False) -> bool:
        """Checks that an evaluation can begin or go on in a folder. Nothing is written.

        Args:
            folder: The folder; it may be missing.
            resume: Whether the folder's evaluation is continued.
            locked: Whether the caller holds the folder's lock.

        Returns:
            Whether the folder holds an evaluation to continue.

        Raises:
            SettingsError: The folder holds a record of another kind, an evaluation although
                `resume` is false, or a file that would be overwritten.
        """
        if (folder / cls.file).exists():
            if resume:
                return True
            if not locked:
                _locked(folder).close()  # an error if another process is at work in it
            raise SettingsError(
                f"{folder} holds an evaluation already: continue it with --resume, choose "
                "another --name or --out, or remove the folder"
            )
        if kind := kind_of(folder):
            raise SettingsError(f"{folder} holds {kind}: choose another --name or --out")
        if (folder / EPISODES).exists():
            raise SettingsError(
                f"{folder} has episodes but no {cls.file}: another command may need "
                "them, so choose another --name or --out"
            )
        for name in cls.written:
            if (folder / name).exists():
                raise SettingsError(
                    f"{folder / name} would be overwritten: choose another --name or --out"
                )
        return False

    def _begun(
        self, record: EvalRecord, problems: Sequence[Problem], resume: bool, force: bool
    ) -> EvalRecord:
        if not self.check(self.folder, resume, locked=True):
            return record
        before = self.read_record(self.folder)
        self.ended = self._ended(self.folder, before, record, problems, force)
        drop_half_line(self.folder / EPISODES)
        drop_half_line(self.folder / USAGE)
        self.usage = read_usage(self.folder)
        return dataclasses.replace(
            record,
            started=before.started,
            seconds=before.seconds,
            answered_as=before.answered_as,
            left_out=before.left_out,
            status="running",
            model_date=record.model_date or before.model_date,
        )

    @classmethod
    def ended_before(
        cls, folder: Path, record: EvalRecord, problems: Sequence[Problem], force: bool = False
    ) -> dict[Any, bool]:
        """The episodes that a resumed evaluation has on record, each with whether it failed.

        Nothing is written, and the folder is not locked.

        Args:
            folder: The folder; it may be missing.
            record: The evaluation that would be resumed.
            problems: The problems; see `Records`.
            force: Whether a folder of another revision of the environment is continued.

        Raises:
            SettingsError: The folder holds a different evaluation.
            DataError: The folder's records are damaged.
        """
        if not (folder / cls.file).exists():
            return {}
        return cls._ended(folder, cls.read_record(folder), record, problems, force)

    @classmethod
    def _ended(
        cls,
        folder: Path,
        before: EvalRecord,
        record: EvalRecord,
        problems: Sequence[Problem],
        force: bool,
    ) -> dict[Any, bool]:
        """`ended_before`, with the record of the folder.

        Args:
            folder: The folder.
            before: The record of the folder.
            record: The evaluation that is resumed.
            problems: The problems of the resumed evaluation.
            force: Whether a folder of another revision of the environment is continued.
        """
        differences = record.differences(before)
        if force:
            differences = [each for each in differences if not each.startswith("revision:")]
        if fingerprint(problems[: before.problems]) != before.fingerprint and (
            before.problems <= len(problems)
        ):
            differences.append(f"problems: the first {before.problems} are other problems")
        ended, changed = {}, set()
        # The fingerprint covers all problems of the last start, which may have had fewer of them.
        texts = {problem.id: (problem.question, problem.answer) for problem in problems}
        for each in cls.read_episodes(folder, tokens=False):
            ended[each.key] = each.failed
            problem = each.transcript.problem
            if texts.get(each.problem, found := (problem.question, problem.answer)) != found:
                changed.add(each.problem)
        if changed:
            name = min(changed)
            differences.append(
                f"problems: {len(changed)} problems on record have another question or answer, "
                f"such as {name!r:.60}"
            )
        if differences:
            raise SettingsError(
                f"{folder} holds another evaluation, so it can't be resumed; this one differs in "
                f"{'; '.join(differences)}"
            )
        return ended

    def append(self, episode: EpisodeRecord) -> None:
        """Writes a finished episode."""
        append_line(self.folder / EPISODES, episode.to_json())
        self.ended[episode.key] = episode.failed

    def charge(self, usage: Usage) -> None:
        """Writes the tokens of an answered request."""
        append_line(self.folder / USAGE, dataclasses.asdict(usage))
        self.usage += usage

    def note_answer(self, names: AnsweredAs) -> None:
        """Writes what an answer calls its model, if the record does not have it yet."""
        values = dataclasses.asdict(names)
        if values not in self.record.answered_as:
            known = [*self.record.answered_as, values]
            self.record = dataclasses.replace(self.record, answered_as=known)
            self._write_record()

    def note_left_out(self, field: str) -> None:
        """Writes a field that the API refused, if the record does not have it yet."""
        if field not in self.record.left_out:
            known = [*self.record.left_out, field]
            self.record = dataclasses.replace(self.record, left_out=known)
            self._write_record()

    def close(self, status: Status, seconds: float, cost: float | None = None) -> None:
        """Writes how the evaluation ended, and frees the folder.

        Args:
            status: `finished` or `stopped`.
            seconds: Seconds of work in this start.
            cost: Dollars of all starts; `None` without a price.
        """
        self.record = dataclasses.replace(
            self.record,
            status=status,
            seconds=round(self.record.seconds + seconds, 1),
            usage=dataclasses.asdict(self.usage) if self.usage.requests else None,
            cost=cost,
        )
        self._write_record()
        self._lock.close()

    def write_figures(self, figures: list[Figure], summary: Summary) -> None:
        """Writes `figures.json`: the figures, and the summary that tables are made of."""
        values = {"schema": SCHEMA, "figures": [figure.to_json() for figure in figures]}
        replace_json(self.folder / FIGURES, {**values, "summary": summary.to_json()})

    def remove(self) -> None:
        """Removes the folder of an evaluation without episodes; other files in it stay."""
        with contextlib.suppress(OSError):
            for name in (self.file, EPISODES, FIGURES):
                (self.folder / name).unlink(missing_ok=True)
            if not (self.folder / LOCK).stat().st_size:  # a user's file of this name has a content
                (self.folder / LOCK).unlink()
            for path in self._made:
                path.rmdir()

    def _write_record(self) -> None:
        replace_json(self.folder / self.file, self.record.to_json())


def _locked(folder: Path) -> IO[str]:
    """The folder's lock, held until it is closed or the process ends."""
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out must be a folder, but {folder} is not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    if path.exists() and not path.is_file():  # a pipe would block the process
        raise SettingsError(f"{path} is not a file: remove it")
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (it stays open)
    try:
        import fcntl
    except ImportError:  # Windows
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise SettingsError(
            f"another process works in {folder}: wait for its end, or choose another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    return file


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Appends a line by one system call, so that a killed process leaves whole lines.

    Without room on the disk the part that was written is removed: a line of another episode, which
    ends at the same moment, may still fit.
    """
    line = json.dumps(values).encode() + b"\n"
    with open(path, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(size)
            raise


def replace_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file in one step, so that a reader sees the old values or the new ones."""
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "w", encoding="utf-8") as file:
            file.write(json.dumps(values, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())  # or a power failure might leave an empty file
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def drop_half_line(path: Path) -> None:
    """Removes the rest of a line whose writer was killed."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        while position:
            start = max(position - 65_536, 0)
            file.seek(start)
            block = file.read(position - start)
            if (at := block.rfind(b"\n")) >= 0:
                position = start + at + 1
                break
            position = start
        if position < end:
            file.truncate(position)
