"""Rotation: a file of transcripts that grows without end, in closed parts and one open file.

The path `transcripts.jsonl` names all of them. When the open file is large, it is closed: it is
renamed to `transcripts.<first>-<last>.jsonl`, with the first and the last optimizer step of its
episodes, and compressed to `transcripts.<first>-<last>.jsonl.gz`. A closed part is never changed.
The lines of the parts, in the order of their steps, and of the open file are one stream. A line
keeps its number and its offset in the stream when the file that holds it is closed.

A kill at any moment leaves the same stream. While a plain and a compressed file of one part exist,
the plain file counts. The next start of the run calls `complete`, which finishes the closing.
Readers may read while the run closes parts: each line is read once.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import Self

PART_BYTES = 64 << 20
"""The size, in bytes, from which an open file is closed before more is written."""

COMPRESSED_BYTES = (1 << 32) - 1
"""The largest size, in bytes, of a part that is compressed. A larger part stays a plain file,
because a gzip file records its uncompressed length modulo 2**32."""

_OPEN = re.compile(r"transcripts(?:-\d+)?\.jsonl")
_CLOSED = re.compile(r"(transcripts(?:-\d+)?)\.(\d+)-(\d+)\.jsonl(\.gz)?")
_UNFINISHED = ".gz.unfinished"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A closed part of a file of transcripts."""

    path: Path
    """The file. It is plain if its compression was interrupted, or it is too large for it."""
    first: int
    """The step of its first episode."""
    last: int
    """The step of its last episode."""


def closed_parts(path: str | os.PathLike[str]) -> list[Part]:
    """The closed parts of a file of transcripts, in their order.

    Args:
        path: The path of the open file. A file of another name has no closed parts.
    """
    path = Path(path)
    if not _OPEN.fullmatch(path.name) or not path.parent.is_dir():
        return []
    found: dict[tuple[int, int], Path] = {}
    # The plain file of a part comes after the compressed one, and counts.
    for name in sorted(os.listdir(path.parent), reverse=True):
        if (match := _CLOSED.fullmatch(name)) and f"{match[1]}.jsonl" == path.name:
            found[int(match[2]), int(match[3])] = path.parent / name
    return [Part(found[steps], *steps) for steps in sorted(found)]


def parts(path: str | os.PathLike[str]) -> list[Path]:
    """The files that a path names: the closed parts, if any, and the file itself if it exists."""
    while True:
        closed = closed_parts(path)
        last = [Path(path)] if os.path.lexists(path) else []
        if closed == closed_parts(path):  # no part was closed in this moment
            return [*(part.path for part in closed), *last]


def open_names(folder: Path) -> set[str]:
    """The names of the files of transcripts in a folder, also of a file with closed parts only."""
    names = os.listdir(folder)
    closed = (match for name in names if (match := _CLOSED.fullmatch(name)))
    return {name for name in names if _OPEN.fullmatch(name)} | {f"{m[1]}.jsonl" for m in closed}


def open_part(path: Path) -> BufferedIOBase:
    """Open a plain or a compressed file for reading."""
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def opened[F: BufferedIOBase](
    path: str | os.PathLike[str], open_file: Callable[[Path], F]
) -> Iterator[tuple[Path, F]]:
    """Open the files that a path names, one after another, while a run may close parts.

    Args:
        path: The path of the open file.
        open_file: Opens one of the files for reading.

    Yields:
        A file and its open file object, which is closed when the next one is asked for.

    Raises:
        FileNotFoundError: If there is no file.
    """
    path, read = Path(path), None
    while True:
        for part in _closed_after(path, read):
            name, file = _of_closed(part.path, lambda found: (found, open_file(found)))
            with file:
                yield name, file
            read = part
        try:
            last = open_file(path)
        except FileNotFoundError:
            if _closed_after(path, read):
                continue
            if read is None:
                raise
            return
        with last:
            if _closed_after(path, read):  # it was closed, and this may be its successor
                continue
            yield path, last
        return


def close_part(path: Path, first: int, last: int) -> Part:
    """Close the open file, so that the next episode begins a new file.

    Args:
        path: The open file.
        first: The step of its first episode.
        last: The step of its last episode.
    """
    plain = path.with_name(f"{path.stem}.{first}-{last}.jsonl")
    path.rename(plain)
    path.touch()
    return Part(compress(plain), first, last)


