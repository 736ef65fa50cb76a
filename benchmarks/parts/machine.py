"""Describes the machine of a benchmark, and measures processes and their memory."""

import datetime
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retool_env.evaluation.identity import commit
from retool_env.provenance import REVISION, versions


def circumstances() -> dict[str, object]:
    """Date, device, versions, revision and commit of a benchmark: the head of every result file."""
    processors = f"{len(os.sched_getaffinity(0))} processors ({_processor()})"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{processors}, {memory:.0f} GiB, Linux {platform.release()}",
        "versions": versions(),
        "revision": REVISION,
        "commit": commit(),
    }


def descendants() -> set[int]:
    """The ids of all child processes of this process, and of their children, at any depth."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        parents[int(entry.parent.name)] = int(fields[1])
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family - {os.getpid()}


def resident_mb(peak: bool = False) -> float:
    """Resident memory of this process in megabytes.

    Args:
        peak: The highest value since `reset_peak`, in place of the current value.
    """
    return round(_kilobytes("/proc/self/status", "VmHWM" if peak else "VmRSS") / 1024, 1)


def reset_peak() -> None:
    """Start a new measurement of the peak of resident memory."""
    Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def growth() -> Iterator[dict[str, int]]:
    """Measure by how much this process's memory grows in a block, without pages of files.

    Yields:
        After the block, bytes: `before` it, and the growth at `most` and at its `end`.
    """
    before, over = _anonymous(), threading.Event()
    found = {"before": before, "most": 0, "end": 0}

    def note() -> int:
        grown = _anonymous() - before
        found["most"] = max(found["most"], grown)
        return grown

    def sample() -> None:
        while not over.wait(0.002):
            note()

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        found["end"] = note()


def _anonymous() -> int:
    return 1024 * _kilobytes("/proc/self/status", "RssAnon")


def shared_out_mb(processes: set[int]) -> float:
    """Memory of processes in megabytes: the sum of their proportional shares (PSS).

    Memory that several processes share counts once.
    """
    return round(sum(_kilobytes(f"/proc/{pid}/smaps_rollup", "Pss") for pid in processes) / 1024, 1)


def _kilobytes(path: str, name: str) -> int:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:  # the process has ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
