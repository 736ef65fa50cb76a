"""Simulated machines: an ordinary user, and a sandbox that refuses to start."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import retool_env

CHECKOUT = Path(retool_env.__file__).parents[1]


def refusal(command: list[str]) -> str:
    """Make a sandbox in a process that `command` starts; returns the message of the refusal."""
    script = (
        "from retool_env.sandbox import make_sandbox, SandboxUnavailable\n"
        "try:\n    make_sandbox()\nexcept SandboxUnavailable as error:\n    print(error)"
    )
    env = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [*command, sys.executable, "-c", script], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_ordinary_user(command: list[str], user: int = 54321) -> list[str]:
    """A command of root that runs `command` as an ordinary user.

    If a closed home directory holds the interpreter, the environment or the checkout, a mount
    namespace replaces it with an open directory that holds only these.
    """
    needed = {Path(sys.base_prefix), Path(sys.prefix), CHECKOUT}
    lines = ["set -e", "hold=$(mktemp -d)"]
    closed: dict[Path, list[Path]] = {}
    for path in needed:
        outermost = [parent for parent in path.parents if not parent.stat().st_mode & 0o001]
        if outermost:
            closed.setdefault(outermost[-1], []).append(path)
    for folder, paths in closed.items():
        for number, path in enumerate(paths):
            lines += [f"mkdir $hold/{number}", f"mount --bind {path} $hold/{number}"]
        lines.append(f"mount -t tmpfs -o mode=755 none {folder}")
        for number, path in enumerate(paths):
            lines += [f"mkdir -p {path}", f"mount --move $hold/{number} {path}"]
            lines.append(f"rmdir $hold/{number}")
    lines.append("rmdir $hold")
    drop = f"exec setpriv --reuid {user} --regid {user} --clear-groups --inh-caps=-all"
    lines.append(f"{drop} {shlex.join(command)}")
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines)]
