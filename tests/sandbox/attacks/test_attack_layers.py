"""Tests one defence at a time, without the defences that would hide its absence."""

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from helpers.intruders import CALL, PATIENT

from retool_env.sandbox import NsjailSandbox, Outcome, guest, nsjail

NO_INNER = ("process.py", "        confine.install_filter(code)\n", "")
ALLOW_ALL = "DEFAULT ALLOW"
CONNECT = """
import socket
try:
    print(socket.create_connection(("127.0.0.1", {port}), 2).recv(9))
except OSError as error:
    print(error.errno)
"""


@pytest.fixture
def weaker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., NsjailSandbox]:
    """Makes sandboxes with an edited guest, or with a different outer filter."""

    @contextmanager
    def make(*edits: tuple[str, str, str], policy: str | None = None) -> Iterator[NsjailSandbox]:
        folder = tmp_path / "guest"
        shutil.copytree(Path(guest.__file__).parent, folder)
        for name, old, new in edits:
            text = (folder / name).read_text()
            assert text.count(old) == 1, f"{name} has changed: {old!r}"
            (folder / name).write_text(text.replace(old, new))
        edited = ModuleType("guest")
        edited.__file__ = str(folder / "__init__.py")
        monkeypatch.setattr(nsjail, "guest", edited)
        if policy is not None:
            monkeypatch.setattr(nsjail, "SECCOMP_POLICY", policy)
        with NsjailSandbox(guests=1) as sandbox:
            yield sandbox

    return make


OUTER = {
    "ptrace": (101, 117),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "keyctl": (250, 219),
    "userfaultfd": (323, 282),
    "personality": (135, 92),
    "open_by_handle_at": (304, 265),
    "umount2": (166, 39),
    "setns": (308, 268),
}


def test_outer_filter_without_the_inner(weaker: Callable[..., NsjailSandbox]) -> None:
    calls = "; ".join(f"print(call({x}, {a}, 0, 0, 0, 0, 0))" for x, a in OUTER.values())
    code = f"""{CALL}
{calls}
for family in (2, 10, 16, 17, 40):
    print(call(41, 198, family, 1, 0))
for flag in (0x0200_0000, 0x0400_0000, 0x1000_0000, 0x4000_0000):
    print(call(56, 220, flag | 17, 0, 0, 0, 0))
print(call(435, 435, 0, 0))
print(call(319, 279, ctypes.create_string_buffer(b"x"), 0) > 2)
"""
    with weaker(NO_INNER) as sandbox:
        shown = sandbox.run(code, PATIENT).stdout.split()
    expected = ["EPERM"] * len(OUTER) + ["EACCES"] * 5 + ["EPERM"] * 4 + ["ENOSYS"]
    assert shown == [*expected, "True"]  # memfd_create is what only the inner one denies


def test_inner_filter_without_the_outer(weaker: Callable[..., NsjailSandbox]) -> None:
    calls = "; ".join(f"print(call({x}, {a}, 0, 0, 0, 0, 0))" for x, a in OUTER.values())
    code = f"""{CALL}
{calls}
for flag in (0x0002_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000):
    print(call(56, 220, flag | 17, 0, 0, 0, 0))
print(call(435, 435, 0, 0))
print(call(319, 279, ctypes.create_string_buffer(b"x"), 0))
print(call(41, 198, 2, 1, 0) > 2)
"""
    with weaker(policy=ALLOW_ALL) as sandbox:
        shown = sandbox.run(code, PATIENT).stdout.split()
    expected = ["EPERM"] * len(OUTER) + ["EPERM"] * 5 + ["ENOSYS", "EPERM"]
    assert shown == [*expected, "True"]  # families of sockets are what only the outer one denies


def test_network_namespace_without_the_filters(weaker: Callable[..., NsjailSandbox]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = CONNECT.format(port=server.getsockname()[1])
        with weaker(NO_INNER, policy=ALLOW_ALL) as sandbox:
            assert sandbox.run(code, PATIENT).stdout == "101\n"  # ENETUNREACH


def test_mounts_and_identity_without_the_filters(weaker: Callable[..., NsjailSandbox]) -> None:
    """The program has no capability to mount, to change identity or to make a namespace."""
    code = f"""{CALL}
tmp = [ctypes.create_string_buffer(t) for t in (b"none", b"/tmp", b"tmpfs")]
print(call(165, 40, *tmp, 0, 0), call(166, 39, tmp[1], 2), call(161, 51, tmp[1]))
print(call(272, 97, 0x0002_0000), call(272, 97, 0x4000_0000))
print(call(117, 147, 0, 0, 0), call(170, 161, tmp[0], 4))
"""
    with weaker(NO_INNER, policy=ALLOW_ALL) as sandbox:
        shown = sandbox.run(code, PATIENT).stdout.split()
    # Where its user is nobody at all, 0 is no valid number (EINVAL).
    assert set(shown) <= {"EPERM", "EINVAL"} and len(shown) == 7


def test_system_v_memory_without_the_inner_filter(weaker: Callable[..., NsjailSandbox]) -> None:
    """The IPC namespace hides the memory of one program from the next."""
    find = "print(call(29, 194, 4242, 4096, 0o666) == 'ENOENT')\n"
    with weaker(NO_INNER) as sandbox:
        leave = f"{CALL}\ncall(29, 194, 4242, 4096, 0o1666)\n{find}"
        assert sandbox.run(leave, PATIENT).stdout == "False\n"
        assert sandbox.run(f"{CALL}\n{find}", PATIENT).stdout == "True\n"


def test_neighbour_without_the_filters(weaker: Callable[..., NsjailSandbox]) -> None:
    """In its PID namespace, a program finds no other process to trace, signal or read."""
    code = f"""{CALL}
others = [n for n in range(1, 5000) if n != os.getpid()]
print([n for n in others if call(101, 117, 0x4206, n, 0, 0) != "ESRCH"])
print(call(62, 129, -1, 0))
"""
    with weaker(NO_INNER, policy=ALLOW_ALL) as sandbox:
        assert sandbox.run(code, PATIENT).stdout == "[]\nESRCH\n"


def test_guest_may_clone_what_the_program_may_not(jail: NsjailSandbox) -> None:
    """The guest made the program's namespaces, but the program itself must not make any."""
    code = f"{CALL}\nprint(os.getpid(), call(56, 220, 0x2000_0011, 0, 0, 0, 0))"
    assert jail.run(code, PATIENT).stdout == "1 EPERM\n"


def test_empty_root_without_the_filters(weaker: Callable[..., NsjailSandbox]) -> None:
    code = """
import os
found = {"/"} | {os.path.join(top, name) for top in ("/", "/dev") for name in os.listdir(top)}
print(sorted(path for path in found if os.access(path, os.W_OK)))
"""
    with weaker(NO_INNER, policy=ALLOW_ALL) as sandbox:
        execution = sandbox.run(code, PATIENT)
    assert execution.outcome is Outcome.OK
    assert eval(execution.stdout) == ["/dev/null", "/dev/shm", "/mnt", "/tmp"]


def test_mounts_are_read_only(jail: NsjailSandbox) -> None:
    """An ordinary user's programs can have the user id of the files' owner."""
    code = """
import mpmath, numpy, os, sympy, sys
places = ["/", "/guest", sys.executable, os.__file__, *(m.__file__ for m in (mpmath, numpy, sympy))]
print([place for place in places if not os.statvfs(place).f_flag & os.ST_RDONLY])
"""
    assert jail.run(code, PATIENT).stdout == "[]\n"
