"""Attacks on files: the host's, another program's, and too many of the program's own."""

import os
from pathlib import Path

import pytest
from helpers.intruders import PATIENT, QUICK, together

import retool_env
from retool_env.sandbox import Limits, NsjailSandbox, Outcome

HOST = [
    "/etc/passwd",
    "/etc/shadow",
    "/root",
    "/home",
    "/proc",
    "/sys",
    "/run",
    "/var/run",
    "/boot",
]
DEVICES = [
    "/dev/kmsg",
    "/dev/mem",
    "/dev/vda",
    "/dev/sda",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/fuse",
    "/dev/kvm",
]


@pytest.mark.parametrize(
    "path", [*HOST, *DEVICES, str(Path(retool_env.__file__)), "/proc/self/mem"]
)
def test_path_of_the_host(jail: NsjailSandbox, path: str) -> None:
    code = f"""
import os
try:
    os.close(os.open({path!r}, os.O_RDONLY | os.O_NONBLOCK))
    # Folders may be there, for the interpreter's sake, with nothing else in them.
    print(set(os.listdir({path!r})) - {{".pyenv", "lib", "local", "python", "opt"}})
except (FileNotFoundError, PermissionError):
    print("set()")
"""
    assert jail.run(code, QUICK).stdout == "set()\n"


def test_memory_of_processes(jail: NsjailSandbox) -> None:
    code = """
import os
print([n for n in ("1", "2", "self", "thread-self") if os.path.lexists(f"/proc/{n}/mem")])
"""
    assert jail.run(code, QUICK).stdout == "[]\n"


