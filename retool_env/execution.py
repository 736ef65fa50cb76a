"""What a run is given (`Limits`), what it returns (`Execution`), and who runs it (`Sandbox`)."""

import enum
import errno
import numbers
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from retool_env.errors import SandboxUnavailable as SandboxUnavailable
from retool_env.errors import SettingsError


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


_MOST = {
    "wall_seconds": 1_000_000,
    "memory_mb": 1 << 32,
    "output_bytes": 1 << 40,
    "processes": 1 << 22,  # as many as Linux has numbers for
    "tmp_mb": 1 << 32,
}
"""The highest limits. All sums and products of them fit what the kernel and `poll` count with."""


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Raises:
        ValueError: A limit is not a number, not positive, or so high that the kernel could not
            count it; all but `wall_seconds` are whole numbers. The message names the limit.
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
        for name, most in _MOST.items():
            check = check_seconds if name == "wall_seconds" else check_whole_number
            value = check(f"Limits.{name}", getattr(self, name), most=most)
            object.__setattr__(self, name, value)


def check_whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Checks a setting that counts something.

    Args:
        name: What the caller knows it as.
        value: The setting.
        least: The smallest that makes sense.
        most: The largest that makes sense; `None`: any.

    Returns:
        The number, as Python's own integer.

    Raises:
        ValueError: It is not a whole number, or not between the two.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if whole and least <= value and (most is None or value <= most):
        return operator.index(value)
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise SettingsError(f"{name} must be a whole number {bounds}, not {_shown(value)}")


def check_seconds(name: str, value: Any, most: float = 1e9) -> float:
    """Checks a setting that is a length of time.

    Args:
        name: What the caller knows it as.
        value: The setting, in seconds.
        most: The longest that makes sense.

    Returns:
        The seconds.

    Raises:
        ValueError: It is not a number, not above 0, or longer than `most`.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if number and 0 < value <= most and float(value) > 0:
        return float(value)
    raise SettingsError(
        f"{name} must be a number of seconds, above 0 and at most {most:g}, not {_shown(value)}"
    )


def _shown(value: object) -> str:
    return f"{value!r:.60}"


DEFAULT_LIMITS = Limits()


def check_program(
    code: Any,
    limits: Any,
    stdin: Any = "",
    display: Any = False,
    files: "Files | None" = None,
) -> None:
    """Checks what a sandbox is asked to run, before anything of it is begun.

    Raises:
        TypeError: `code` or `stdin` is not a `str`, `limits` not a `Limits`, or `display` not a
            `bool`.
        ValueError: `stdin` and `files` are larger than the program's /tmp, where they would be kept.
    """
    if not isinstance(limits, Limits):
        raise TypeError(f"limits must be a Limits, as Limits(wall_seconds=2), not {_shown(limits)}")
    for name, value in (("code", code), ("stdin", stdin)):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if not isinstance(display, bool):
        raise TypeError(f"display must be True or False, not {_shown(display)}")
    sizes = {"stdin": len(stdin.encode("utf-8", "surrogatepass"))}
    if files is not None:
        sizes["files"] = sum(map(len, files.given.values()))
        sizes["stdin and files"] = sum(sizes.values())
    for name, size in sizes.items():
        if size > limits.tmp_mb << 20:
            raise SettingsError(
                f"{name}: {size} bytes are more than the {limits.tmp_mb} MiB of /tmp, where they are "
                "kept: raise Limits.tmp_mb, or give the program less"
            )


MOST_FILES = 256
"""How many files may go with a program, and come back from it."""


@dataclass
class Files:
    """Files that go into a program's folder with it, and those that come back when it is over.

    Raises:
        TypeError: A name is not a `str`, or a content not `bytes`.
        ValueError: A name is empty, or holds a NUL or `..`; or there are too many.
    """

    given: Mapping[str, bytes] = field(default_factory=dict)
    """Written before the program begins: the content by its name, a path from the program's folder /tmp."""
    wanted: Sequence[str] = ()
    """Names of those that are to come back."""
    fetched: dict[str, bytes] = field(default_factory=dict)
    """What came back. Left out: a file that is not there or can't be read, one beyond 8 MiB in all, and every one of a
    program that did not come to its end (a time-out, `os._exit`, a signal)."""

    def __post_init__(self) -> None:
        for names in (list(self.given), list(self.wanted)):
            if len(names) > MOST_FILES:
                raise ValueError(f"{len(names)} files are too many: {MOST_FILES} at most")
            for name in names:
                if not isinstance(name, str):
                    raise TypeError(f"a file's name must be a str, not {_shown(name)}")
                if not name or "\0" in name or ".." in name.split("/"):
                    raise ValueError(f"{name!r:.100} is not a file's name: a path without `..` is")
        for name, data in self.given.items():
            if not isinstance(data, bytes):
                raise TypeError(f"{name!r:.100} must hold bytes, not {type(data).__name__}")


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


_ADVICE = {
    errno.EMFILE: "close environments and sandboxes that are not used any longer, share one "
    "sandbox among several environments (sandbox=...), or raise the limit with `ulimit -n`",
    errno.EAGAIN: "end some of this user's processes, or raise their limit with `ulimit -u`",
}
_ADVICE[errno.ENFILE] = _ADVICE[errno.EMFILE]


def advised(error: Exception) -> str:
    """What an error says, and what to do where the system has no files or processes left."""
    advice = _ADVICE.get(getattr(error, "errno", 0))
    said = str(error) or type(error).__name__
    return f"{said}: {advice}" if advice else said


@runtime_checkable
class Session(Protocol):
    """One process that runs one block of code after another, as a notebook does.

    Names, imports, files in /tmp, threads and processes last from one block to the next; between
    blocks they are stopped. A block that ends the process (a time-out, `os._exit`, too much output
    or memory) ends the session: its error says so, and the next block begins in a fresh process.
    A session that is dropped without being closed ends its process as well.
    """

    def run(self, code: str) -> Execution:
        """Runs one block to its end. Never raises for anything the block does."""

    async def run_async(self, code: str) -> Execution:
        """Like `run`; cancelling it ends the session's process."""

    def close(self) -> None:
        """Ends the process. May be called again; running afterwards raises.

        A block that runs meanwhile, in another thread or task, ends as an
        `Outcome.INFRASTRUCTURE`: it was not the block's doing.
        """

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

    `stdin` is what the program finds on its standard input; it has room in /tmp, of which
    `Limits.tmp_mb` is the size. With `display`, the value of a last statement that is an expression
    is shown on stdout, as a REPL does, unless it is `None`.
    """

    def run(
        self,
        code: str,
        limits: Limits = DEFAULT_LIMITS,
        *,
        stdin: str = "",
        display: bool = False,
    ) -> Execution:
        """Runs `code` to its end. Never raises for anything the program does.

        Raises:
            TypeError: An argument is not of its type.
            ValueError: `stdin` is larger than `limits.tmp_mb`.
        """

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
