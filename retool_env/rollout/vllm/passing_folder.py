"""Folders for files that another process of the same machine reads for a short while."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MEMORY = "/dev/shm"
_PREFIX = "retool-weights-"


@contextmanager
def passing_folder(size: int) -> Iterator[Path]:
    """A folder for files that another process reads meanwhile; it is removed at the end.

    The folder lies in memory if there is room, else on disk. This process holds a lock on it, so
    that `remove_abandoned` knows whether the owner is still alive. The lock also works where
    containers share that memory but have process numbers of their own.

    Args:
        size: The expected size of the files in bytes.
    """
    import fcntl

    room = shutil.disk_usage(_MEMORY).free if os.path.isdir(_MEMORY) else 0
    made = Path(tempfile.mkdtemp(prefix="retool-", dir=_MEMORY if room > size else None))
    lock = os.open(made, os.O_RDONLY)
    try:
        with suppress(OSError):  # on a file system without locks nothing is ever removed
            fcntl.flock(lock, fcntl.LOCK_EX)
        # The folder gets this name only when it is locked.
        folder = made.rename(made.with_name(_PREFIX + made.name.removeprefix("retool-")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
    finally:
        os.close(lock)


def remove_abandoned() -> None:
    """Remove the folders of `passing_folder` whose processes were killed."""
    import fcntl

    for parent in {_MEMORY, tempfile.gettempdir()}:
        for folder in Path(parent).glob(f"{_PREFIX}*"):
            with suppress(OSError):  # another user's folder, or just removed
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if it is in use
                    shutil.rmtree(folder)
                finally:
                    os.close(lock)
