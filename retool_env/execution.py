"""The interface of a sandbox: `Limits`, `Execution`, `Files`, `Session` and `Sandbox`."""

import enum
import errno
import numbers
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from retool_env.errors import SandboxUnavailable as SandboxUnavailable
from retool_env.errors import SettingsError


class Outcome(enum.StrEnum):
    """How a program ended. Exactly one value applies to each run."""

    OK = "ok"
    """The program ran to its end, or exited with status 0, whatever it wrote on stderr."""

    SYNTAX_ERROR = "syntax_error"
    """The program did not compile, so no line of it ran."""

    RUNTIME_ERROR = "runtime_error"
    """The program raised, exited with a status other than 0, or was ended by a signal."""

    TIMEOUT = "timeout"
    """The program was still running after `Limits.wall_seconds`."""

    MEMORY_LIMIT = "memory_limit"
    """The program requested more than `Limits.memory_mb` and did not recover."""

    OUTPUT_LIMIT = "output_limit"
    """The program wrote more than `Limits.output_bytes`, and was ended."""

    BLOCKED = "blocked"
    """The sandbox denied an operation: the network, a write outside /tmp, or a system call."""

    INFRASTRUCTURE = "infrastructure_failure"
    """The sandbox failed, not the program: never train on such a result."""


_MOST = {
    "wall_seconds": 1_000_000,
    "memory_mb": 1 << 32,
    "output_bytes": 1 << 40,
    "processes": 1 << 22,  # the number of process ids of Linux
    "tmp_mb": 1 << 32,
}
"""The highest limits. Their sums and products fit the integers of the kernel and of `poll`."""


@dataclass(frozen=True)
class Limits:
    """The resources that one program may use.

    Raises:
        ValueError: If a limit is not positive, not a number, or too high for the kernel. Only
            `wall_seconds` may be a fraction. The message names the limit.
    """

    wall_seconds: float = 5.0
    """Seconds from the program's first instruction to its end; start-up is not counted."""

    memory_mb: int = 1024
    """Address space, in MiB, that each process of the program may add to the interpreter's own."""

    output_bytes: int = 1_048_576
    """Bytes that the program may write on stdout."""

    processes: int = 16
    """Number of processes and threads alive at the same time, the first process included. Each
    process has its own `memory_mb`, so 16 processes may hold 16 times this memory. The program sees
    this number of processors, but four at most (`os.cpu_count()`, its affinity)."""

    tmp_mb: int = 16
    """Size, in MiB, of the program's private /tmp. No file there may exceed it."""

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            check = check_seconds if name == "wall_seconds" else check_whole_number
            value = check(f"Limits.{name}", getattr(self, name), most=most)
            object.__setattr__(self, name, value)


def check_whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Check a setting that is a whole number.

    Args:
        name: The setting's name, for the error.
        value: The setting's value.
        least: The smallest allowed value.
        most: The largest allowed value; `None`: no upper bound.

    Returns:
        The value, as a Python `int`.

    Raises:
        ValueError: If the value is not a whole number, or is out of bounds.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if whole and least <= value and (most is None or value <= most):
        return operator.index(value)
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise SettingsError(f"{name} must be a whole number {bounds}, not {_shown(value)}")


def check_seconds(name: str, value: Any, most: float = 1e9) -> float:
    """Check a setting that is a duration.

    Args:
        name: The setting's name, for the error.
        value: The setting's value, in seconds.
        most: The longest allowed duration, in seconds.

    Returns:
        The value, as a Python `float`.

    Raises:
        ValueError: If the value is not a number, not above 0, or above `most`.
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
"""The limits of a run that names none."""


def check_program(
    code: Any, limits: Any, stdin: Any = "", display: Any = False, files: "Files | None" = None
) -> None:
    """Check the arguments of `Sandbox.run` before the run begins.

    Args:
        code: The program text.
        limits: The limits of the program.
        stdin: The text of the program's standard input.
        display: Whether the value of a last expression is shown.
        files: The files that go with the program; `None`: no files.

    Raises:
        TypeError: If `code` or `stdin` is not a `str`, `limits` is not a `Limits`, or `display` is
            not a `bool`.
        ValueError: If `stdin` and `files` together are larger than the program's /tmp.
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
                f"{name}: {size} bytes are more than the {limits.tmp_mb} MiB of /tmp: raise "
                "Limits.tmp_mb, or pass less data"
            )


