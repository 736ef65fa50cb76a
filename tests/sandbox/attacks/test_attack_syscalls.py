"""Direct system calls that a program does not need."""

import pytest
from helpers.intruders import CALL, QUICK

from retool_env.sandbox import NsjailSandbox, Outcome

NEW_NAMESPACES = {
    "time": 0x80,
    "mount": 0x0002_0000,
    "cgroup": 0x0200_0000,
    "uts": 0x0400_0000,
    "ipc": 0x0800_0000,
    "user": 0x1000_0000,
    "pid": 0x2000_0000,
    "net": 0x4000_0000,
}

# Name: number on x86_64, number on aarch64.
DENIED = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # large attack surfaces
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "personality": (135, 92),
    "seccomp": (317, 277),
    "landlock_create_ruleset": (444, 444),
    # file systems and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "mknodat": (259, 33),
    "setxattr": (188, 5),
    "quotactl": (179, 60),
    "swapon": (167, 224),
    "unshare": (272, 97),
    "setns": (308, 268),
    # identity
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "setfsuid": (122, 151),
    "capset": (126, 91),
    # memory and messages outside of every limit
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "vmsplice": (278, 75),
    # what reaches beyond the program
    "sync": (162, 81),
    "syncfs": (306, 267),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "bind": (49, 200),
    "setsockopt": (54, 208),
    # the machine
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "ioprio_set": (251, 30),
    # the cache of the host's files
    "fadvise64": (221, 223),
    "readahead": (187, 213),
    "mincore": (27, 232),
}


def result(jail: NsjailSandbox, code: str) -> str:
    execution = jail.run(f"{CALL}\nprint({code})", QUICK)
    assert execution.outcome is Outcome.OK, execution
    return execution.stdout.strip()


@pytest.mark.parametrize("name", DENIED)
def test_denied_system_call(jail: NsjailSandbox, name: str) -> None:
    x86_64, aarch64 = DENIED[name]
    assert result(jail, f"call({x86_64}, {aarch64}, 0, 0, 0, 0, 0)") == "EPERM"


def test_calls_that_pass_return_something_else(jail: NsjailSandbox) -> None:
    # So that an EPERM above is known to be the filter's.
    assert result(jail, "call(39, 172)") == "1"  # getpid
    assert result(jail, "call(3, 57, 99)") == "EBADF"  # close


@pytest.mark.parametrize("name", NEW_NAMESPACES)
def test_clone_with_a_namespace(jail: NsjailSandbox, name: str) -> None:
    if name == "time":  # these bits of clone are its exit signal: there is no such namespace
        assert result(jail, f"call(272, 97, {NEW_NAMESPACES[name]})") == "EPERM"
        return
    flags = NEW_NAMESPACES[name] | 17
    assert result(jail, f"call(56, 220, {flags}, 0, 0, 0, 0)") == "EPERM"
    assert result(jail, f"call(272, 97, {NEW_NAMESPACES[name]})") == "EPERM"


def test_clone3_does_not_exist(jail: NsjailSandbox) -> None:
    code = "call(435, 435, ctypes.create_string_buffer(88), 88)"
    assert result(jail, code) == "ENOSYS"


def test_clone_as_a_sibling(jail: NsjailSandbox) -> None:
    """CLONE_PARENT would make the supervisor the parent of an unknown process."""
    assert result(jail, "call(56, 220, 0x8000 | 17, 0, 0, 0, 0)") == "EINVAL"


def test_calls_of_the_future_do_not_exist(jail: NsjailSandbox) -> None:
    assert result(jail, "[call(n, n, 0, 0, 0) for n in (451, 470, 999)]") == str(["ENOSYS"] * 3)


@pytest.mark.parametrize("machine_code", ["b8 27000040 0f05 c3", "b8 14000000 cd80 c3"])
def test_other_calling_conventions(jail: NsjailSandbox, machine_code: str) -> None:
    """`getpid` by x32's number, and through the 32-bit gate, where numbers have other meanings."""
    code = f"""
import ctypes, mmap, platform
if platform.machine() != "x86_64":
    ctypes.CDLL(None).abort()
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex({machine_code!r}))
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
"""
    execution = jail.run(code, QUICK)
    assert execution.stdout == ""
    assert execution.outcome in (Outcome.BLOCKED, Outcome.RUNTIME_ERROR)


@pytest.mark.parametrize("request_", [0x5412, 0x5401 | 1 << 16, 0x80086601, 0x1260, 0x4B3A, 0x8912])
def test_requests_of_devices(jail: NsjailSandbox, request_: int) -> None:
    """Text for a terminal, flags of a file system, sizes of disks, consoles, network interfaces."""
    assert result(jail, f"[call(16, 29, n, {request_}, 0) for n in (0, 1, 2)]") == str(
        ["EPERM"] * 3
    )


CACHE = f"""{CALL}
import mmap
def denied(attempt):
    try: return attempt()
    except OSError as error: return errno.errorcode[error.errno]
file = os.open(os.__file__, os.O_RDONLY)
pages = mmap.mmap(file, 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
pages[0]
print({{
    denied(lambda: os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)),
    denied(lambda: os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)),
    denied(lambda: os.preadv(file, [bytearray(9)], 0, os.RWF_NOWAIT)),
    denied(lambda: os.preadv(file, [bytearray(9)], 0, 0x80)),
    denied(lambda: pages.madvise(mmap.MADV_WILLNEED)),
    denied(lambda: pages.madvise(20)),
    denied(lambda: pages.madvise(21)),
    call(27, 232, ctypes.c_void_p(0), 4096, ctypes.create_string_buffer(1)),
    call(187, 213, file, 0, 4096),
    call(451, 451, file, 0, 0, 0),
}})
"""


def test_messages_in_the_cache_of_files(jail: NsjailSandbox) -> None:
    """A program could leave a message by emptying the cache, and a later program could read it."""
    execution = jail.run(CACHE, QUICK)
    assert execution.stdout in ("{'EPERM', 'ENOSYS'}\n", "{'ENOSYS', 'EPERM'}\n")


def test_equal_pages_of_two_programs(jail: NsjailSandbox) -> None:
    """A slow write to a merged page would tell a program what another program holds."""
    code = "[call(157, 167, 67, 1, 0, 0, 0), call(28, 233, 0, 0, 12)]"
    assert result(jail, code) == "['EPERM', 'EPERM']"


def test_leases_on_the_hosts_files(jail: NsjailSandbox) -> None:
    """If the program's user owns the interpreter, a lease would delay every other reader."""
    code = """
import fcntl, os
for path in (os.__file__, "/packages/numpy/__init__.py", "/guest/wire.py"):
    for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK):
        try:
            print(fcntl.fcntl(os.open(path, os.O_RDONLY), fcntl.F_SETLEASE, kind))
        except OSError as error:
            print(error.errno)
try:
    print(fcntl.fcntl(os.open("/guest", os.O_RDONLY), fcntl.F_NOTIFY, 1))
except OSError as error:
    print(error.errno)
print(fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 50))
"""
    # 13 is the kernel's own, for a file of somebody else; 1 the filter's, which comes first.
    assert jail.run(code, QUICK).stdout.split() == ["1"] * 7 + ["50"]


def test_filters_cannot_be_replaced(jail: NsjailSandbox) -> None:
    """A program may only add a filter, which forbids more; the old filter stays."""
    code = """
import struct
allow = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000))
program = struct.pack("<HxxxxxxQ", 1, ctypes.addressof(allow))
print(libc.prctl(22, 2, program), call(101, 117, 0, 0, 0, 0))
"""
    assert jail.run(CALL + code, QUICK).stdout == "0 EPERM\n"
