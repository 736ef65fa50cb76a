"""The system calls that a program may make, and the filter that denies all others.

This is a list of allowed calls, so a call that a newer kernel adds is denied until somebody has
examined it. The list omits:

* calls that only a supervisor needs: namespaces, mounts, credentials, tracing, memory of other
  processes;
* calls with a large attack surface: io_uring, bpf, keyrings, perf events, userfaultfd;
* calls that hold memory outside any limit that works without cgroups: memfd, System V and
  message-queue objects, vmsplice (which keeps a whole large page alive by a reference to a part of
  it), setsockopt (which enlarges socket buffers);
* calls that reach beyond the program: flushing the host's disks, leases on and watches of files
  that others read, and `bind`, since all programs of a guest share the abstract Unix addresses;
* calls that examine or empty the cache of the host's files, in which a program could leave a
  message to a later program: fadvise64, readahead, mincore, and some advice and flags of other
  calls.

A denied call fails with EPERM, so that a program's traceback names it. Two kinds of calls fail with
ENOSYS instead, as if they did not exist, and the C library then does without them: `clone3`, whose
flags a filter cannot see, and calls newer than the list.
"""

import errno
import platform
import struct

ALLOWED = """\
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -,
lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134,
rt_sigprocmask 14 135, rt_sigreturn 15 139, ioctl 16 29, pread64 17 67, pwrite64 18 68,
readv 19 65, writev 20 66, access 21 -, pipe 22 -, select 23 -, sched_yield 24 124,
mremap 25 216, msync 26 227, madvise 28 233, dup 32 23, dup2 33 -, pause 34 -,
nanosleep 35 101, getitimer 36 102, alarm 37 -, setitimer 38 103, getpid 39 172, sendfile 40 71,
socket 41 198, connect 42 203, sendto 44 206, recvfrom 45 207, sendmsg 46 211,
recvmsg 47 212, shutdown 48 210, getsockname 51 204,
getpeername 52 205, socketpair 53 199, getsockopt 55 209, clone 56 220,
fork 57 -, vfork 58 -, execve 59 221, exit 60 93, wait4 61 260, kill 62 129, uname 63 160,
fcntl 72 25, flock 73 32, fsync 74 82, fdatasync 75 83, truncate 76 45, ftruncate 77 46,
getdents 78 -, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, mkdir 83 -, rmdir 84 -,
creat 85 -, link 86 -, unlink 87 -, symlink 88 -, readlink 89 -, chmod 90 -, fchmod 91 52,
chown 92 -, fchown 93 55, lchown 94 -, umask 95 166, gettimeofday 96 169, getrlimit 97 163,
getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176,
geteuid 107 175, getegid 108 177, setpgid 109 154, getppid 110 173, getpgrp 111 -,
setsid 112 157, getgroups 115 158, getresuid 118 148, getresgid 120 150, getpgid 121 155,
getsid 124 156, capget 125 90, rt_sigpending 127 136, rt_sigtimedwait 128 137,
rt_sigqueueinfo 129 138, rt_sigsuspend 130 133, sigaltstack 131 132, utime 132 -, statfs 137 43,
fstatfs 138 44, getpriority 140 141, setpriority 141 140, sched_getparam 143 121,
sched_setscheduler 144 119, sched_getscheduler 145 120, sched_get_priority_max 146 125,
sched_get_priority_min 147 126, sched_rr_get_interval 148 127, mlock 149 228, munlock 150 229,
prctl 157 167, arch_prctl 158 -, setrlimit 160 164, gettid 186 178,
getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10, listxattr 194 11,
llistxattr 195 12, flistxattr 196 13, tkill 200 130, time 201 -, futex 202 98,
sched_setaffinity 203 122, sched_getaffinity 204 123, epoll_create 213 -, getdents64 217 61,
set_tid_address 218 96, restart_syscall 219 128, timer_create 222 107,
timer_settime 223 110, timer_gettime 224 108, timer_getoverrun 225 109, timer_delete 226 111,
clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94,
epoll_wait 232 -, epoll_ctl 233 21, tgkill 234 131, utimes 235 -, get_mempolicy 239 236,
waitid 247 95, ioprio_get 252 31, openat 257 56, mkdirat 258 34, fchownat 260 54, futimesat 261 -,
newfstatat 262 79, unlinkat 263 35, renameat 264 38, linkat 265 37, symlinkat 266 36,
readlinkat 267 78, fchmodat 268 53, faccessat 269 48, pselect6 270 72, ppoll 271 73,
set_robust_list 273 99, get_robust_list 274 100,
sync_file_range 277 84, utimensat 280 88, epoll_pwait 281 22, signalfd 282 -,
timerfd_create 283 85, eventfd 284 -, fallocate 285 47, timerfd_settime 286 86,
timerfd_gettime 287 87, signalfd4 289 74, eventfd2 290 19,
epoll_create1 291 20, dup3 292 24, pipe2 293 59, preadv 295 69,
pwritev 296 70, rt_tgsigqueueinfo 297 240, recvmmsg 299 243, prlimit64 302 261,
sendmmsg 307 269, getcpu 309 168, sched_getattr 315 275, renameat2 316 276, getrandom 318 278,
execveat 322 281, membarrier 324 283, mlock2 325 284, copy_file_range 326 285, preadv2 327 286,
pwritev2 328 287, statx 332 291, rseq 334 293, pidfd_send_signal 424 424, pidfd_open 434 434,
close_range 436 436, openat2 437 437, faccessat2 439 439, epoll_pwait2 441 441,
futex_waitv 449 449
"""
"""Name, number on x86_64, number on aarch64 (`-`: the machine lacks the call)."""

