"""A program's identity, inside and outside: user, capabilities, environment, descriptors."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.intruders import CALL, PATIENT, QUICK, descendants, guest_processes, inside, status

from retool_env.sandbox import NsjailSandbox, Outcome


@pytest.fixture
def sleeper(jail: NsjailSandbox):
    """The process id of a running program on the host."""
    with ThreadPoolExecutor(1) as thread:
        before = set(descendants(jail.pool.guests[0].process.pid))
        future = thread.submit(
            jail.run, "import os, time\nif not os.fork(): time.sleep(9)\nos.wait()", PATIENT
        )
        found: list[int] = []
        while not found:  # the program's child, which has no reason to be anything else
            now = set(descendants(jail.pool.guests[0].process.pid)) - before
            found = [pid for pid in now if inside(pid) == "2"]
            assert not future.done()
        yield found[0]
        os.kill(found[0], 9)
        future.result()


def test_user_inside(jail: NsjailSandbox) -> None:
    code = "import os\nprint(0 in os.getresuid() + os.getresgid(), os.getgroups())"
    shown, groups = jail.run(code, QUICK).stdout.split(maxsplit=1)
    assert shown == "False"
    assert "0," not in groups and groups != "[0]\n"


def test_user_outside(jail: NsjailSandbox, sleeper: int) -> None:
    template = guest_processes(jail)[1]
    users, groups = set(status(sleeper, "Uid")), set(status(sleeper, "Gid"))
    assert "0" not in users | groups
    if os.geteuid() == 0:  # nobody else has it, the guest no more than the rest of the machine
        assert min(map(int, users | groups)) >= 0x7000_0000
        assert not users & set(status(template, "Uid"))
    else:
        assert os.readlink(f"/proc/{sleeper}/ns/user") != os.readlink("/proc/self/ns/user")


@pytest.mark.parametrize("set_", ["CapEff", "CapPrm", "CapInh", "CapAmb"])
def test_capabilities_outside(sleeper: int, set_: str) -> None:
    assert int(status(sleeper, set_)[0], 16) == 0


def test_capabilities_inside(jail: NsjailSandbox) -> None:
    code = """
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[7] * 6)
print(call(125, 90, header, data), any(data))
"""
    assert jail.run(CALL + code, QUICK).stdout == "0 False\n"


def test_no_new_privileges(jail: NsjailSandbox, sleeper: int) -> None:
    assert jail.run(f"{CALL}\nprint(libc.prctl(39, 0, 0, 0, 0))", QUICK).stdout == "1\n"
    assert status(sleeper, "NoNewPrivs") == ["1"]
    assert status(sleeper, "Seccomp") == ["2"]
    assert int(status(sleeper, "Seccomp_filters")[0]) >= 2


def test_guest_is_not_traceable(jail: NsjailSandbox) -> None:
    """The guest's files in /proc then belong to root, whichever user the process has."""
    for pid in guest_processes(jail):
        assert os.stat(f"/proc/{pid}/mem").st_uid == 0
        assert status(pid, "Uid")[0] != "0"


@pytest.mark.parametrize("kind", ["pid", "mnt", "ipc", "net"])
def test_namespaces_of_its_own(jail: NsjailSandbox, sleeper: int, kind: str) -> None:
    """nsjail makes the guest's namespaces; the guest makes each program's, except the network's."""
    supervisor = guest_processes(jail)[0]
    if os.geteuid() != 0:  # the links of an untraceable process are root's to read
        supervisor = os.getpid()
    inode = os.readlink(f"/proc/{sleeper}/ns/{kind}")
    assert inode != os.readlink(f"/proc/self/ns/{kind}")
    if kind != "net":
        assert inode != os.readlink(f"/proc/{supervisor}/ns/{kind}")


def test_session_of_its_own(jail: NsjailSandbox, sleeper: int) -> None:
    """Otherwise `kill(0)` and `setpriority` would reach a guest with the program's user."""
    assert status(sleeper, "NSsid")[-1] == "1"
    assert status(sleeper, "NSpgid")[-1] == "1"


def test_inherited_descriptors(jail: NsjailSandbox) -> None:
    """There are three; none leads to the guest, to the host, or to the record."""
    code = """
import os, stat
for number in range(4096):
    try:
        mode = os.fstat(number).st_mode
    except OSError:
        continue
    print(number, stat.S_ISCHR(mode), stat.S_ISFIFO(mode))
"""
    assert jail.run(code, QUICK).stdout == "0 True False\n1 False True\n2 True False\n"


def test_inherited_objects(jail: NsjailSandbox) -> None:
    """Objects that Python keeps from the template have no open descriptor behind them."""
    code = """
import gc, os, socket
working = []
for thing in gc.get_objects():
    if isinstance(thing, socket.socket) and thing.fileno() >= 0:
        try:
            os.fstat(thing.fileno())
            working.append(thing)
        except OSError:
            pass
print(working)
"""
    assert jail.run(code, QUICK).stdout == "[]\n"


def test_environment(jail: NsjailSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither `os.environ` nor the memory that the kernel filled at the guest's start has more."""
    monkeypatch.setenv("SECRET_TOKEN", "s3cr3t")
    code = """
import ctypes, os
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
names, i = [], 0
while environ[i]:
    names.append(environ[i].split(b"=")[0].decode())
    i += 1
print(sorted(set(names) | set(os.environ)))
"""
    with NsjailSandbox(guests=1) as fresh:
        shown = fresh.run(code, PATIENT).stdout
    assert shown == "['HOME', 'LANG', 'OPENBLAS_NUM_THREADS', 'PYTHONHASHSEED']\n"


def test_texts_of_earlier_programs(jail: NsjailSandbox) -> None:
    """Programs are copies of a template that never holds a program, so no text is left over."""
    secret = "verdigris" + "seventeen"
    assert jail.run(f"kept = {secret!r} * 100", QUICK).outcome is Outcome.OK
    code = """
import gc
wanted = "verdigris" + str("seventeen")
found = [text for thing in gc.get_objects() if isinstance(thing, dict)
         for text in list(thing.values()) if isinstance(text, str) and wanted * 2 in text]
print(len(found))
"""
    assert jail.run(code, PATIENT).stdout == "0\n"
