"""Durable writing: files that survive a power failure.

A file system keeps what a program wrote in memory for a while, and may write the new name of a file
before its content. So a file that must survive is synced before anything that relies on it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
"""The errors of file systems that can't sync a file or a folder."""


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk.

    A missing file is skipped: another process has renamed or deleted it since.

    Args:
        path: The file or the folder.

    Raises:
        OSError: If the disk has an error.
    """
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            os.close(descriptor)


def sync_files(folder: Path, pattern: str = "*") -> None:
    """Wait until the content of a folder's files is on the disk, without folders in it.

    Args:
        folder: The folder.
        pattern: The pattern of the files' names.

    Raises:
        OSError: If the disk has an error.
    """
    for path in folder.glob(pattern):
        if path.is_file():
            sync(path)


def sync_tree(folder: Path) -> None:
    """Wait until all files and folders in a folder, and its own entry, are on the disk.

    Args:
        folder: The folder.

    Raises:
        OSError: If the disk has an error.
    """
    for path in folder.rglob("*"):
        if path.is_file() or path.is_dir():
            sync(path)
    sync(folder)
    sync(folder.parent)


def replace_durably(part: Path, path: Path) -> None:
    """Replace a file by a new one: a power failure leaves the old content or the new content.

    Args:
        part: The new file, in the same folder. It takes the other file's name.
        path: The file, which may be missing.

    Raises:
        OSError: If the disk has an error.
    """
    sync(part)
    part.replace(path)
    sync(path.parent)
