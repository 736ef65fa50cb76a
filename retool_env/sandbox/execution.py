"""What a run is given (`Limits`), what it returns (`Execution`), and who runs it (`Sandbox`)."""

import dataclasses
import enum
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, runtime_checkable


class Outcome(enum.StrEnum):
    """How a program ended. Exactly one applies to each run."""

    OK = "ok"
    """It ran to its end, or called `sys.exit(0)`. What it wrote on stderr does not matter."""

    SYNTAX_ERROR = "syntax_error"
    """It did not compile, so nothing of it ran."""

    RUNTIME_ERROR = "runtime_error"
    """It raised, exited with a status other than 0, or was ended by a signal."""

    TIMEOUT = "timeout"
    """It was still running after `Limits.wall_seconds`."""

    MEMORY_LIMIT = "memory_limit"
    """It asked for more than `Limits.memory_mb` and did not recover."""

    OUTPUT_LIMIT = "output_limit"
    """It wrote more than `Limits.output_bytes`, and was ended."""

    BLOCKED = "blocked"
    """It ended on something the sandbox denies: the network, a write outside /tmp, a syscall."""

    INFRASTRUCTURE = "infrastructure_failure"
    """The sandbox failed before the program began. Not the program's doing: never train on it."""


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Raises:
        ValueError: a limit is not positive, or `memory_mb` leaves no room for the interpreter.
    """

    wall_seconds: float = 5.0
    """Seconds from the program's first instruction to its end; start-up is not counted."""

    memory_mb: int = 1024
    """Address space of each of its processes, in MiB, the interpreter included: 64 at least, and
    256 for numpy and sympy together."""

    output_bytes: int = 1_048_576
    """Bytes it may write on stdout."""

    processes: int = 16
    """Processes and threads alive at once, the first one included. Each has its own
    `memory_mb`, so this also bounds the whole."""

    tmp_mb: int = 16
    """Size of its private /tmp, in MiB, and of any one file there."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise ValueError(f"Limits.{name} must be positive, not {value!r}")
        if self.memory_mb < 64:
            raise ValueError(f"Limits.memory_mb must be at least 64, not {self.memory_mb}")


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Execution:
    """What came of one program."""

    outcome: Outcome
    """How it ended."""

    stdout: str
    """What it wrote on stdout until then; undecodable bytes are replaced by U+FFFD."""

    error: str = ""
    """One line that says what went wrong; empty when `outcome` is `Outcome.OK`."""

    duration: float = field(default=0.0, compare=False)
    """Seconds the program ran. Left out of comparisons: it differs between equal runs."""


class SandboxUnavailable(RuntimeError):
    """The sandbox cannot work on this machine. The message says what would make it work."""


@runtime_checkable
class Sandbox(Protocol):
    """Runs programs, each one a whole script in a fresh interpreter."""

    def run(self, code: str, limits: Limits = DEFAULT_LIMITS) -> Execution:
        """Runs `code` to its end. Never raises for anything the program does."""

    async def run_async(self, code: str, limits: Limits = DEFAULT_LIMITS) -> Execution:
        """Like `run`, many at once; cancelling it ends the program."""

    def close(self) -> None:
        """Frees what the sandbox holds. May be called again; running afterwards raises."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
