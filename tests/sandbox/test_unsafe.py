"""The sandbox without isolation: it warns, and still bounds and cleans up."""

import os
from pathlib import Path

import pytest
from helpers.marks import Mark

from retool_env.sandbox import (
    Limits,
    Outcome,
    SandboxUnavailable,
    UnsafeSandbox,
    make_sandbox,
)


def test_it_warns_and_has_to_be_asked_for_by_name() -> None:
    with pytest.warns(RuntimeWarning, match="does not isolate"):
        sandbox = make_sandbox("unsafe", guests=1)
    with sandbox:
        assert isinstance(sandbox, UnsafeSandbox)
    with make_sandbox(guests=1) as default:
        assert not isinstance(default, UnsafeSandbox)


def test_bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "token")
    with pytest.warns(RuntimeWarning), UnsafeSandbox(guests=1) as unsafe:
        assert "token" not in unsafe.run("import os\nprint(dict(os.environ))").stdout


def test_folder_of_its_own_is_removed(unsafe: UnsafeSandbox) -> None:
    code = (
        "import os, tempfile\nopen('left', 'w').close()\nprint(os.getcwd())\n"
        "print(tempfile.mkdtemp().startswith(os.getcwd()), os.environ['HOME'] == os.getcwd())"
    )
    folders = set()
    for _ in range(3):
        folder, own = unsafe.run(code).stdout.splitlines()
        assert own == "True True"
        folders.add(Path(folder))
    assert len(folders) == 3
    for folder in folders:
        assert folder != Path.cwd() and "retool-" in folder.name and not folder.exists()


def test_it_is_the_same_user(unsafe: UnsafeSandbox) -> None:
    assert unsafe.run("import os\nprint(os.getuid())").stdout == f"{os.getuid()}\n"


def test_a_process_that_leaves_the_group_is_all_that_is_left(unsafe: UnsafeSandbox) -> None:
    mark, other = Mark(), Mark()
    code = (
        f"{mark.code}import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n"
        f"    {other.code.replace(chr(10), '; ')}time.sleep(2)\n"
        "elif os.fork() == 0:\n    time.sleep(60)\n"
        "else:\n    time.sleep(0.3)"
    )
    unsafe.run(code, Limits(wall_seconds=5))
    assert mark.wait_for(0) == []
    for pid in other.find():  # as its documentation says
        os.kill(pid, 9)


def test_it_can_end_by_any_signal(unsafe: UnsafeSandbox) -> None:
    for number, name in ((15, "SIGTERM"), (40, "signal 40")):
        execution = unsafe.run(f"import os\nos.kill(os.getpid(), {number})")
        assert (execution.outcome, execution.error) == (Outcome.RUNTIME_ERROR, f"ended by {name}")


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="need Linux"):
        UnsafeSandbox()
