"""Guests without a jail, for trusted programs on machines that cannot make jails.

The limits on time, output and memory hold. Each program starts in an empty folder with a bare
environment, and the processes that it leaves in its process group are ended. Nothing keeps a
program from the network, from files, or from other processes.
"""

import os
import sys
import warnings
from pathlib import Path

from retool_env.execution import SandboxUnavailable
from retool_env.sandbox import command, guest
from retool_env.sandbox.local import PooledSandbox
from retool_env.sandbox.survey import survey


class UnsafeSandbox(PooledSandbox):
    """Runs programs with all the rights of this process; see the module's docstring.

    Args:
        concurrency: The number of programs that run at once; see `PooledSandbox`.
        guests: The number of guests of each kind; see `PooledSandbox`.

    Raises:
        SandboxUnavailable: The system is not Linux.

    Warns:
        RuntimeWarning: Always, because a program can do whatever its user can.
    """

    def __init__(self, concurrency: int | None = None, guests: int | None = None) -> None:
        super().__init__(concurrency, guests, command.PACKAGES)
        if sys.platform != "linux":
            raise SandboxUnavailable("the guests need Linux: run in a container")
        warnings.warn(
            "UnsafeSandbox does not isolate the programs it runs: they can read and delete your "
            "files and use the network; prefer make_sandbox('nsjail')",
            RuntimeWarning,
            stacklevel=2,
        )
        self._begin(_command, "a probe program did not run: {}".format)

    def __reduce__(self) -> tuple[type, tuple[int, int]]:
        return type(self), (self.concurrency, self.number_of_guests)


def _command(packages: tuple[str, ...]) -> command.Command:
    """The command that starts a guest without a jail."""
    mounts = survey([*command.PACKAGES, "tzdata"])["mounts"]
    folders = {str(Path(source).parent) for source, target in mounts if "/packages/" in target}
    proc = os.open("/proc", os.O_RDONLY)
    start = command.START.format(str(Path(guest.__file__).parents[1]))
    arguments = [sys.executable, *command.INTERPRETER_OPTIONS, "-c", start, str(proc), "bare", "-"]
    arguments += [":".join(sorted(folders)), *packages]
    return command.Command(arguments, command.GUEST_ENVIRONMENT, (proc,))
