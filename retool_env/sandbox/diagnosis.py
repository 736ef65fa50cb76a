"""Why a jail cannot be made here, and what helps: nsjail's own words, read."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

_NAMESPACES = """\
nsjail could not make its namespaces here: {log}
What helps, depending on where this runs:
  in a container: `docker run --user 1000 --cap-drop=ALL --security-opt no-new-privileges --security-opt \
seccomp=seccomp.json`, with the profile in docs/containers of the repository, and where the host has AppArmor \
`--security-opt apparmor=unconfined`; as root `--cap-add=SYS_ADMIN`, too. docs/containers/README.md says more, of Podman, \
Kubernetes and clusters as well. `--security-opt seccomp=unconfined` and `docker run --privileged` give more than is needed
  as an ordinary user: `sudo sysctl kernel.unprivileged_userns_clone=1 \
kernel.apparmor_restrict_unprivileged_userns=0 user.max_user_namespaces=15000` (those that exist){exhausted}
  neither possible: run the sandbox on another machine (a remote sandbox)
There is no silent fallback; `make_sandbox("unsafe")` runs programs without isolation."""

_LIBRARY = """\
nsjail cannot load a shared library: {log}
On Debian or Ubuntu: `sudo apt-get install libnl-route-3-200`"""

_FOLDER = """\
nsjail could make no folder to mount on: {log}
It needs two empty ones, in /run/user, /tmp, $TMPDIR or /dev/shm: let one of these be writable, in a container for \
instance with `docker run --tmpfs /tmp`"""

_LIMIT = """\
this process has a limit that its guests cannot have, RLIMIT_{name}: {log}
The sandbox sets each program's limits itself. Start Python after `ulimit {option} unlimited`, or where the limit is not \
set: in a batch job, ask for more of it; or run the sandbox on another machine (a remote sandbox)"""

_PROCESSES = """\
no more processes can be started here: {log}
Raise the limit (`ulimit -u`, which counts all processes and threads of this user, and in a container `--pids-limit`), or \
end some of them"""

_FILE_SIZE = """\
the limit on the size of files is too low: {log}
Start Python after `ulimit -f unlimited`: what host and guests share is kept in files in memory"""

_MEMORY = """\
there is not enough memory for a guest: {log}
Raise the limit on address space (`ulimit -v unlimited`), or that on the container's memory"""

_PROC = """\
there is no /proc here, which nsjail needs: {log}
Mount it: `sudo mount -t proc proc /proc`, in a chroot as well"""

_UNREADABLE = """\
the programs' user cannot read the interpreter's standard library: {log}
Let everybody read it: `chmod -R a+rX {stdlib}`; or take another interpreter (python=...)"""

_OPTIONS = {"AS": "-v", "CPU": "-t", "FSIZE": "-f", "NOFILE": "-n", "NPROC": "-u", "STACK": "-s"}
_CAUSES = (
    (r"open files", "a probe program did not run in nsjail: {log}"),
    (r"loading shared libraries.*cannot open shared object", _LIBRARY),
    (r"work directory", _FOLDER),
    (r"setrlimit\(.*?RLIMIT_(?P<name>\w+)", _LIMIT),
    (r"temporarily unavailable|can't start new thread", _PROCESSES),
    (r"File too large", _FILE_SIZE),
    (r"Cannot allocate memory|MemoryError|failed to map segment", _MEMORY),
    (r"No such file or directory: '/proc", _PROC),
    (r"No module named 'encodings'", _UNREADABLE),
    (r"clone|unshare|mount|pivot_root|sethostname|permitted|namespace", _NAMESPACES),
)
"""What a failure says, and what to say of it; the first that fits."""

_REPLACED = ("/tmp", "/dev")
"""Folders of which a jail has its own."""


def diagnose(failure: str, stdlib: str) -> str:
    """What to say and to advise when programs cannot be run.

    Args:
        failure: What was said, by nsjail, a guest or the system.
        stdlib: The folder of the interpreter's standard library.
    """
    for pattern, text in _CAUSES:
        if match := re.search(pattern, failure):
            name = match.groupdict().get("name")
            option = _OPTIONS.get(name or "", "-a")
            return text.format(
                log=failure, name=name, option=option, stdlib=stdlib, exhausted=_exhausted()
            )
    return f"a probe program did not run in nsjail: {failure}"


def last_words(log: str) -> str:
    """The last lines of a log, as one, without those that say nothing."""
    said = [line for line in log.splitlines() if line.strip()]
    said = [line for line in said if "no version information" not in line]
    return "; ".join(said[-5:])[:2000]


def misplaced(mounts: Sequence[tuple[str, str]]) -> str:
    """What to say of an interpreter that lies where a jail has a folder of its own; empty if it does not.

    Args:
        mounts: Pairs of a path and the path where it is to appear.
    """
    for _, target in mounts:
        for folder in _REPLACED:
            if target.startswith(f"{folder}/"):
                return (
                    f"{target}, of the programs' interpreter, lies below {folder}, and a program has a {folder} of "
                    "its own: take an interpreter that lies elsewhere (python=...), or install it elsewhere"
                )
    return ""


def not_executable(path: str) -> str:
    """What to add to the refusal to run a file, where that is known."""
    try:
        if os.statvfs(path).f_flag & os.ST_NOEXEC:
            return f"; it lies on a file system that is mounted `noexec`: put it elsewhere, or remount with `exec` what holds {path}"
    except OSError:
        pass
    return ""


def _exhausted() -> str:
    """How to set what allows no namespace of some kind here; empty where nothing does."""
    found = []
    for path in sorted(Path("/proc/sys/user").glob("max_*_namespaces")):
        try:
            if path.read_text().strip() == "0":
                found.append(f"user.{path.name}=15000")
        except OSError:
            continue
    if not found:
        return ""
    return f"\n  and since the kernel allows none of a kind here: `sudo sysctl {' '.join(found)}`"
