"""Reads files that a user names: only regular files, and only as much as fits in memory.

Reading a pipe or a device might never end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from retool_env.errors import DataError
from retool_env.rotation import open_part, opened

MOST_TEXT = 16 << 20
"""The largest size, in bytes, of a file that is read at once: settings, a prompt template."""

MOST_LINE = 64 << 20
"""The largest size, in bytes, of one line of a file that is read line by line."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def file_fault(path: str | os.PathLike[str]) -> str:
    """The reason, as a clause, why a path cannot be read as a file; empty if it can.

    Example:
        >>> file_fault("/dev/zero")
        "'/dev/zero' is a device, not a regular file"
    """
    named = repr(path) if isinstance(path, str) else os.fspath(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return f"there is no file {named}"
    except (OSError, ValueError) as error:  # the name is too long, or holds a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        return f"there is no file {named:.200}: {reason}"
    if stat.S_ISREG(mode):
        return ""
    return f"{named} is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file"


def folder_fault(path: str | os.PathLike[str]) -> str:
    """The reason why reading a model at a path might never end; empty if the path is safe.

    The reason is a pipe or a device at the path, or in the folder at the path.
    """
    if not os.path.isdir(path):
        return file_fault(path) if os.path.exists(path) else ""
    for entry in os.scandir(path):
        if entry.is_file() or entry.is_dir() or not os.path.exists(entry):
            continue
        return file_fault(entry)
    return ""


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a small file.

    Raises:
        ValueError: If the path is not a regular file, or the file is not UTF-8 or is larger than
            `MOST_TEXT`.
    """
    check_regular(path)
    with open(path, "rb") as file:
        content = file.read(MOST_TEXT + 1)
    if len(content) > MOST_TEXT:
        raise DataError(
            f"{os.fspath(path)} is larger than {MOST_TEXT >> 20} MiB: use a smaller file"
        )
    return content.decode("utf-8")


def read_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the lines of a file, with their line breaks. Names that end with `.gz` are compressed.

    The path of a file of transcripts that was rotated also names its closed parts, see `rotation`.

    Raises:
        ValueError: If the path is not a regular file, or a line is longer than `MOST_LINE`.
    """
    check_regular(path)
    for part, file in opened(path, open_part):
        yield from bounded_lines(file, os.fspath(part))


def bounded_lines(file: BufferedIOBase, name: str) -> Iterator[bytes]:
    """Yield the lines of an open file, with their line breaks.

    Args:
        file: The open binary file.
        name: The name of the file, for the error.

    Raises:
        ValueError: If a line is longer than `MOST_LINE`.
    """
    for number, line in enumerate(iter(lambda: file.readline(MOST_LINE + 1), b""), 1):
        if len(line) > MOST_LINE:
            raise DataError(
                f"{name}, line {number} is longer than {MOST_LINE >> 20} MiB: split or remove it"
            )
        yield line


def check_regular(path: str | os.PathLike[str]) -> None:
    """Check that a path, if it exists, is a regular file.

    Raises:
        ValueError: If the path is a folder, a pipe, a socket or a device.
    """
    if (fault := file_fault(path)) and Path(path).exists():
        raise DataError(fault)
