"""The sandbox that isolates nothing: it says so, and still bounds and cleans up."""

import os
from pathlib import Path

import pytest

from retool_env.sandbox import UnsafeSandbox, make_sandbox


def test_it_warns_and_has_to_be_asked_for_by_name() -> None:
    with pytest.warns(RuntimeWarning, match="does not isolate"):
        sandbox = make_sandbox("unsafe")
    assert isinstance(sandbox, UnsafeSandbox)
    assert not isinstance(make_sandbox(), UnsafeSandbox)


def test_bare_environment(unsafe: UnsafeSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "token")
    assert "token" not in unsafe.run("import os\nprint(dict(os.environ))").stdout


def test_folder_of_its_own_is_removed(unsafe: UnsafeSandbox) -> None:
    code = "import os\nopen('left', 'w').close()\nprint(os.getcwd())"
    folder = Path(unsafe.run(code).stdout.strip())
    assert folder != Path.cwd() and "retool-" in folder.name
    assert not folder.exists()


def test_it_is_the_same_user(unsafe: UnsafeSandbox) -> None:
    assert unsafe.run("import os\nprint(os.getuid())").stdout == f"{os.getuid()}\n"