MOST_FILES = 256
"""The largest number of files that go with a program, and of files that come back."""


@dataclass
class Files:
    """Additions to a program: files, a prelude, and the files that come back.

    Raises:
        TypeError: If a name is not a `str`, or a content is not `bytes`.
        ValueError: A name is empty, or holds a NUL or `..`; or there are too many.
    """

    given: Mapping[str, bytes] = field(default_factory=dict)
    """Files to write before the program begins: contents by name, a path relative to /tmp."""
    wanted: Sequence[str] = ()
    """Names of the files to read after the program's end."""
    fetched: dict[str, bytes] = field(default_factory=dict)
    """Contents of the read files, by name. Missing and unreadable files are left out, and files
    beyond 8 MiB in total. It is empty if the program did not reach its end (a time-out,
    `os._exit`, a signal)."""
    prelude: str = ""
    """Python code that the process runs before the program. It has its own namespace, and its
    frames are not in tracebacks. It may call `report(text)`, also while the program runs."""
    reported: tuple[str, ...] | None = None
    """The texts that preludes of the process reported during this program or block, each once.
    `None` if the process could not say, as after a time-out. The program could forge them."""

    @property
    def some(self) -> bool:
        """Whether something goes with the program, or comes back."""
        return bool(self.given or self.wanted or self.prelude)

    def __post_init__(self) -> None:
        for names in (list(self.given), list(self.wanted)):
            if len(names) > MOST_FILES:
                raise ValueError(f"{len(names)} files are too many: pass at most {MOST_FILES}")
            for name in names:
                if not isinstance(name, str):
                    raise TypeError(f"a file's name must be a str, not {_shown(name)}")
                if not name or "\0" in name or ".." in name.split("/"):
                    raise ValueError(
                        f"{name!r:.100} is not a file's name: pass a path without `..` and NUL"
                    )
        for name, data in self.given.items():
            if not isinstance(data, bytes):
                raise TypeError(f"{name!r:.100} must hold bytes, not {type(data).__name__}")


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that `Rules.faults` ordered for one call, and what really happened.

    The model never sees this record. The `Execution` that holds it is the result as shown.
    """

    kind: str
    """The kind of the fault (`retool_env.faults.KINDS`)."""
    injected: bool
    """Whether the fault took place. If not, the call was not eligible for this kind, and the
    program's own result was shown."""
    real: "Execution | None" = None
    """The program's own result, in whose place another result was shown. `None` if the program's
    own result was shown, or is not known, as after a missing package."""


_EXCEPTION = re.compile(r"((?:\w+\.)+\w+|[A-Z]\w*)(?::|\Z)")


@dataclass(frozen=True, slots=True)
class Execution:
    """The result of one program.

    The host decides `outcome` by its own observations: the exit status, a signal, the clock and the
    amount of output. A program can write to the memory of its own process, which records how the
    program failed. So a program can choose the words of its own error, but cannot present a failure
    as `Outcome.OK`. A block of a session can: it may forge the records of this session's blocks
    while their process runs.
    """

    outcome: Outcome
    """How the program ended."""

    stdout: str
    """The program's output on stdout; U+FFFD replaces undecodable bytes."""

    error: str = ""
    """The error, in one line; empty if `outcome` is `Outcome.OK`."""

    traceback: str = ""
    """Python's traceback, if the program itself raised or does not compile. It keeps only the
    frames of the program, with their source lines; `error` is its last line."""

    duration: float = field(default=0.0, compare=False)
    """Seconds that the program ran. Comparisons ignore it: it differs between equal runs."""

    fault: Fault | None = None
    """The fault that was ordered for this call; `None` without one. Only the episode's interpreter
    sets it."""

    @property
    def exception(self) -> str | None:
        """The class of the exception that ended the program; `None` for other ends.

        Example:
            >>> Execution(Outcome.RUNTIME_ERROR, "", "ZeroDivisionError: by zero").exception
            'ZeroDivisionError'
            >>> Execution(Outcome.TIMEOUT, "", "time limit: it ran for more than 5 s").exception
        """
        match = _EXCEPTION.match(self.error)
        return match[1] if match else None


