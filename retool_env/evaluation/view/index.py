"""The index of a run: a row for each episode, and the place of its line in its file.

The first opening reads every line; the index is then kept in a cache file, which the next opening
reads instead. Lines that were appended since are read from where the cache ends. A file that became
shorter, or that differs in its first or last indexed bytes, was replaced, and is read anew.

| cache                              | where                                                      |
|------------------------------------|------------------------------------------------------------|
| `.view-index.json`                 | in the folder of the run                                   |
| `.NAME.view-index.json`            | beside a run that is a file                                |
| `~/.cache/retool-env/view/…json`   | where the run's folder is read-only (`XDG_CACHE_HOME`)     |

A cache is written whole and put in place at once, so that several viewers may share it. A damaged
cache, or a cache of another version, is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retool_env.errors import DataError, RetoolError, SettingsError
from retool_env.evaluation.rows import clean
from retool_env.evaluation.runs import (
    Place,
    Places,
    Run,
    RunFile,
    open_run,
    transcript_of,
    values_of,
)
from retool_env.evaluation.view.rows import FIELDS, make_row
from retool_env.files import MOST_LINE, check_regular
from retool_env.rotation import Stream, state
from retool_env.transcript import Transcript

VERSION = 1
"""The version of the cache's format and of the rows."""

