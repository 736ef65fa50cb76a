"""Observes processes and file descriptors from the outside."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process; its start time tells it apart from a later process with the same id."""

    pid: int
    started: int
    """The start time, in clock ticks since the boot of the machine."""

    @property
    def alive(self) -> bool:
        """Whether the process exists and is not a zombie."""
        stat = _stat(self.pid)
        return stat is not None and stat[0] != "Z" and int(stat[19]) == self.started


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the state on: [1] is the parent, [19] the start time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # the process has ended
        return None


def children(pid: int) -> list[Process]:
    """The living children of a process, from the oldest to the youngest."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        stat = _stat(int(entry.name))
        if stat is not None and stat[0] != "Z" and int(stat[1]) == pid:
            found.append(Process(int(entry.name), int(stat[19])))
    return sorted(found, key=lambda process: (process.started, process.pid))


def descendants(pid: int) -> list[Process]:
    """The living descendants of a process."""
    found = []
    for child in children(pid):
        found += [child, *descendants(child.pid)]
    return found


def left_of(processes: Iterable[Process], seconds: float = 15) -> list[Process]:
    """The processes that are still alive after some time; returns at once when all have ended."""
    deadline = time.monotonic() + seconds
    while (left := [p for p in processes if p.alive]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def descriptors() -> int:
    """The number of open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def settled_descriptors(most: int, seconds: float = 10) -> int:
    """The number of open descriptors, once it is at most `most`, or after some time."""
    deadline = time.monotonic() + seconds
    while (count := descriptors()) > most and time.monotonic() < deadline:
        time.sleep(0.02)
    return count