def drop_unset_fault(record: dict[str, Any] | None) -> None:
    """Remove the field `fault` from the record of an execution without a fault, in place.

    Args:
        record: The fields of an `Execution` as plain JSON values; `None`: no execution.
    """
    if record is not None:
        if record["fault"] is None:
            del record["fault"]
        else:
            drop_unset_fault(record["fault"]["real"])


def execution_from_json(record: Mapping[str, Any] | None) -> Execution | None:
    """Rebuild an execution from its fields as plain JSON values, with or without `fault`.

    Args:
        record: The fields; `None`: no execution.
    """
    if record is None:
        return None
    fault = record.get("fault")
    if fault is not None:
        fault = Fault(**{**fault, "real": execution_from_json(fault["real"])})
    return Execution(**{**record, "outcome": Outcome(record["outcome"]), "fault": fault})


_ADVICE = {
    errno.EMFILE: "close environments and sandboxes that are not used any longer, share one "
    "sandbox among several environments (sandbox=...), or raise the limit with `ulimit -n`",
    errno.EAGAIN: "end some of this user's processes, or raise their limit with `ulimit -u`",
}
_ADVICE[errno.ENFILE] = _ADVICE[errno.EMFILE]


def advised(error: Exception) -> str:
    """The text of an error, with advice if the system has no files or processes left."""
    advice = _ADVICE.get(getattr(error, "errno", 0))
    text = str(error) or type(error).__name__
    return f"{text}: {advice}" if advice else text


class _Context(Protocol):
    """A context manager, which closes itself at the end of a `with` block."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class Session(_Context, Protocol):
    """One process that runs code block after code block, like a notebook.

    Names, imports, files in /tmp, threads and processes last from block to block; threads and
    processes are stopped between blocks. A block that ends the process (a time-out, `os._exit`,
    excessive output or memory) ends the session: its error says so, and the next block begins in a
    fresh process. The process also ends when the session is garbage-collected without `close`.
    """

    def run(self, code: str) -> Execution:
        """Run one block to its end. Never raises because of the block's behaviour."""

    async def run_async(self, code: str) -> Execution:
        """Run one block like `run`; cancellation ends the session's process."""

    def close(self) -> None:
        """End the process. Repeated calls are allowed; a later `run` raises.

        A block that is running in another thread or task ends as `Outcome.INFRASTRUCTURE`, since
        the block did not cause its end.
        """


@runtime_checkable
class Sandbox(_Context, Protocol):
    """Runs programs, each as a complete script in a fresh interpreter."""

    def run(
        self, code: str, limits: Limits = DEFAULT_LIMITS, *, stdin: str = "", display: bool = False
    ) -> Execution:
        """Run a program to its end. Never raises because of the program's behaviour.

        Args:
            code: The program text.
            limits: The limits of the program.
            stdin: The text of the program's standard input. It takes up room in /tmp.
            display: Whether stdout shows the value of a last expression that is not `None`, as in
                a REPL.

        Returns:
            The result.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If `stdin` is larger than `limits.tmp_mb`.
        """

    async def run_async(
        self, code: str, limits: Limits = DEFAULT_LIMITS, *, stdin: str = "", display: bool = False
    ) -> Execution:
        """Run a program like `run`; many programs may run at the same time.

        Cancellation ends the program.

        Args:
            code: The program text.
            limits: The limits of the program.
            stdin: The text of the program's standard input.
            display: Whether stdout shows the value of a last expression.
        """

    def session(self, limits: Limits = DEFAULT_LIMITS, *, display: bool = False) -> Session:
        """Begin a session.

        Args:
            limits: The limits of the session. `wall_seconds` and `output_bytes` apply to each
                block.
            display: Whether stdout shows the value of a block's last expression.

        Raises:
            SandboxUnavailable: If this sandbox has no sessions.
        """

    def close(self) -> None:
        """End all running programs and free the sandbox's resources; a later `run` raises."""
