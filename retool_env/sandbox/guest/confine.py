"""What a new process does to itself before it reads a program: all of it can only be tightened later.

The C library is called directly, since Python has no `clone` with namespaces, no `mount`, no `capset`
and no seccomp.
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
_locked_libc = ctypes.PyDLL(None, use_errno=True)  # calls it with the interpreter's lock
_python = ctypes.pythonapi  # keeps the interpreter's lock, as its own fork does

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
_ROOM = 16 << 20  # bytes of address space for what a process does when its program is over


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
    """Whether the kernel lets this process start no other.

    Python's own `fork` would run what libraries have registered for it, and wait for locks that the caller holds.
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
    """Makes this process untraceable, for its own user too."""
    _call("prctl", _SET_DUMPABLE, 0, 0, 0, 0)


def go_first(proc: int) -> None:
    """Has the kernel end this process, and those it starts, before any other where memory runs out.

    Args:
        proc: Descriptor of the folder /proc outside.
    """
    with suppress(OSError):
        score = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=proc)
        os.write(score, b"1000")
        os.close(score)


def keep_one_arena() -> None:
    """Has the C library serve all threads from one arena: each further one would reserve 64 MiB of address space."""
    _libc.mallopt(_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Gives back to the system what the allocator of large objects keeps though it is free."""
    _libc.malloc_trim(ctypes.c_size_t(0))


def own_memory(maps: str) -> list[tuple[int, int]]:
    """First address and end of each piece of memory that no file lies behind.

    Args:
        maps: The text of `/proc/self/maps`.
    """
    found = []
    for line in maps.splitlines():
        addresses, rights, _, _, inode, *name = line.split()
        if inode == "0" and rights.startswith("rw") and name in ([], ["[heap]"]):
            first, end = (int(address, 16) for address in addresses.split("-"))
            found.append((first, end))
    return found


def use_huge_pages(regions: list[tuple[int, int]]) -> None:
    """Gathers pieces of memory in pages of 2 MiB, where the kernel can.

    A fork then has a hundredth of the pages to copy, and its end as many to give up; a page that a program
    writes to is split again for it alone.

    Args:
        regions: First address and end of each.
    """
    for first, end in regions:
        first += -first % _HUGE_PAGE
        for address in range(first, end - _HUGE_PAGE + 1, _HUGE_PAGE):
            # One by one, since the first that cannot be (an empty one) ends the call.
            start, size = ctypes.c_void_p(address), ctypes.c_size_t(_HUGE_PAGE)
            _libc.madvise(start, size, _MADV_HUGEPAGE)
            _libc.madvise(start, size, _MADV_COLLAPSE)


def private_tmp(size: int) -> None:
    """Mounts an empty /tmp of `size` bytes, seen by this process and those it starts, and goes there."""
    options = f"size={size},mode=1777,nr_inodes=4096".encode()
    _call("mount", b"tmpfs", b"/tmp", b"tmpfs", _NOSUID | _NODEV, options)
    os.chdir("/tmp")


def become_nobody(uid: int | None) -> None:
    """Gives up the guest's identity and all its capabilities.

    Args:
        uid: A user id that nothing else on the machine has. `None`: a new user namespace without
            any id in it. Either way the kernel counts this process and its children alone.
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
    """Bytes of address space that this process has, found by what limit lets it have one page more."""
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
    _libc.mmap.restype = ctypes.c_void_p
    address = _libc.mmap(None, ctypes.c_size_t(_PAGE), 0, 0x22, -1, ctypes.c_long(0))
    if address == ctypes.c_void_p(-1).value:
        return False
    _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(_PAGE))
    return True


def limit_template() -> None:
    """Sets the limits that are the same for all programs, which inherit them."""
    for number, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 65_536),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 1024),
    ):
        bounded = _bounded(number, value)
        resource.setrlimit(number, (bounded, bounded))


def limit(bounds: wire.Bounds, own: int, processes: bool = True) -> None:
    """Sets the limits of this process.

    Args:
        bounds: Its bounds.
        own: Bytes of address space that it has already.
        processes: Whether its user is its own, so that processes can be counted.
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
        # Soft and hard: the first process of a namespace ignores the signal of the soft one.
        bounded = _bounded(number, value)
        resource.setrlimit(number, (bounded, bounded))
    bounded = _bounded(resource.RLIMIT_AS, own + bounds.memory + _ROOM)
    _room = bounded, bounded
    resource.setrlimit(resource.RLIMIT_AS, (bounded - _ROOM, bounded))


def _bounded(number: int, value: int) -> int:
    hard = resource.getrlimit(number)[1]
    return value if hard == _UNLIMITED else min(value, hard)


def make_room() -> None:
    """Lets this process have a little more memory, once its program is over and may have left it none."""
    _setrlimit(_ADDRESSES, _room)  # all made beforehand: there may be no memory to make it


def install_filter(code: bytes) -> None:
    """Installs a seccomp filter, for ever.

    Args:
        code: See `syscalls.program_filter`.
    """
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    _call("prctl", _SET_SECCOMP, _FILTER, program, 0, 0)


class Record:
    """Memory shared with the host, in which a process says what came of its program.

    There is no descriptor to it: what a program writes to any descriptor cannot end up here.

    Args:
        descriptor: Of the memory; closed by the caller.
    """

    def __init__(self, descriptor: int) -> None:
        _libc.mmap.restype = ctypes.c_void_p
        address = _libc.mmap(
            None, ctypes.c_size_t(wire.RECORD_BYTES), 0x3, 0x1, descriptor, ctypes.c_long(0)
        )
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap of the record")
        self._memory = memoryview((ctypes.c_char * wire.RECORD_BYTES).from_address(address)).cast(
            "B"
        )

    def write(self, number: int, began: float, ended: float = 0.0, text: bytes = b"") -> None:
        """Replaces what it says; the header last."""
        size = struct.calcsize(wire.RECORD)
        text = text[: wire.RECORD_BYTES - size]
        self._memory[size : size + len(text)] = text
        struct.pack_into(wire.RECORD, self._memory, 0, number, len(text), began, ended)
