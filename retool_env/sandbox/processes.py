"""The descendants of a process, their processor time and their states, as /proc reports them."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_TICK = os.sysconf("SC_CLK_TCK")
_STOP_ATTEMPTS = 20
_STOP_SECONDS = 0.0005
_STOPPED = "TtZX"


def below(pid: int) -> list[int]:
    """The ids of all living descendants of the process `pid`."""
    processes = [pid]
    for process in processes:
        processes += _children(process)
    return processes[1:]


def _children(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for task in _PROC.joinpath(str(pid), "task").iterdir():
            with suppress(OSError):
                yield from map(int, task.joinpath("children").read_text().split())


class Burden:
    """The load of a process and its descendants on the processors, without its first thread.

    Args:
        pid: The process.
    """

    def __init__(self, pid: int) -> None:
        self.seconds = 0.0
        """Processor time so far, including processes that have ended."""
        self.running = False
        """Whether a thread other than the first runs or is ready to run."""
        for process in (pid, *below(pid)):
            with suppress(OSError, ValueError, IndexError):
                self._add(process, first=process == pid)

    def _add(self, pid: int, first: bool) -> None:
        folder = _PROC / str(pid)
        # The fields after the name: state, ..., utime, stime, cutime, cstime.
        fields = _fields(folder / "stat")
        self.seconds += sum(map(int, fields[11:15])) / _TICK
        if first:
            self.seconds -= int((folder / "schedstat").read_text().split()[0]) / 1e9
        for task in (folder / "task").iterdir():
            if not (first and task.name == str(pid)) and _fields(task / "stat")[0] == "R":
                self.running = True


def waiting_seconds(pid: int) -> float:
    """Seconds in which a process waited for a processor; 0.0 if the kernel does not report them.

    Args:
        pid: The process.
    """
    with suppress(OSError, ValueError, IndexError):
        return int((_PROC / str(pid) / "schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _fields(stat: Path) -> list[str]:
    """The fields behind the process's name, which may contain any character."""
    return stat.read_text().rpartition(")")[2].split()


def stop(pid: int) -> bool:
    """Stops all descendants of a process that has itself been told to stop.

    Args:
        pid: The process.

    Returns:
        Whether all were stopped. Processes that start others and end as fast as they are found
        escape.
    """
    if below(pid):  # the process's threads could continue these until they have stopped themselves
        for _ in range(_STOP_ATTEMPTS):
            if not _runs(pid):
                break
            time.sleep(_STOP_SECONDS)
    stopped: set[int] = set()
    for _ in range(_STOP_ATTEMPTS):
        new = set(below(pid)) - stopped
        if not new:
            return True
        _send(signal.SIGSTOP, new)
        stopped |= new
    return False


def _runs(pid: int) -> bool:
    with suppress(OSError, IndexError):
        tasks = (_PROC / str(pid) / "task").iterdir()
        return any(_fields(task / "stat")[0] not in _STOPPED for task in tasks)
    return False


def go_on(pid: int) -> None:
    """Continues all descendants of a process.

    Args:
        pid: The process.
    """
    _send(signal.SIGCONT, below(pid))


def _send(number: signal.Signals, processes: Iterable[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)
