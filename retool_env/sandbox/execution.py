"""What a run is given (`Limits`), what it returns (`Execution`), and who runs it (`Sandbox`)."""

import dataclasses
import enum
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, runtime_checkable


class Outcome(enum.StrEnum):
    """How a program ended. Exactly one applies to each run."""

    OK = "ok"
    """It ran to its end, or exited with status 0. What it wrote on stderr does not matter."""

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
        ValueError: a limit is not positive.
    """

    wall_seconds: float = 5.0
    """Seconds from the program's first instruction to its end; start-up is not counted."""

    memory_mb: int = 1024
    """Address space, in MiB, that each of its processes may add to the interpreter's own."""

    output_bytes: int = 1_048_576
    """Bytes it may write on stdout."""

    processes: int = 16
    """Processes and threads alive at once, the first one included. Each process has its own
    `memory_mb`, so this also bounds the whole: 16 processes may hold 16 times as much. A program is
    told of as many processors, but of four at most (`os.cpu_count()`, its affinity)."""

    tmp_mb: int = 16
    """Size of its private /tmp, in MiB, and of any one file there."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise ValueError(f"Limits.{name} must be positive, not {value!r}")


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Execution:
    """What came of one program.

    What the host sees decides `outcome`: the exit status, a signal, the clock, the amount of output. A program can write
    to all memory of its own process, where it is noted how it failed; so it can choose the words of its own error, but
    cannot pass a failure off as `Outcome.OK`. A block of a session can: it may forge what is noted of its own session's
    blocks while their process goes on. Such figures are still those of the model that forged them.
    """

    outcome: Outcome
    """How it ended."""

    stdout: str
    """What it wrote on stdout until then; undecodable bytes are replaced by U+FFFD."""

    error: str = ""
    """One line that says what went wrong; empty when `outcome` is `Outcome.OK`."""

    traceback: str = ""
    """Where the program itself raised or does not compile: Python's traceback, of which only the
    frames of the program are kept, the lines of its text with them; `error` is its last line."""

    duration: float = field(default=0.0, compare=False)
    """Seconds the program ran. Left out of comparisons: it differs between equal runs."""


class SandboxUnavailable(RuntimeError):
    """The sandbox cannot work on this machine. The message says what would make it work."""


@runtime_checkable
class Session(Protocol):
    """One process that runs one block of code after another, as a notebook does.

    Names, imports, files in /tmp, threads and processes last from one block to the next; between
    blocks they are stopped. A block that ends the process (a time-out, `os._exit`, too much output
    or memory) ends the session: its error says so, and the next block begins in a fresh process.
    """

    def run(self, code: str) -> Execution:
        """Runs one block to its end. Never raises for anything the block does."""

    async def run_async(self, code: str) -> Execution:
        """Like `run`; cancelling it ends the session's process."""

    def close(self) -> None:
        """Ends the process. May be called again; running afterwards raises."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class Sandbox(Protocol):
    """Runs programs, each one a whole script in a fresh interpreter.

    `stdin` is what the program finds on its standard input. With `display`, the value of a last
    statement that is an expression is shown on stdout, as a REPL does, unless it is `None`.
    """

    def run(
        self,
        code: str,
        limits: Limits = DEFAULT_LIMITS,
        *,
        stdin: str = "",
        display: bool = False,
    ) -> Execution:
        """Runs `code` to its end. Never raises for anything the program does."""

    async def run_async(
        self,
        code: str,
        limits: Limits = DEFAULT_LIMITS,
        *,
        stdin: str = "",
        display: bool = False,
    ) -> Execution:
        """Like `run`, many at once; cancelling it ends the program."""

    def session(self, limits: Limits = DEFAULT_LIMITS, *, display: bool = False) -> Session:
        """Begins a session; each of its blocks has `limits.wall_seconds` and `output_bytes`.

        Raises:
            SandboxUnavailable: this sandbox has none.
        """

    def close(self) -> None:
        """Ends what still runs and frees what the sandbox holds; running afterwards raises."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
