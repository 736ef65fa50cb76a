"""What a benchmark says of the machine, and what processes take of it."""

import datetime
import os
import platform
from pathlib import Path

from retool_env.provenance import REVISION, versions


def circumstances() -> dict[str, object]:
    """When and on what a benchmark ran: the head of every file of results."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{len(os.sched_getaffinity(0))} processors ({_processor()}), {memory:.0f} GiB, Linux {platform.release()}",
        "versions": versions(),
        "revision": REVISION,
    }


def descendants() -> set[int]:
    """The process ids of all that this process has started, and they in turn."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        parents[int(entry.parent.name)] = int(fields[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def resident_mb(peak: bool = False) -> float:
    """Resident memory of this process: now, or the most since `reset_peak`."""
    return round(_kilobytes("/proc/self/status", "VmHWM" if peak else "VmRSS") / 1024, 1)


def reset_peak() -> None:
    """Count the most memory from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def shared_out_mb(processes: set[int]) -> float:
    """Memory of processes, in which what several share is counted once (the sum of their proportional shares)."""
    return round(sum(_kilobytes(f"/proc/{pid}/smaps_rollup", "Pss") for pid in processes) / 1024, 1)


def _kilobytes(path: str, name: str) -> int:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:  # it ended meanwhile
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