_MARK = 4096
"""The number of bytes at each end of the indexed part of a file that tell a replaced file."""
_SAVE_AFTER = 1 << 20
"""The number of new bytes after which the cache is written again."""

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""The errors of a cache that is missing or damaged."""

Progress = Callable[[int, int], None]
"""A function that is called with the number of read bytes and the number of all bytes."""

Line = tuple[int, int, dict[str, Any]]
"""The number of a line, from 1, its first byte, and its row."""


@dataclass
class _Indexed:
    """The indexed part of one file: whole lines from its beginning."""

    size: int = 0
    """The number of bytes."""
    lines: int = 0
    """The number of lines."""
    mark: str = ""
    """The digest of the first and last bytes."""
    samples: dict[str, int] = field(default_factory=dict)
    """The state of `Places`."""
    damaged: list[str] = field(default_factory=list)
    """A sentence for each line that is not an episode."""
    episodes: dict[str, Line] = field(default_factory=dict)
    """The last line of each episode by its address."""


class Index:
    """The index of one run.

    All methods may be called from any thread. `refresh` reads first; before, there are no rows.

    Args:
        run: The run.
        progress: The function that is called while lines are read; `None`: no calls.
        cache: Whether the cache is read and written.
    """

    def __init__(self, run: Run, progress: Progress | None = None, cache: bool = True) -> None:
        self.run = run
        """The run as it was last opened."""
        self._progress = progress
        self._cache = cache
        self._lock = threading.RLock()
        self._files: dict[RunFile, _Indexed] = {}
        self._where: dict[str, RunFile] = {}
        self._log: list[str] = []  # the addresses of changed episodes, in order
        self._stats: dict[Path, tuple[int, ...]] = {}
        self._unsaved = 0
        self._loaded = not cache

    # --- reading ---------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Reads the lines that the run's files have gained.

        Returns:
            Whether a row was added, changed or removed.

        Raises:
            DataError: A file can't be read, or has a line that is too long.
            OSError: A file can't be read.
        """
        with self._lock:
            before = len(self._log)
            if self._stats:  # not the first time: a run that goes on gains files
                self.run = _opened_again(self.run)
            if not self._loaded:
                self._load()
            for gone in [file for file in self._files if file not in self.run.files]:
                self._forget(gone)
            todo = [(file, self._unread(file)) for file in self.run.files]
            total = sum(unread for _, unread in todo)
            done = 0
            try:
                for file, unread in todo:
                    done += self._read(file, done, total) if unread else 0
            except BaseException:
                self._stats.clear()  # the next time looks at every file again
                raise
            if self._unsaved >= _SAVE_AFTER:
                self._save()
            return len(self._log) > before

    def _unread(self, file: RunFile) -> int:
        """The number of bytes to read; the index of a replaced file is forgotten first."""
        check_regular(file.path)
        if not (seen := state(file.path)):
            self._forget(file)
            return 0
        known = self._files.setdefault(file, _Indexed())
        if self._stats.get(file.path) == seen:
            return 0
        with Stream(file.path) as stream:
            size = stream.size
            replaced = size < known.size or _mark(stream, known.size) != known.mark
        if replaced:
            self._forget(file)
            known = self._files[file] = _Indexed()
        self._stats[file.path] = seen
        return size - known.size

    def _read(self, file: RunFile, done: int, total: int) -> int:
        """Reads whole lines from where the index of a file ends; returns the number of bytes."""
        known = self._files[file]
        places = Places(self.run.kind, file, known.samples)
        start = known.size
        for line in _lines_from(file.path, start, known.lines):
            known.lines += 1
            try:
                row = _row(places, file.path, known.lines, line)
            except DataError as error:
                known.damaged.append(str(error))
            else:
                known.episodes[row["address"]] = known.lines, known.size, row
                self._where[row["address"]] = file
                self._log.append(row["address"])
            known.size += len(line)
            if self._progress and known.lines % 50 == 0:
                self._progress(done + known.size - start, total)
        known.samples = places.samples
        with Stream(file.path) as stream:
            known.mark = _mark(stream, known.size)
        self._unsaved += known.size - start
        if self._progress and known.size > start:
            self._progress(done + known.size - start, total)
        return known.size - start

    def _forget(self, file: RunFile) -> None:
        """Drops the index of a file: its episodes are removed, unless they are read again."""
        dropped = self._files.pop(file, None)
        self._stats.pop(file.path, None)
        for address in dropped.episodes if dropped else ():
            if self._where.get(address) == file:
                del self._where[address]
                self._log.append(address)

    # --- asking ----------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """The rows of all episodes, by the files and the order of their last lines."""
        with self._lock:
            return [row for file in self.run.files for _, _, row in self._lines(file)]

    def changes(self, since: int) -> tuple[list[dict[str, Any]], int, list[str]]:
        """The rows that changed, for a reader who has the rows up to a number of changes.

        Args:
            since: The number that the reader got last; 0: all rows.

        Returns:
            The rows, the number for the next time, and the addresses of removed episodes.
        """
        with self._lock:
            if not 0 < since <= len(self._log):
                return self.rows(), len(self._log), []
            changed = dict.fromkeys(self._log[since:])
            rows = [self.row(address) for address in changed if address in self._where]
            return rows, len(self._log), [each for each in changed if each not in self._where]

    def row(self, address: str) -> dict[str, Any]:
        """The row of an episode.

        Raises:
            SettingsError: The run has no such episode.
        """
        return self._line(address)[1][2]

    def has(self, address: str) -> bool:
        """Whether the run has an episode of this address."""
        with self._lock:
            return address in self._where

    @property
    def damaged(self) -> list[str]:
        """A sentence for each line that is not an episode."""
        with self._lock:
            return [each for file in self.run.files for each in self._indexed(file).damaged]

    def episode(self, address: str, tokens: bool = False) -> tuple[Place, Transcript]:
        """Reads an episode.

        Args:
            address: The address of the episode.
            tokens: Whether token ids and log-probs are kept.

        Raises:
            SettingsError: The run has no such episode.
            DataError: The file was replaced since the last `refresh`.
        """
        with self._lock:
            file, (number, offset, row) = self._line(address)
        with Stream(file.path) as stream:
            line = stream.line(offset, MOST_LINE + 1)
        values = values_of(file.path, number, line)
        problem = values.get("problem")
        key = str(problem.get("id") if isinstance(problem, dict) else problem)
        # Of lines without a number of their own, the count of the problem's lines gives the sample.
        place = Places(self.run.kind, file, {key: row["sample"]}).of(number, values)
        if clean(place.address) != address:
            raise DataError(f"{file.path} was replaced while the viewer reads it: try again")
        return place, transcript_of(file.path, number, values, tokens)

    def search(self, text: str) -> list[str]:
        """The addresses of the episodes that hold a text in question, answer or any span.

        Case does not count. An ASCII text is first looked for in the undecoded line, which is
        several times faster; the line must be written as Python's `json` writes it.

        Args:
            text: The text.

        Raises:
            DataError: A file was replaced since the last `refresh`.
        """
        with self._lock:
            todo = [(file, self._lines(file)) for file in self.run.files]
        return [address for file, lines in todo for address in _holding(file.path, lines, text)]

    def close(self) -> None:
        """Writes the cache, if the index has grown since it was written."""
        with self._lock:
            if self._unsaved:
                self._save()

    def _indexed(self, file: RunFile) -> _Indexed:
        return self._files.get(file, _Indexed())

    def _lines(self, file: RunFile) -> list[Line]:
        """The lines of a file's episodes, in the order of the file."""
        lines = self._indexed(file).episodes.values()
        return sorted((line for line in lines if self._where[line[2]["address"]] == file), key=_at)

    def _line(self, address: str) -> tuple[RunFile, Line]:
        with self._lock:
            file = self._where.get(address)
            if file is None:
                raise SettingsError(f"{self.run.path} has no episode {address!r:.200}")
            return file, self._files[file].episodes[address]

    # --- the cache -------------------------------------------------------------------------------

    def _load(self) -> None:
        self._loaded = True
        for path in _cache_paths(self.run):
            with contextlib.suppress(*_UNREADABLE):
                values = json.loads(path.read_bytes())
                if values["version"] != VERSION or values["kind"] != self.run.kind:
                    continue
                for file in self.run.files:
                    if (cached := values["files"].get(file.path.name)) is not None:
                        self._adopt(file, _from_cache(cached))
                return

    def _adopt(self, file: RunFile, indexed: _Indexed) -> None:
        self._files[file] = indexed
        for address in indexed.episodes:
            self._where[address] = file
            self._log.append(address)

    def _save(self) -> None:
        self._unsaved = 0
        if not self._cache:
            return
        files = {
            file.path.name: {**vars(known), "episodes": list(known.episodes.values())}
            for file, known in self._files.items()
        }
        values = {"version": VERSION, "kind": self.run.kind, "files": files}
        data = json.dumps(values, separators=(",", ":")).encode()
        for path in _cache_paths(self.run):
            with contextlib.suppress(OSError):
                _put_in_place(path, data)
                return


