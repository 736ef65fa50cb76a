"""The command that starts a guest."""

import subprocess
import sys
from pathlib import Path

from retool_env.sandbox import command


def guest(folder: Path, main: str) -> str:
    """The output of a guest with this `main`, started as a sandbox starts guests."""
    package = folder / "guest"
    package.mkdir(exist_ok=True)
    (package / "supervisor.py").write_text(f"import sys\ndef main():\n    {main}\n")
    code = command.START.format(str(folder))
    arguments = [sys.executable, *command.INTERPRETER_OPTIONS, "-c", code, "given"]
    environment = command.GUEST_ENVIRONMENT
    return subprocess.run(arguments, env=environment, capture_output=True, text=True).stdout


def test_the_guest_gets_its_arguments_and_its_folder_is_not_on_the_path(tmp_path: Path) -> None:
    shown = guest(tmp_path, f"print(sys.argv[1:], {str(tmp_path)!r} in sys.path)")
    assert shown == "['given'] False\n"


def test_sets_print_in_the_same_order_in_every_guest(tmp_path: Path) -> None:
    shown = guest(tmp_path, "print({str(number) for number in range(20)})")
    assert shown and shown == guest(tmp_path, "print({str(number) for number in range(20)})")