_NEEDED = """\
clone 56 220, mount 165 40, setresuid 117 147, setresgid 119 149, setgroups 116 159, unshare 272 97,
capset 126 91, seccomp 317 277, clone3 435 435
"""

MACHINES = ("x86_64", "aarch64")
"""The machines in the table, by the names of `platform.machine`."""

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x4000_0000  # x86_64: the same calls under other numbers
_NEWEST = 451  # numbers from here on are unknown to the table
_NAMESPACES = 0x7E02_0000  # the CLONE_NEW* flags
_ALLOW, _ERRNO, _KILL = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
_LOAD, _JUMP, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
Instruction = tuple[int, int, int, int]
_LEASES = (1024, 1030)  # fcntl's commands from F_SETLEASE on, up to F_DUPFD_CLOEXEC
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data; little-endian


CONDITIONS = {
    "socketpair": (0, (1,)),  # the Unix family
    # TCGETS, TCGETS2, TIOCGWINSZ; FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": (1, (0x5401, 0x802C_542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    # Without reading ahead, paging out, and merging equal pages of different programs.
    "madvise": (2, (0, 1, 2, 4, 8, 9, 10, 11, 14, 15, 16, 17, 18, 19, 24, 25)),
    # Only a process's own state; not, for instance, merging equal pages (PR_SET_MEMORY_MERGE).
    "prctl": (0, (1, 2, 3, 4, 7, 8, 15, 16, 21, 22, 23, 29, 30, 36, 37, 38, 39, 47, 0x5356_4D41)),
    "preadv2": (5, (0,)),  # no flags: they reveal whether a page is cached, or drop the page
    "pwritev2": (5, (0,)),
}
"""Calls that are allowed only with some values of one argument: its number, and the values."""


def _numbers(table: str) -> dict[str, int]:
    column = MACHINES.index(platform.machine())
    rows = (row.split() for row in table.split(","))
    return {row[0]: int(row[1 + column]) for row in rows if row[1 + column] != "-"}


def allowed() -> dict[str, int]:
    """The numbers on this machine of the calls that a program may make, some with conditions."""
    return _numbers(ALLOWED)


def numbers() -> dict[str, int]:
    """The numbers on this machine of the calls that the guest makes by number."""
    return _numbers(_NEEDED)


def program_filter() -> bytes:
    """The filter, as an array of `struct sock_filter` in classic BPF.

    The filter searches the numbers as a tree. The kernel remembers which numbers always pass, and
    does not run the filter for them. But to learn these numbers, it runs the filter for every
    number when a process installs it. With a linear list of conditions, that takes a fifth of the
    time of a small program.
    """
    allow = [(_RETURN, 0, 0, _ALLOW)]
    deny = [(_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    no_such = [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    actions = dict.fromkeys(allowed().values(), allow)
    named = allowed() | numbers()
    actions[named["clone3"]] = no_such
    actions[named["clone"]] = [_argument(0), (_ANY_BIT, 1, 0, _NAMESPACES), *allow, *deny]
    actions[named["fcntl"]] = [
        _argument(1),
        (_AT_LEAST, 0, 2, _LEASES[0]),
        (_AT_LEAST, 1, 0, _LEASES[1]),
        *deny,
        *allow,
    ]
    for name, (argument, values) in CONDITIONS.items():
        actions[named[name]] = [
            _argument(argument),
            *((_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)),
            *deny,
            *allow,
        ]
    # Each step is the first of a range of numbers with the same action.
    steps: list[tuple[int, list[Instruction]]] = []
    for number in range(_NEWEST):
        action = actions.get(number, deny)
        if not steps or steps[-1][1] is not action:
            steps.append((number, action))
    steps += [(_NEWEST, no_such), (_X32, [(_RETURN, 0, 0, _KILL)])]
    code = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH[platform.machine()]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        *_search(steps),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _argument(number: int) -> Instruction:
    """Loads the lower half of an argument; the kernel also reads only 32 bits of these."""
    return _LOAD, 0, 0, 16 + 8 * number


def _search(steps: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """Code that finds the last step at or below the number, and takes its action."""
    if len(steps) == 1:
        return steps[0][1]
    middle = len(steps) // 2
    below, above = _search(steps[:middle]), _search(steps[middle:])
    pivot = steps[middle][0]
    if len(below) < 256:
        return [(_AT_LEAST, len(below), 0, pivot), *below, *above]
    return [(_AT_LEAST, 0, 1, pivot), (_JUMP, 0, 0, len(below)), *below, *above]