def test_secrets_of_the_host(jail: NsjailSandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cr3t")
    secret.chmod(0o666)
    code = f"""
import os
path = {str(secret)!r}
folders = ("", "/tmp/../", "/packages/../..", "/proc/1/root", "/guest/../")
ways = [folder + path for folder in folders]
os.symlink(path, "/tmp/soft")
print([way for way in [*ways, "/tmp/soft"] if os.path.exists(way)])
os.makedirs("/tmp/deep/down")
down = os.open("/tmp/deep/down", os.O_RDONLY)
os.rename("/tmp/deep/down", "/tmp/up")  # moved while it is open, then climbed out of
for _ in range(30):
    os.chdir("..")
print(os.listdir(".") == os.listdir("/"), os.path.exists("." + path))
"""
    assert jail.run(code, QUICK).stdout == "[]\nTrue False\n"


@pytest.mark.parametrize(
    "folder",
    ["/", "/packages", "/guest", "/dev", "/packages/numpy", "os.path.dirname(os.__file__)"],
)
def test_writing_outside_tmp(jail: NsjailSandbox, folder: str) -> None:
    folder = folder if "(" in folder else repr(folder)
    code = f"""
import os, stat
folder = {folder}
files = [os.path.join(folder, name) for name in os.listdir(folder)]
files = [path for path in files if stat.S_ISREG(os.lstat(path).st_mode)][:3]
def attempts():
    yield lambda: open(os.path.join(folder, "new"), "w")
    yield lambda: os.mkdir(os.path.join(folder, "new"))
    yield lambda: os.symlink("/", os.path.join(folder, "new"))
    yield lambda: os.rename("/tmp", os.path.join(folder, "new"))
    for path in files:
        yield lambda: open(path, "r+b")
        yield lambda: os.unlink(path)
        yield lambda: os.chmod(path, 0o777)
        yield lambda: os.utime(path)
        yield lambda: os.truncate(path, 0)
        yield lambda: os.link(path, "/tmp/hard")
for attempt in attempts():
    try:
        attempt()
        print("succeeded")
    except OSError as error:
        if error.errno not in (1, 13, 16, 18, 30):
            print(error)
"""
    execution = jail.run(code, QUICK)
    assert (execution.outcome, execution.stdout) == (Outcome.OK, "")


def test_device_files(jail: NsjailSandbox) -> None:
    code = """
import os, stat
print(sorted(os.listdir("/dev")))
for kind in (stat.S_IFBLK, stat.S_IFCHR):
    try:
        os.mknod("/tmp/device", kind | 0o666, os.makedev(1, 1))
        print("made")
    except OSError as error:
        print(error.errno)
"""
    assert jail.run(code, QUICK).stdout == "['null', 'shm']\n1\n1\n"


def test_set_user_id(jail: NsjailSandbox) -> None:
    """A set-user-ID file runs as the user who starts it, not as its owner."""
    code = """
import os, sys
os.chmod("/tmp", 0o7777) if os.stat("/tmp").st_uid == os.getuid() else None
with open("/tmp/tool", "wb") as file:
    text = "import os\\nprint(0 in os.getresuid() + os.getresgid(), flush=True)\\n"
    file.write(f"#!{sys.executable}\\n{text}".encode())
try:
    os.chmod("/tmp/tool", 0o6755)
except OSError:
    os.chmod("/tmp/tool", 0o755)
os.execv("/tmp/tool", ["/tmp/tool"])
"""
    assert jail.run(code, QUICK).stdout == "False\n"


def test_full_tmp(jail: NsjailSandbox) -> None:
    code = """
import os
written = 0
try:
    for number in range(100):
        with open(f"/tmp/{number}", "wb", buffering=0) as file:
            written += file.write(bytes(1 << 18))
except OSError as error:
    print(error.strerror, written <= 2 << 20)
"""
    assert jail.run(code, QUICK).stdout == "No space left on device True\n"


def test_sparse_file(jail: NsjailSandbox) -> None:
    for attempt in ("file.truncate(1 << 40)", "os.pwrite(file.fileno(), b'x', 1 << 40)"):
        code = f"import os\nfile = open('/tmp/x', 'wb')\n{attempt}"
        execution = jail.run(code, QUICK)
        assert execution.error == "OSError: [Errno 27] File too large"


def test_many_files(jail: NsjailSandbox) -> None:
    """Empty files also take the kernel's memory."""
    code = """
import os
made = 0
try:
    while True:
        os.mkdir("deeper")
        os.chdir("deeper")
        os.symlink("/", "link")
        made += 2
except OSError as error:
    print(error.strerror, made < 5000)
"""
    assert jail.run(code, PATIENT).stdout == "No space left on device True\n"


def test_open_files(jail: NsjailSandbox) -> None:
    code = """
import os
opened = 0
try:
    while True:
        os.dup(1)
        opened += 1
except OSError as error:
    print(error.strerror, opened)
"""
    assert jail.run(code, QUICK).stdout == "Too many open files 125\n"


def test_files_of_a_neighbour(jail: NsjailSandbox) -> None:
    """Two programs at once use the same name in the same folder."""
    first = """
import os, time
open("/tmp/mine", "w").write("first")
time.sleep(0.8)
print(os.listdir("/tmp"), open("/tmp/mine").read())
"""
    second = """
import os
print(os.listdir("/tmp"))
open("/tmp/yours", "w").write("second")
open("/dev/shm/mine", "w").write("second")
"""
    shown = [execution.stdout for execution in together(jail, first, second)]
    assert shown == ["['mine'] first\n", "[]\n"]


def test_files_of_an_earlier_program(jail: NsjailSandbox) -> None:
    limits = Limits(wall_seconds=5, tmp_mb=2)
    for _ in range(2):
        code = "import os\nprint(os.listdir('/tmp'))\nopen('/tmp/left', 'w').write('x' * 2**20)"
        assert jail.run(code, limits).stdout == "[]\n"
    assert not os.path.exists("/tmp/left")


def test_shared_memory_and_semaphores(jail: NsjailSandbox) -> None:
    """POSIX shared memory and semaphores are files in the program's own folder, and count there."""
    code = """
import multiprocessing, time
from multiprocessing import shared_memory
memory = shared_memory.SharedMemory("meeting", create=True, size=4096)
memory.buf[0] = 7
lock = multiprocessing.Lock()
time.sleep(0.5)
print(memory.buf[0], lock.acquire(timeout=1))
try:
    shared_memory.SharedMemory("large", create=True, size=1 << 30)
except OSError as error:
    print(error.errno)
memory.close()
memory.unlink()
"""
    for execution in together(jail, code, code):
        assert execution.stdout == "7 True\n27\n", execution
