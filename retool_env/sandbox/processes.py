"""The processes below one: which there are, what they take, and whether they run. As the kernel tells it in /proc."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_TICK = os.sysconf("SC_CLK_TCK")
_STOP_ATTEMPTS = 20
_STOP_SECONDS = 0.0005
_STOPPED = "TtZX"


def below(pid: int) -> list[int]:
    """The processes that `pid` has started, and they in turn; without those that have ended."""
    found: list[int] = []
    look = [pid]
    while look:
        children = list(_children(look.pop()))
        found += children
        look += children
    return found


def _children(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for task in _PROC.joinpath(str(pid), "task").iterdir():
            with suppress(OSError):
                yield from map(int, task.joinpath("children").read_text().split())


class Burden:
    """What others than its first thread take of the processors, in a process and all below it.

    Args:
        pid: The process.
    """

    def __init__(self, pid: int) -> None:
        self.seconds = 0.0
        """Processor time so far, that of processes which have ended included."""
        self.running = False
        """Whether one of them runs, or is ready to."""
        for each in (pid, *below(pid)):
            with suppress(OSError, ValueError, IndexError):
                self._add(each, first=each == pid)

    def _add(self, pid: int, first: bool) -> None:
        folder = _PROC / str(pid)
        # After the name, which may hold anything: state, ..., utime, stime, cutime, cstime.
        fields = _fields(folder / "stat")
        self.seconds += sum(map(int, fields[11:15])) / _TICK
        if first:
            self.seconds -= int((folder / "schedstat").read_text().split()[0]) / 1e9
        for task in (folder / "task").iterdir():
            if not (first and task.name == str(pid)) and _fields(task / "stat")[0] == "R":
                self.running = True


def waiting_seconds(pid: int) -> float:
    """Seconds for which a process waited for a processor; 0.0 where the kernel does not say."""
    with suppress(OSError, ValueError, IndexError):
        return int((_PROC / str(pid) / "schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _fields(stat: Path) -> list[str]:
    return stat.read_text().rpartition(")")[2].split()


def stop(pid: int) -> bool:
    """Stops all processes below `pid`, which has been told to stop.

    Returns:
        Whether that was achieved: processes that start others and end as fast as they are found escape.
    """
    if below(pid):  # which its threads could let go on again, until they have heard
        for _ in range(_STOP_ATTEMPTS):
            if not _runs(pid):
                break
            time.sleep(_STOP_SECONDS)
    stopped: set[int] = set()
    for _ in range(_STOP_ATTEMPTS):
        new = set(below(pid)) - stopped
        if not new:
            return True
        for each in new:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGSTOP)
        stopped |= new
    return False


def _runs(pid: int) -> bool:
    with suppress(OSError, IndexError):
        tasks = (_PROC / str(pid) / "task").iterdir()
        return any(_fields(task / "stat")[0] not in _STOPPED for task in tasks)
    return False


def go_on(pid: int) -> None:
    """Lets all processes below `pid` go on."""
    for each in below(pid):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGCONT)
