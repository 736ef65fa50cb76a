"""Lock: one process at a time works in a run's folder.

The file `lock` is locked until the process ends. On a file system without locks, `status.json` says
whether another process is at work.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import socket
import sys
from pathlib import Path
from typing import IO

from agents.base.status import read_status

FRESH_SECONDS = 150
"""A status of another host that is older than this belongs to a run that was killed: a run at work
writes its status every minute."""

_locks: dict[Path, IO[str]] = {}
"""The lock files of this process, by path.

They stay open: a process loses its lock on a file when it closes any descriptor of the file.
"""


def lock(folder: Path) -> str | None:
    """Lock a run's folder until this process ends. A warning says if the disk has no locks.

    Args:
        folder: The folder.

    Returns:
        `None`, or an error text if another process uses the folder.
    """
    path = (folder / "lock").resolve()
    if path in _locks:  # the process that started the run resumes it
        return None
    if path.exists() and not path.is_file():  # opening a pipe would block
        return f"{folder / 'lock'}: it is not a file. Remove it"
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return f"another process is at work in {folder}: wait for it, or stop it"
    except OSError as error:  # a file system without locks
        file.close()
        if other := _at_work(folder):
            return (
                f"{other} is at work in {folder}, by {folder / 'status.json'}: wait for it, or "
                "stop it. If it no longer runs, delete that file"
            )
        print(
            f"warning: {folder} can't be locked ({error.strerror}): start no other process in it",
            file=sys.stderr,
        )
        return None
    _locks[path] = file
    return None


def _at_work(folder: Path) -> str:
    """The name of another process that is at work by its status; empty without one."""
    status = read_status(folder / "status.json")
    host, pid = status.get("host"), status.get("pid")
    if status.get("state") != "running" or type(pid) is not int:
        return ""
    if host == socket.gethostname():
        works = pid != os.getpid() and Path(f"/proc/{pid}").exists()
    else:
        works = _age(status.get("time")) < FRESH_SECONDS
    return f"process {pid} on {host}" if works else ""


def _age(time: object) -> float:
    """The seconds since a time of `status.json`; infinite if it is not a time."""
    try:
        then = datetime.datetime.fromisoformat(str(time))
        return (datetime.datetime.now(datetime.UTC) - then).total_seconds()
    except (ValueError, TypeError):
        return float("inf")
