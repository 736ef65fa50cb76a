"""Messages on machines that cannot make a jail: each test causes a fault and checks the advice."""

import os
import resource
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.machines import CHECKOUT, as_ordinary_user, refusal

from retool_env.sandbox import NsjailSandbox, SandboxUnavailable
from retool_env.sandbox.diagnosis import diagnose, misplaced

ROOT = os.geteuid() == 0
NAMESPACES = "could not make its namespaces"

for_root = pytest.mark.skipif(not ROOT, reason="only root can arrange for it")


@pytest.fixture
def interpreter(tmp_path: Path) -> Iterator[Path]:
    """A copy of the interpreter outside /tmp, which a test may change."""
    folder = Path("/opt", f"retool-{os.getpid()}")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("no folder can be made outside of /tmp")
    yield copy_interpreter(folder)
    shutil.rmtree(folder)


def copy_interpreter(folder: Path) -> Path:
    """The executable of a copy of this interpreter, reduced to the necessary files."""
    executable = Path(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))
    library = Path(sysconfig.get_path("stdlib"))
    ignored = shutil.ignore_patterns("site-packages", "test", "tests", "__pycache__", "idlelib")
    shutil.copytree(library, folder / "lib" / library.name, ignore=ignored)
    (folder / "bin").mkdir()
    return Path(shutil.copy2(executable, folder / "bin"))


def refused(**settings: object) -> str:
    with pytest.raises(SandboxUnavailable) as raised:
        NsjailSandbox(guests=1, **{"packages": (), **settings})
    return str(raised.value)


# --- where the interpreter lies


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_an_interpreter_where_a_jail_has_a_folder_of_its_own(folder: str) -> None:
    copy = Path(folder, f"retool-{os.getpid()}")
    try:
        message = refused(python=str(copy_interpreter(copy)))
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    assert str(copy) in message and "an interpreter elsewhere (python=" in message
    assert NAMESPACES not in message


def test_what_is_mounted_elsewhere_may_come_from_tmp() -> None:
    assert misplaced([("/tmp/env/numpy", "/packages/numpy"), ("/tmpfs/x", "/tmpfs/x")]) == ""
    assert "/tmp/lib/libpython.so" in misplaced([("/usr/x", "/tmp/lib/libpython.so")])


def test_an_interpreter_that_is_copied_works(interpreter: Path) -> None:
    with NsjailSandbox(guests=1, packages=(), python=str(interpreter)) as sandbox:
        assert sandbox.run("import json, sys\nprint(sys.prefix)").stdout.startswith("/opt/retool-")


@for_root
def test_a_standard_library_that_the_programs_user_cannot_read(interpreter: Path) -> None:
    library = next(interpreter.parents[1].glob("lib/python*"))
    library.chmod(0o700)
    message = refused(python=str(interpreter))
    assert message.startswith("the programs' user cannot read the interpreter's standard library")
    assert f"chmod -R a+rX {library}" in message


def in_own_mounts(preparation: str, code: str) -> str:
    """The output of a script in its own mount namespace, after preparation by a shell."""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec"]
    script = (
        "from retool_env.sandbox import *\n"
        f"try:\n    {code}\nexcept SandboxUnavailable as error:\n    print(error)"
    )
    done = subprocess.run(
        [*command, f'{preparation}\nexec "$@"', "sh", sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@for_root
def test_what_lies_on_a_file_system_without_execution(interpreter: Path, jail) -> None:
    """The interpreter, and nsjail."""
    mounted = interpreter.parents[1] / "mounted"
    mounted.mkdir()
    preparation = (
        f"mount -t tmpfs none {mounted}; cp -a {interpreter.parents[1]}/bin {mounted}/\n"
        f"cp {jail.binary} {mounted}/nsjail; mount -o remount,noexec {mounted}"
    )
    for setting, path in (
        ("python", mounted / "bin" / interpreter.name),
        ("binary", mounted / "nsjail"),
    ):
        message = in_own_mounts(preparation, f"NsjailSandbox({setting}={str(path)!r})")
        assert str(path) in message and "Permission denied" in message
        assert "mounted `noexec`" in message and NAMESPACES not in message


@for_root
def test_no_proc() -> None:
    message = in_own_mounts("umount -l /proc", "NsjailSandbox()")
    assert message.startswith("nsjail needs /proc")
    assert "mount -t proc proc /proc" in message


# --- limits of this process


@pytest.mark.parametrize(
    ("name", "value", "option"),
    [
        ("AS", 4 << 30, "-v"),
        ("CPU", 3600, "-t"),
        ("FSIZE", 1 << 20, "-f"),
    ],
)
def test_limits_that_guests_cannot_have(name: str, value: int, option: str) -> None:
    script = (
        f"import resource; resource.setrlimit(resource.RLIMIT_{name}, ({value}, {value}))\n"
        "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    )
    message = refusal([sys.executable, "-c", script])
    assert message.startswith("this process has a limit that its guests cannot have")
    assert f"RLIMIT_{name}:" in message and f"`ulimit {option} unlimited`" in message
    assert NAMESPACES not in message


def test_a_soft_limit_does_not_matter() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, -1))\n"
        "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    )
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:
        pytest.skip("there is a hard limit")
    assert refusal([sys.executable, "-c", script]) == ""


def test_files_that_may_have_no_size() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    )
    message = refusal([sys.executable, "-B", "-c", script])
    assert message.startswith("the limit on the size of files is too low")
    assert "`ulimit -f unlimited`" in message


@for_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="util-linux is needed")
def test_no_more_processes() -> None:
    """The limit strikes this process, nsjail, or a guest."""
    seen = set()
    for number in range(2, 6):
        script = (
            f"import resource; resource.setrlimit(resource.RLIMIT_NPROC, ({number}, {number}))\n"
            "from retool_env.sandbox import make_sandbox, SandboxUnavailable\n"
            "try:\n    make_sandbox(guests=1)\n"
            "except SandboxUnavailable as error:\n    print(error)"
        )
        command = as_ordinary_user([sys.executable, "-c", script], user=54400 + number)
        env = os.environ | {"PYTHONPATH": str(CHECKOUT), "HOME": "/", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert "`ulimit -u`" in done.stdout and NAMESPACES not in done.stdout, done.stdout
        seen.add(done.stdout.partition(":")[0])
    assert len(seen) > 1


# --- namespaces


@pytest.mark.parametrize("kind", ["net", "pid", "user"])
def test_kinds_of_namespaces_that_the_kernel_gives_none_of(kind: str) -> None:
    limit = f'echo 0 > /proc/sys/user/max_{kind}_namespaces && exec "$@"'
    message = refusal(["unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh"])
    assert NAMESPACES in message and f"sudo sysctl user.max_{kind}_namespaces=15000" in message


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        ("libfoo.so: cannot open shared object file", "a probe program did not run"),
        (
            "error while loading shared libraries: libnl-3.so: cannot open shared object file",
            "apt-get install",
        ),
        (
            "error while loading shared libraries: libc.so.6: failed to map segment",
            "`ulimit -v unlimited`",
        ),
        ("MemoryError", "`ulimit -v unlimited`"),
        ("clone(flags=CLONE_NEWNS) failed: Operation not permitted", "--privileged"),
        ("mount('/', MS_PRIVATE): Permission denied", "--privileged"),
        ("something new", "a probe program did not run in nsjail: something new"),
    ],
)
def test_what_is_made_of_other_words(failure: str, advice: str) -> None:
    message = diagnose(failure, "/usr/lib/python3")
    assert advice in message and failure in message
