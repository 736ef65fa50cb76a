"""The restrictions that a new process puts on itself before it reads a program.

A process can only tighten these restrictions later. This module calls the C library directly,
because Python has no `clone` with namespaces, no `mount`, no `capset` and no seccomp.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
from contextlib import suppress

from . import syscalls, wire

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_locked_libc = ctypes.PyDLL(None, use_errno=True)  # calls hold the interpreter's lock
_python = ctypes.pythonapi  # calls hold the interpreter's lock, as Python's own fork does

_NEW_NAMESPACES = 0x0002_0000 | 0x0800_0000 | 0x2000_0000  # CLONE_NEWNS, _NEWIPC, _NEWPID
_CLONE_PARENT = 0x8000
_NEW_USER = 0x1000_0000
_NOSUID, _NODEV = 0x2, 0x4
_SET_DUMPABLE, _SET_SECCOMP, _SET_NO_NEW_PRIVILEGES, _AMBIENT = 4, 22, 38, 47
_FILTER, _CLEAR_ALL = 2, 4
_CAPABILITY_VERSION = 0x2008_0522
_UNLIMITED = resource.RLIM_INFINITY
_setrlimit, _ADDRESSES, _room = resource.setrlimit, resource.RLIMIT_AS, (-1, -1)
_PAGE, _HUGE_PAGE = 4096, 1 << 21
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_ARENA_MAX = -8  # of mallopt
_ROOM = 16 << 20  # bytes of address space for the work of a process after its program


def _call(function: str, *arguments: object) -> int:
    result = getattr(_libc, function)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
    return result


def clone(namespaces: bool) -> int:
    """Forks a child of this process's parent.

    Args:
        namespaces: Whether the child gets PID, mount and IPC namespaces of its own.

    Returns:
        The child's process id, and 0 in the child.

    Raises:
        OSError: The kernel refused.
    """
    new = _NEW_NAMESPACES if namespaces else 0
    flags = ctypes.c_ulong(_CLONE_PARENT | new | signal.SIGCHLD)
    number = ctypes.c_long(syscalls.numbers()["clone"])
    zero = ctypes.c_ulong(0)
    _python.PyOS_BeforeFork()
    pid = _libc.syscall(number, flags, zero, zero, zero, zero)
    if pid == 0:
        _python.PyOS_AfterFork_Child()
        return 0
    why = ctypes.get_errno()
    _python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(why, f"clone: {os.strerror(why)}")
    return pid


def no_process_left() -> bool:
    """Whether the kernel forbids this process to start another process.

    Python's own `fork` would run the hooks of libraries, and wait for locks that the caller holds.
    """
    number = ctypes.c_long(syscalls.numbers()["clone"])
    zero = ctypes.c_ulong(0)
    pid = _locked_libc.syscall(number, ctypes.c_ulong(signal.SIGCHLD), zero, zero, zero, zero)
    if pid == 0:
        os._exit(0)
    if pid < 0:
        return ctypes.get_errno() == errno.EAGAIN
    os.waitpid(pid, 0)
    return False


def hide() -> None:
    """Makes this process untraceable, even by its own user."""
    _call("prctl", _SET_DUMPABLE, 0, 0, 0, 0)


def go_first(proc: int) -> None:
    """Makes this process and its descendants the first that the kernel ends when memory runs out.

    Args:
        proc: Descriptor of the host's /proc.
    """
    with suppress(OSError):
        score = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=proc)
        os.write(score, b"1000")
        os.close(score)


def keep_one_arena() -> None:
    """Makes the C library serve all threads from one arena.

    Each further arena would reserve 64 MiB of address space.
    """
    _libc.mallopt(_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Returns free memory from the allocator of large objects to the system."""
    _libc.malloc_trim(ctypes.c_size_t(0))


def own_memory(maps: str) -> list[tuple[int, int]]:
    """First address and end of each piece of memory without a file behind it.

    Args:
        maps: The text of `/proc/self/maps`.
    """
    regions = []
    for line in maps.splitlines():
        addresses, rights, _, _, inode, *name = line.split()
        if inode == "0" and rights.startswith("rw") and name in ([], ["[heap]"]):
            first, end = (int(address, 16) for address in addresses.split("-"))
            regions.append((first, end))
    return regions


def use_huge_pages(regions: list[tuple[int, int]]) -> None:
    """Gathers pieces of memory in pages of 2 MiB, where the kernel can.

    A fork then copies a hundredth of the page entries, and its end frees as few. When a program
    writes to a large page, the kernel splits the page for that program alone.

    Args:
        regions: First address and end of each piece.
    """
    for first, end in regions:
        first += -first % _HUGE_PAGE
        for address in range(first, end - _HUGE_PAGE + 1, _HUGE_PAGE):
            # One page for each call, since a call ends at the first page that is empty.
            start, size = ctypes.c_void_p(address), ctypes.c_size_t(_HUGE_PAGE)
            _libc.madvise(start, size, _MADV_HUGEPAGE)
            _libc.madvise(start, size, _MADV_COLLAPSE)


