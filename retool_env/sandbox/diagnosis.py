"""Why this machine cannot make a jail, and the cure: an interpretation of nsjail's messages."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_NAMESPACES = """\
nsjail could not make its namespaces here: {log}
The cure depends on where this runs:
  in a container: `docker run --user 1000 --cap-drop=ALL --security-opt no-new-privileges \
--security-opt seccomp=seccomp.json`, with the profile in docs/containers of the repository; if \
the host has AppArmor, also `--security-opt apparmor=unconfined`; as root, also \
`--cap-add=SYS_ADMIN`. docs/containers/README.md also covers Podman, Kubernetes and clusters. \
`--security-opt seccomp=unconfined` and `docker run --privileged` give more rights than needed
  as an ordinary user: `sudo sysctl kernel.unprivileged_userns_clone=1 \
kernel.apparmor_restrict_unprivileged_userns=0 user.max_user_namespaces=15000` (omit keys that \
do not exist){exhausted}
  otherwise: run the sandbox on another machine (a remote sandbox)
There is no silent fallback; `make_sandbox("unsafe")` runs programs without isolation."""

_LIBRARY = """\
nsjail cannot load a shared library: {log}
On Debian or Ubuntu: `sudo apt-get install libnl-route-3-200`"""

_FOLDER = """\
nsjail could make no folder to mount on: {log}
It needs two empty folders in /run/user, /tmp, $TMPDIR or /dev/shm: make one of these writable, \
for instance with `docker run --tmpfs /tmp` in a container"""

_LIMIT = """\
this process has a limit that its guests cannot have, RLIMIT_{name}: {log}
The sandbox sets each program's limits itself. Start Python after `ulimit {option} unlimited`; in \
a batch job, ask for more of it; or run the sandbox on another machine (a remote sandbox)"""

_PROCESSES = """\
no more processes can be started here: {log}
Raise the limit (`ulimit -u`, which counts all processes and threads of this user; in a container \
also `--pids-limit`), or end some processes"""

_FILE_SIZE = """\
the limit on the size of files is too low: {log}
Start Python after `ulimit -f unlimited`: host and guests share files in memory"""

_MEMORY = """\
there is not enough memory for a guest: {log}
Raise the limit on address space (`ulimit -v unlimited`), or the container's limit on memory"""

_PROC = """\
nsjail needs /proc, which is missing here: {log}
Mount it: `sudo mount -t proc proc /proc`, also in a chroot"""

_UNREADABLE = """\
the programs' user cannot read the interpreter's standard library: {log}
Let everybody read it: `chmod -R a+rX {stdlib}`; or choose another interpreter (python=...)"""

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
"""Patterns of failures, each with the message to show; the first match counts."""

_REPLACED = ("/tmp", "/dev")
"""Folders in whose place every jail has its own."""


def diagnose(failure: str, stdlib: str) -> str:
    """The error message, with advice, for a failure to run programs.

    Args:
        failure: The message of nsjail, of a guest or of the system.
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
    """The last lines of a log, joined to one line, without empty and meaningless lines."""
    lines = [line for line in log.splitlines() if line.strip()]
    lines = [line for line in lines if "no version information" not in line]
    return "; ".join(lines[-5:])[:2000]


def misplaced(mounts: Sequence[tuple[str, str]]) -> str:
    """The error message for an interpreter below a folder that a jail replaces; otherwise empty.

    Args:
        mounts: Pairs of a path on the host and its path in the jail.
    """
    for _, target in mounts:
        for folder in _REPLACED:
            if target.startswith(f"{folder}/"):
                return (
                    f"{target}, a part of the programs' interpreter, lies below {folder}, and each "
                    f"program has its own {folder}: choose an interpreter elsewhere (python=...)"
                )
    return ""


def not_executable(path: str) -> str:
    """An addition to the message that a file cannot be run, with the cause; empty if unknown."""
    with suppress(OSError):
        if os.statvfs(path).f_flag & os.ST_NOEXEC:
            return (
                f"; {path} lies on a file system that is mounted `noexec`: move the file, or "
                "remount the file system with `exec`"
            )
    return ""


def _exhausted() -> str:
    """The advice about kinds of namespaces whose limit is 0 here; empty if no limit is 0."""
    settings = []
    for path in sorted(Path("/proc/sys/user").glob("max_*_namespaces")):
        with suppress(OSError):
            if path.read_text().strip() == "0":
                settings.append(f"user.{path.name}=15000")
    if not settings:
        return ""
    return f"\n  and since the limit of a kind is 0 here: `sudo sysctl {' '.join(settings)}`"