def compress(plain: Path) -> Path:
    """Compress a closed part, and delete the plain file. Returns the file of the part.

    The plain file stays if it is too large (`COMPRESSED_BYTES`), or if the disk is full.
    """
    if plain.stat().st_size > COMPRESSED_BYTES:
        return plain
    target, unfinished = (plain.with_name(plain.name + end) for end in (".gz", _UNFINISHED))
    try:
        with open(plain, "rb") as source, open(unfinished, "wb") as file:
            with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6) as packed:
                shutil.copyfileobj(source, packed, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        _log.warning("%s stays uncompressed until the run's next start: %s", plain, error)
        with contextlib.suppress(OSError):
            unfinished.unlink()
        return plain
    unfinished.replace(target)
    _sync(target.parent)  # a power failure must not undo the renaming after the deletion
    plain.unlink()
    return target


def complete(path: Path) -> None:
    """Finish what a kill has interrupted: compress plain parts, delete unfinished files.

    Only the process that writes the file may call it.

    Args:
        path: The path of the open file.
    """
    for part in closed_parts(path):
        if part.path.suffix != ".gz":
            compress(part.path)
    for left in path.parent.glob(f"{path.stem}.*{_UNFINISHED}"):
        if _CLOSED.fullmatch(left.name.removesuffix(_UNFINISHED)):
            left.unlink()


def delete(part: Path) -> None:
    """Delete a closed part.

    Args:
        part: The part's file, plain or compressed.
    """
    plain = _plain(part)
    for path in (plain.with_name(f"{plain.name}.gz"), plain):  # the file that counts is the last
        path.unlink(missing_ok=True)


def reopen(path: Path, part: Path, kept: Path) -> None:
    """Replace the last closed part by an open file with the lines of it that are kept.

    The kept lines are there once at each moment, so a kill in the middle loses or doubles none.

    Args:
        path: The open file. Its lines are dropped.
        part: The part's file, plain or compressed.
        kept: The file with the kept lines.
    """
    with open(kept, "rb") as file:
        os.fsync(file.fileno())
    path.unlink(missing_ok=True)
    plain = _plain(part)
    kept.replace(plain)
    plain.with_name(f"{plain.name}.gz").unlink(missing_ok=True)
    plain.rename(path)


def length(path: Path) -> int:
    """The number of bytes of a plain or compressed file, uncompressed."""
    if path.suffix != ".gz":
        return path.stat().st_size
    if not _CLOSED.fullmatch(path.name):  # it may be longer than 4 GiB, or have several members
        with gzip.open(path) as packed:
            return packed.seek(0, os.SEEK_END)
    with open(path, "rb") as file:  # a gzip file ends with its length
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little")


def state(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Numbers of the files that a path names, which change when the files change."""
    numbers: list[int] = []
    for part in parts(path):
        with contextlib.suppress(FileNotFoundError):  # it was compressed in this moment
            stat = os.stat(part)
            numbers += stat.st_ino, stat.st_size, stat.st_mtime_ns
    return tuple(numbers)


class Stream:
    """Reads the stream of a file's parts at any offset. It is a context manager.

    It reads the lines up to its making, and the lines that were written since, unless the run has
    closed the open file.

    Args:
        path: The path of the open file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: BufferedIOBase | None = None
        while True:
            closed = closed_parts(path)
            with contextlib.suppress(FileNotFoundError):
                self._last = open_part(path)
            if not _closed_after(path, closed[-1] if closed else None):
                break
            if self._last is not None:  # it may be the successor of a file that was closed
                self._last.close()
                self._last = None
        self._closed = [(part.path, _of_closed(part.path, length)) for part in closed]
        self._number = -1
        self._file: BufferedIOBase | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in (self._file, self._last):
            if file is not None:
                file.close()

    @property
    def size(self) -> int:
        """The number of bytes of the stream."""
        size = sum(size for _, size in self._closed)
        if self._last is None:
            return size
        if self._path.suffix == ".gz":
            return size + length(self._path)
        return size + os.fstat(self._last.fileno()).st_size

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from an offset on."""
        found = b""
        while count > len(found) and (file := self._at(offset + len(found))) is not None:
            if not (some := file.read(count - len(found))):
                break
            found += some
        return found

    def line(self, offset: int, most: int) -> bytes:
        """The line at an offset, or its first `most` bytes; empty at the end of the stream."""
        file = self._at(offset)
        return b"" if file is None else file.readline(most)

    def lines(self, offset: int, most: int) -> Iterator[bytes]:
        """Yield the lines from an offset on, each up to `most` bytes."""
        while line := self.line(offset, most):
            yield line
            offset += len(line)

    def _at(self, offset: int) -> BufferedIOBase | None:
        """The file of an offset, at its place; `None` behind the end."""
        for number, (path, size) in enumerate(self._closed):
            if offset < size:
                if number != self._number:
                    if self._file is not None:
                        self._file.close()
                    self._file = _of_closed(path, open_part)
                    self._number = number
                assert self._file is not None
                self._file.seek(offset)
                return self._file
            offset -= size
        if self._last is not None:
            self._last.seek(offset)
        return self._last


def _closed_after(path: Path, part: Part | None) -> list[Part]:
    """The closed parts behind a part; all of them if it is `None`."""
    before = (-1, -1) if part is None else (part.first, part.last)
    return [each for each in closed_parts(path) if (each.first, each.last) > before]


def _of_closed[T](path: Path, use: Callable[[Path], T]) -> T:
    """Use the file of a closed part, also if it was compressed since it was listed."""
    try:
        return use(path)
    except FileNotFoundError:
        if path.suffix == ".gz":
            raise
        return use(path.with_name(f"{path.name}.gz"))


def _plain(part: Path) -> Path:
    """The path of a part's plain file."""
    return part.with_name(part.name.removesuffix(".gz"))


def _sync(folder: Path) -> None:
    """Write a folder's entries to the disk, where the file system allows it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