def private_tmp(size: int) -> None:
    """Mounts an empty /tmp for this process and its descendants, and changes to it.

    Args:
        size: The size in bytes.
    """
    options = f"size={size},mode=1777,nr_inodes=4096".encode()
    _call("mount", b"tmpfs", b"/tmp", b"tmpfs", _NOSUID | _NODEV, options)
    os.chdir("/tmp")


def become_nobody(uid: int | None) -> None:
    """Gives up the guest's identity and all its capabilities.

    Args:
        uid: A user id that nothing else on the machine has. `None`: a new user namespace without
            any id. In both cases the kernel counts this process and its children separately.
    """
    if uid is None:
        _call("unshare", _NEW_USER)
    else:
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _call("prctl", _SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _call("prctl", _AMBIENT, _CLEAR_ALL, 0, 0, 0)
    header = struct.pack("<Ii", _CAPABILITY_VERSION, 0)
    _call("capset", header, bytes(24))


def address_space() -> int:
    """The bytes of address space that this process uses.

    The function searches for the smallest limit under which the process can map one more page.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    low, high = 0, 1 << 40
    while high - low > _PAGE:
        middle = (low + high) // 2
        resource.setrlimit(resource.RLIMIT_AS, (middle, hard))
        if _one_more_page():
            high = middle
        else:
            low = middle
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return high


def _one_more_page() -> bool:
    address = _libc.mmap(None, ctypes.c_size_t(_PAGE), 0, 0x22, -1, ctypes.c_long(0))
    if address == ctypes.c_void_p(-1).value:
        return False
    _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(_PAGE))
    return True


def limit_template() -> None:
    """Sets the limits that are equal for all programs, which inherit them."""
    for number, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 65_536),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 1024),
    ):
        bounded = _bounded(number, value)
        resource.setrlimit(number, (bounded, bounded))


def limit(bounds: wire.Bounds, used: int, processes: bool = True) -> None:
    """Sets the limits of this process.

    Args:
        bounds: The limits of the process.
        used: Bytes of address space that the process already uses.
        processes: Whether the process has its own user, so that the kernel can count its processes.
    """
    global _room
    limits = {
        resource.RLIMIT_CPU: bounds.cpu,
        resource.RLIMIT_FSIZE: bounds.tmp,
        resource.RLIMIT_NOFILE: 128,
    }
    if processes:
        limits[resource.RLIMIT_NPROC] = bounds.processes
    for number, value in limits.items():
        # Soft and hard: the first process of a namespace ignores the signal of the soft limit.
        bounded = _bounded(number, value)
        resource.setrlimit(number, (bounded, bounded))
    bounded = _bounded(resource.RLIMIT_AS, used + bounds.memory + _ROOM)
    _room = bounded, bounded
    resource.setrlimit(resource.RLIMIT_AS, (bounded - _ROOM, bounded))


def _bounded(number: int, value: int) -> int:
    hard = resource.getrlimit(number)[1]
    return value if hard == _UNLIMITED else min(value, hard)


def make_room() -> None:
    """Allows this process a little more memory after its program, which may have left none."""
    _setrlimit(_ADDRESSES, _room)  # all objects exist already: there may be no memory for new ones


def install_filter(code: bytes) -> None:
    """Installs a seccomp filter, which no process can remove.

    Args:
        code: The filter; see `syscalls.program_filter`.
    """
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    _call("prctl", _SET_SECCOMP, _FILTER, program, 0, 0)


class Record:
    """Memory shared with the host, in which a process reports the end of its program.

    No descriptor refers to this memory, so a program's output cannot end up in it.

    Args:
        descriptor: Descriptor of the memory; the caller closes it.
    """

    def __init__(self, descriptor: int) -> None:
        address = _libc.mmap(
            None, ctypes.c_size_t(wire.RECORD_BYTES), 0x3, 0x1, descriptor, ctypes.c_long(0)
        )
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap of the record")
        shared = (ctypes.c_char * wire.RECORD_BYTES).from_address(address)
        self._memory = memoryview(shared).cast("B")

    def write(self, number: int, began: float, ended: float = 0.0, text: bytes = b"") -> None:
        """Replaces the record; writes the header last.

        Args:
            number: The number of the block, from 1.
            began: The block's start, in seconds of the monotonic clock.
            ended: The block's end, in seconds of the monotonic clock. 0.0: it still runs.
            text: The outcome, the error and the traceback, as a list in JSON.
        """
        size = struct.calcsize(wire.RECORD)
        text = text[: wire.RECORD_BYTES - size]
        self._memory[size : size + len(text)] = text
        struct.pack_into(wire.RECORD, self._memory, 0, number, len(text), began, ended)
