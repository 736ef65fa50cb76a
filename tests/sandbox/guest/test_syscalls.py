"""The filter of system calls, in an interpreter of classic BPF that works like the kernel's."""

import errno
import platform
import struct

import pytest

from retool_env.sandbox.guest import syscalls

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL = "allow", "kill"

DANGEROUS = {  # from the kernel's tables: the numbers on x86-64 and on arm64
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "fsopen": (430, 430),
    "open_by_handle_at": (304, 265),
    "setuid": (105, 146),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "capset": (126, 91),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "personality": (135, 92),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "seccomp": (317, 277),
    "mknodat": (259, 33),
}
NEEDED = {
    "read": (0, 63),
    "write": (1, 64),
    "openat": (257, 56),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "brk": (12, 214),
    "futex": (202, 98),
    "execve": (59, 221),
    "exit_group": (231, 94),
    "wait4": (61, 260),
    "getrandom": (318, 278),
    "clock_gettime": (228, 113),
    "prlimit64": (302, 261),
    "statx": (332, 291),
}


def _values(name: str) -> tuple[int, ...]:
    """Values of the argument that decides; 0 if no argument decides."""
    return syscalls.CONDITIONS.get(name, (0, (0,)))[1]


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(platform, "machine", lambda: request.param)
    return request.param


def verdict(code: bytes, architecture: int, number: int, *arguments: int) -> str | int:
    """The filter's answer to a call: `ALLOW`, `KILL`, or an error.

    Args:
        code: The filter.
        architecture: The kernel's number of the machine's architecture.
        number: The number of the call.
        *arguments: The arguments of the call.
    """
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("<HBBI", code))
    at = accumulator = 0
    while True:
        operation, true, false, k = program[at]
        at += 1
        if operation == 0x20:  # load a word
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif operation == 0x06:  # return
            if k == 0x7FFF_0000:
                return ALLOW
            if k == 0x8000_0000:
                return KILL
            assert k >> 16 == 0x0005
            return k & 0xFFFF
        else:
            holds = {
                0x15: accumulator == k,
                0x35: accumulator >= k,
                0x45: bool(accumulator & k),
            }[operation]
            at += true if holds else false


def test_the_list_and_nothing_else(machine: str) -> None:
    code, architecture = syscalls.program_filter(), ARCHITECTURES[machine]
    names = syscalls.allowed()
    # With all arguments 0; see below for the others.
    allowed = {number for name, number in names.items() if 0 in _values(name)}
    assert 150 < len(allowed) < 300
    for number in range(700):
        expected: str | int = ALLOW if number in allowed else errno.EPERM
        if number > 450 or number == 435:  # newer than the list, or clone3
            expected = errno.ENOSYS
        assert verdict(code, architecture, number) == expected, number


@pytest.mark.parametrize("name", DANGEROUS)
def test_what_must_be_denied(machine: str, name: str) -> None:
    number = DANGEROUS[name][[*ARCHITECTURES].index(machine)]
    assert verdict(syscalls.program_filter(), ARCHITECTURES[machine], number) == errno.EPERM


@pytest.mark.parametrize("name", NEEDED)
def test_what_python_needs(machine: str, name: str) -> None:
    number = NEEDED[name][[*ARCHITECTURES].index(machine)]
    assert verdict(syscalls.program_filter(), ARCHITECTURES[machine], number) == ALLOW


def test_forks_and_threads_but_no_namespaces(machine: str) -> None:
    code, clone = syscalls.program_filter(), syscalls.numbers()["clone"]
    new = [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000]
    for flags in (17, 0x3D0F00, 0x01200011):  # a fork, a thread, the C library's fork
        assert verdict(code, ARCHITECTURES[machine], clone, flags) == ALLOW
        for namespace in new:
            for flagged in (flags | namespace, flags | namespace | 1 << 40):
                assert verdict(code, ARCHITECTURES[machine], clone, flagged) == errno.EPERM


ARGUMENTS = {
    "a socket pair of the Unix family": ("socketpair", (1, 1, 0), ALLOW),
    "a socket pair of another": ("socketpair", (2, 1, 0), errno.EPERM),
    "whether it is a terminal": ("ioctl", (1, 0x5401), ALLOW),
    "how much can be read": ("ioctl", (1, 0x541B), ALLOW),
    "a request, its upper half set": ("ioctl", (1, 0xF_0000_541B), ALLOW),
    "pushing text into a terminal": ("ioctl", (1, 0x5412), errno.EPERM),
    "flags of a file system": ("ioctl", (3, 0x8008_6601), errno.EPERM),
    "giving memory back": ("madvise", (0, 4096, 4), ALLOW),
    "large pages": ("madvise", (0, 4096, 14), ALLOW),
    "reading ahead": ("madvise", (0, 4096, 3), errno.EPERM),
    "paging out": ("madvise", (0, 4096, 21), errno.EPERM),
    "merging equal pages": ("madvise", (0, 4096, 12), errno.EPERM),
    "merging all equal pages": ("prctl", (67, 1), errno.EPERM),
    "the name of a thread": ("prctl", (15, 0), ALLOW),
    "a read": ("preadv2", (3, 0, 1, 0, 0, 0), ALLOW),
    "a read of what is cached": ("preadv2", (3, 0, 1, 0, 0, 8), errno.EPERM),
    "a read that leaves no cache": ("preadv2", (3, 0, 1, 0, 0, 0x80), errno.EPERM),
    "a write": ("pwritev2", (3, 0, 1, 0, 0, 0), ALLOW),
    "a write that leaves no cache": ("pwritev2", (3, 0, 1, 0, 0, 0x80), errno.EPERM),
}


@pytest.mark.parametrize(("name", "arguments", "expected"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_decide(
    machine: str, name: str, arguments: tuple[int, ...], expected: str | int
) -> None:
    number = syscalls.allowed()[name]
    assert (
        verdict(syscalls.program_filter(), ARCHITECTURES[machine], number, *arguments) == expected
    )


@pytest.mark.parametrize("name", ["fadvise64", "readahead", "mincore", "bind", "listen"])
def test_what_is_not_on_the_list(name: str) -> None:
    assert f" {name} " not in f" {syscalls.ALLOWED} ".replace(",", " ")


def test_other_machines_calls_are_deadly(machine: str) -> None:
    code = syscalls.program_filter()
    others = [0x40000003, *(a for name, a in ARCHITECTURES.items() if name != machine)]  # i386
    for other in others:
        assert verdict(code, other, 4) == KILL
    assert verdict(code, ARCHITECTURES[machine], 0x4000_0000 | 1) == KILL  # x32


def test_it_is_short_enough_for_the_kernel(machine: str) -> None:
    assert len(syscalls.program_filter()) // 8 < 512


def test_numbers_the_guest_uses(machine: str) -> None:
    x86_64 = {"clone": 56, "mount": 165, "setresuid": 117, "setresgid": 119, "unshare": 272}
    aarch64 = {"clone": 220, "mount": 40, "setresuid": 147, "setresgid": 149, "unshare": 97}
    expected = {"x86_64": x86_64, "aarch64": aarch64}[machine]
    assert expected.items() <= syscalls.numbers().items()
