"""A plain child process: no jail. For machines that have none, and programs that can be trusted.

It keeps the time and output limits, and the memory limit where the system knows one, starts the
program with a bare environment in an empty folder, and ends the processes it leaves behind in its
process group. It does **not** keep a program from the network, from files, or from other processes.
"""

import importlib.util
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retool_env.sandbox.execution import Limits
from retool_env.sandbox.process import (
    GUEST,
    GUEST_ENVIRONMENT,
    INTERPRETER_OPTIONS,
    Command,
    ProcessSandbox,
)


class UnsafeSandbox(ProcessSandbox):
    """Runs programs with all the rights of this process; see the module's text.

    Warns:
        RuntimeWarning: always, as a program can do whatever its user can.
    """

    def __init__(self, concurrency: int | None = None) -> None:
        super().__init__(concurrency)
        warnings.warn(
            "UnsafeSandbox does not isolate the programs it runs: they can read and delete your "
            "files and use the network; prefer make_sandbox('nsjail')",
            RuntimeWarning,
            stacklevel=2,
        )
        found = (importlib.util.find_spec(name) for name in ("numpy", "sympy", "mpmath"))
        origins = {
            str(Path(spec.origin).parents[1]): None for spec in found if spec and spec.origin
        }
        self._packages = tuple(origins)

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self.concurrency,)

    @contextmanager
    def _command(self, limits: Limits) -> Iterator[Command]:
        memory = str(limits.memory_mb << 20) if sys.platform == "linux" else "0"
        with tempfile.TemporaryDirectory(prefix="retool-", ignore_cleanup_errors=True) as folder:
            yield Command(
                argv=(
                    sys.executable,
                    *INTERPRETER_OPTIONS,
                    str(GUEST),
                    memory,
                    *self._packages,
                ),
                env=GUEST_ENVIRONMENT | {"HOME": folder, "TMPDIR": folder},
                cwd=folder,
            )

    def _signal(self, status: int) -> int:
        return -status if status < 0 else 0

    def _end(self, pid: int, exited: bool) -> None:
        os.killpg(pid, signal.SIGKILL)