def _at(line: Line) -> int:
    return line[1]


def _opened_again(run: Run) -> Run:
    """The run as it is now; the run as it was while its record is being replaced."""
    with contextlib.suppress(RetoolError, OSError):
        return open_run(run.path if run.step is None else f"{run.path}@{run.step}")
    return run


def _row(places: Places, path: Path, number: int, line: bytes) -> dict[str, Any]:
    values = values_of(path, number, line)
    place = places.of(number, values)
    transcript = transcript_of(path, number, values, tokens=False)
    try:
        return make_row(place, transcript)
    except (TypeError, AttributeError, ValueError, KeyError) as error:  # values of a wrong type
        raise DataError(f"{path}, line {number} is not an episode ({error!r:.200})") from None


def _lines_from(path: Path, start: int, number: int) -> Iterator[bytes]:
    """Yields the whole lines of a file from a byte; `number` lines stand before."""
    with Stream(path) as stream:
        for line in stream.lines(start, MOST_LINE + 1):
            if len(line) > MOST_LINE:
                raise DataError(
                    f"{path}, line {number + 1} is longer than {MOST_LINE >> 20} MiB: split or "
                    "remove it"
                )
            if not line.endswith(b"\n"):
                return
            number += 1
            yield line


def _mark(stream: Stream, size: int) -> str:
    """The digest of the first and of the last bytes of the first `size` bytes of a stream."""
    head = stream.read(0, min(size, _MARK))
    tail = stream.read(max(size - _MARK, 0), min(size, _MARK))
    return hashlib.sha256(head + tail).hexdigest() if size else ""


def _holding(path: Path, lines: Sequence[Line], text: str) -> Iterator[str]:
    """Yields the addresses of the lines that hold a text."""
    folded = text.lower()
    written = json.dumps(folded)[1:-1].encode() if text.isascii() else b""
    if not lines:
        return
    with Stream(path) as stream:
        for number, offset, row in lines:
            line = stream.line(offset, MOST_LINE + 1)
            if written in line.lower() and _holds(values_of(path, number, line), folded):
                yield row["address"]


def _holds(values: dict[str, Any], folded: str) -> bool:
    record = values.get("transcript", values)
    texts = [span["text"] for span in record["spans"]]
    texts += [record["problem"]["question"], record["problem"]["answer"], record.get("answer")]
    return any(folded in str(text).lower() for text in texts if text is not None)


def _cache_paths(run: Run) -> list[Path]:
    """The paths of the cache, the better first."""
    inside = run.path / ".view-index.json"
    beside = (
        inside if run.path.is_dir() else run.path.with_name(f".{run.path.name}.view-index.json")
    )
    if run.step is not None:
        beside = run.path / f".view-index-{run.step}.json"
    resolved = os.path.abspath(run.path) + (f"@{run.step}" if run.step is not None else "")
    name = hashlib.sha256(resolved.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return [beside, home / "retool-env" / "view" / f"{name}.json"]


def _put_in_place(path: Path, data: bytes) -> None:
    """Writes a file whole, in place of the file of this name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")  # another viewer may write as well
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _from_cache(values: dict[str, Any]) -> _Indexed:
    """The index of a file, of the values in a cache.

    Raises:
        KeyError, TypeError, ValueError: The cache is damaged.
    """
    episodes: dict[str, Line] = {}
    for number, offset, row in values["episodes"]:
        if row.keys() != FIELDS:
            raise ValueError("another version's rows")
        episodes[row["address"]] = int(number), int(offset), row
    return _Indexed(
        int(values["size"]),
        int(values["lines"]),
        str(values["mark"]),
        {str(problem): int(number) for problem, number in values["samples"].items()},
        [str(each) for each in values["damaged"]],
        episodes,
    )
