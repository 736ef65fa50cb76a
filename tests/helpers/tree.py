"""Looking at processes and descriptors from the outside."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one of the same number."""

    pid: int
    started: int
    """In ticks of the clock since the machine started."""

    @property
    def alive(self) -> bool:
        """Whether it is there, and no zombie."""
        stat = _stat(self.pid)
        return stat is not None and stat[0] != "Z" and int(stat[19]) == self.started


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the state on; the parent is the second, the start the twentieth."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return None


def children(pid: int) -> list[Process]:
    """The living children of a process, the oldest first."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        stat = _stat(int(entry.name))
        if stat is not None and stat[0] != "Z" and int(stat[1]) == pid:
            found.append(Process(int(entry.name), int(stat[19])))
    return sorted(found, key=lambda process: (process.started, process.pid))


def descendants(pid: int) -> list[Process]:
    """The living children of a process, and theirs."""
    found = []
    for child in children(pid):
        found += [child, *descendants(child.pid)]
    return found


def left_of(processes: Iterable[Process], seconds: float = 15) -> list[Process]:
    """Those that are still alive after some time; returns as soon as none is."""
    deadline = time.monotonic() + seconds
    while (left := [p for p in processes if p.alive]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def settled_descriptors(most: int, seconds: float = 10) -> int:
    """How many are open, once they are no more than `most`, or after some time."""
    deadline = time.monotonic() + seconds
    while (count := descriptors()) > most and time.monotonic() < deadline:
        time.sleep(0.02)
    return count
