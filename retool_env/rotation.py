"""Rotation: a file of transcripts that grows without end, in closed parts and one open file.

The path `transcripts.jsonl` names all of them. When the open file is large, it is closed: it is
renamed to `transcripts.<first>-<last>.jsonl`, with the first and the last optimizer step of its
episodes, and compressed to `transcripts.<first>-<last>.jsonl.gz`. A closed part is never changed.
The lines of the parts, in the order of their steps, and of the open file are one stream. A line
keeps its number and its offset in the stream when the file that holds it is closed.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import Self

PART_BYTES = 64 << 20
"""The size, in bytes, from which an open file is closed before more is written."""

_OPEN = re.compile(r"transcripts(?:-\d+)?\.jsonl")
_CLOSED = re.compile(r"(transcripts(?:-\d+)?)\.(\d+)-(\d+)\.jsonl(\.gz)?")


@dataclass(frozen=True)
class Part:
    """A closed part of a file of transcripts."""

    path: Path
    """The file, compressed unless its compression was interrupted."""
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
    for name in sorted(os.listdir(path.parent)):  # a compressed part comes after the same one plain
        if (match := _CLOSED.fullmatch(name)) and f"{match[1]}.jsonl" == path.name:
            found[int(match[2]), int(match[3])] = path.parent / name
    return [Part(found[steps], *steps) for steps in sorted(found)]


def parts(path: str | os.PathLike[str]) -> list[Path]:
    """The files that a path names: the closed parts, if any, and the file itself if it exists."""
    closed = [part.path for part in closed_parts(path)]
    return [*closed, Path(path)] if os.path.lexists(path) else closed


def open_names(folder: Path) -> set[str]:
    """The names of the files of transcripts in a folder, also of a file with closed parts only."""
    names = os.listdir(folder)
    closed = (match for name in names if (match := _CLOSED.fullmatch(name)))
    return {name for name in names if _OPEN.fullmatch(name)} | {f"{m[1]}.jsonl" for m in closed}


def open_part(path: Path) -> BufferedIOBase:
    """Open a plain or a compressed file for reading."""
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def close_part(path: Path, first: int, last: int) -> Part:
    """Close the open file, so that the next episode begins a new file.

    A kill at any moment loses nothing: the plain part counts until the compressed one is complete.

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
    """Compress a closed part, and delete the plain file. Returns the compressed file."""
    target, unfinished = (plain.with_name(plain.name + end) for end in (".gz", ".gz.unfinished"))
    with open(plain, "rb") as source, gzip.open(unfinished, "wb", compresslevel=6) as packed:
        shutil.copyfileobj(source, packed, 1 << 20)
    unfinished.replace(target)
    plain.unlink()
    return target


def length(path: Path) -> int:
    """The number of bytes of a plain or compressed file, uncompressed."""
    if path.suffix != ".gz":
        return path.stat().st_size
    with open(path, "rb") as file:  # a member of a gzip file ends with its length
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little")


class Stream:
    """Reads the stream of a file's parts at any offset. It is a context manager.

    Args:
        path: The path of the open file.
    """

    def __init__(self, path: Path) -> None:
        self._parts = parts(path)
        self._sizes = [length(part) for part in self._parts]
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
        if self._file is not None:
            self._file.close()

    @property
    def size(self) -> int:
        """The number of bytes of the stream."""
        return sum(self._sizes)

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
        """The open part of an offset, at its place; `None` behind the end."""
        for number, size in enumerate(self._sizes):
            last = number + 1 == len(self._sizes)  # which may have grown
            if offset < size or last:
                if number != self._number:
                    if self._file is not None:
                        self._file.close()
                    self._number, self._file = number, open_part(self._parts[number])
                assert self._file is not None
                self._file.seek(offset)
                return self._file
            offset -= size
        return None
