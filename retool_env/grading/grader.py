"""The processes that compare what takes algebra, and the question that the reward asks.

An answer is written by an optimiser and may take for ever to evaluate (`9^{9^{9^9}}`) or eat all memory. math-verify's
own time limit works in a main thread only; a process can be killed from anywhere.

A comparison that is not over in a moment is begun again in a lane for slow ones: however many of these there are, the
others find a worker. Time is the worker's processor time, so that a busy machine changes no verdict.
"""

import asyncio
import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from retool_env.children import child_environment
from retool_env.errors import GraderUnavailable as GraderUnavailable
from retool_env.grading.answer import expressions, plain_verdict

_START = (
    "import sys; sys.path.insert(0, {!r}); from worker.process import serve; sys.path.pop(0); "
    "serve({!r}, {!r})"
)
"""What the worker's interpreter runs, with the folder of `worker`, the seconds and the MiB."""
_OVERRUN = -signal.SIGVTALRM if hasattr(signal, "SIGVTALRM") else 1
"""How a worker ends that could not be interrupted in time."""
_START_SECONDS = 60.0
_MOMENT_SECONDS = 0.25
_GONE_SECONDS = 60.0  # beyond its time: only a machine that stands still is so late
_THREADS = 64

_YES, _LATE = b"1", b"late"
_NO_VALUES = {"none", "null", "nan", "n/a", "?"}

Question = list[list[str]]
"""The expressions of the answer, and those of the gold answer; of one alone, it is asked whether it is a value."""


class _Worker:
    """One child process; used by one thread at a time."""

    def __init__(self, seconds: float, memory_mb: int) -> None:
        self.seconds = seconds
        start = _START.format(str(Path(__file__).parent), seconds, memory_mb)
        # -P: the folder in which one works must not shadow other modules. A fixed hash seed:
        # sympy's order of terms, and with it a verdict on the edge of the time limit, is the same
        # in every run.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            env=child_environment(python=True) | {"PYTHONHASHSEED": "0"},
        )
        assert self.process.stdin and self.process.stdout
        self._questions, self._replies = self.process.stdin, self.process.stdout
        greeting = self._read_line(_START_SECONDS)
        if greeting != b"ready":
            self.kill()
            reason = greeting.decode(errors="replace") if greeting else "it ended or hung at once"
            raise GraderUnavailable(
                f"The grading process can't be started: {reason}. "
                "Check that `python -c 'import math_verify'` works in this environment."
            )

    def ask(self, question: Question) -> bytes | None:
        """Its reply: the verdict, or that it took too long; `None` if the process died of something else."""
        try:
            self._questions.write(json.dumps(question).encode() + b"\n")
            reply = self._read_line(self.seconds + _GONE_SECONDS)
        except (OSError, ValueError):  # it died, or `close` closed its pipes
            reply = None
        except BaseException:  # e.g. KeyboardInterrupt: a late reply would answer the next question
            self.kill()
            raise
        if reply is None:
            self.kill()
            return _LATE if self.process.returncode == _OVERRUN else None
        return reply

    def _read_line(self, seconds: float) -> bytes | None:
        """One line without its end, or `None` at the end of the stream or of the time."""
        fd = self._replies.fileno()
        deadline = time.monotonic() + seconds
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not _readable(fd, left) or not (chunk := os.read(fd, 4096)):
                return None
            line += chunk
        return line[:-1]

    @property
    def alive(self) -> bool:
        return not self._questions.closed

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._close_pipes()

    def abandon(self) -> None:
        """Forget a process that belongs to the parent of this fork."""
        self._close_pipes()
        self.process.returncode = 0  # not ours to wait for

    def _close_pipes(self) -> None:
        self._questions.close()
        self._replies.close()


def _readable(fd: int, seconds: float) -> bool:
    """Wait until there is something to read.

    Windows cannot wait for a pipe: there, reading waits, and the worker ends itself in time.
    """
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class _Lane:
    """At most `workers` processes, each started when first needed, and given `seconds` a question."""

    def __init__(self, seconds: float, memory_mb: int, workers: int) -> None:
        self._seconds = seconds
        self._memory_mb = memory_mb
        self._slots = threading.BoundedSemaphore(workers)
        self._idle: list[_Worker] = []
        self.all: set[_Worker] = set()

    def ask(self, question: Question) -> bytes | None:
        """See `_Worker.ask`."""
        with self._slots:
            worker = self._take()
            try:
                return worker.ask(question)
            finally:
                if worker.alive:
                    self._idle.append(worker)
                else:
                    self.all.discard(worker)

    def _take(self) -> _Worker:
        try:
            return self._idle.pop()
        except IndexError:
            worker = _Worker(self._seconds, self._memory_mb)
            self.all.add(worker)
            return worker

    def close(self) -> None:
        self._idle.clear()
        while self.all:
            self.all.pop().kill()


_GRADERS: weakref.WeakSet["Grader"] = weakref.WeakSet()


class Grader:
    """Decides equivalence, with at most `workers` processes, each started when first needed.

    As many again serve the comparisons that take longer than a moment. Safe to share between threads. After a fork the
    child starts processes of its own.

    Args:
        seconds: Processor time for one comparison; at its end the answer counts as wrong.
        memory_mb: Address space of a worker, in MiB; beyond it the answer counts as wrong.
        workers: How many comparisons may run at once. A worker takes some 80 MiB. By default the number of cores, but
            at most 4.
    """

    def __init__(
        self, seconds: float = 5.0, memory_mb: int = 1024, workers: int | None = None
    ) -> None:
        self.seconds = seconds
        self.memory_mb = memory_mb
        self.workers = workers or min(4, os.cpu_count() or 1)
        self._reset()
        _GRADERS.add(self)

    def _reset(self) -> None:
        moment = min(_MOMENT_SECONDS, self.seconds)
        self._quick = _Lane(moment, self.memory_mb, self.workers)
        self._slow = _Lane(self.seconds, self.memory_mb, self.workers)
        self._threads = ThreadPoolExecutor(_THREADS, "grading")

    def is_equivalent(self, answer: str, gold: str) -> bool:
        """See `is_equivalent`."""
        verdict = _decide(answer, gold)
        return verdict if isinstance(verdict, bool) else self._compare(verdict)

    async def is_equivalent_async(self, answer: str, gold: str) -> bool:
        """See `is_equivalent_async`."""
        verdict = _decide(answer, gold)
        if isinstance(verdict, bool):
            return verdict
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._compare, verdict)

    def is_value(self, text: str) -> bool:
        """See `is_value`."""
        values = expressions(text)
        if not values or any(value.lower() in _NO_VALUES for value in values):
            return False
        if all(plain_verdict(value, "0") is not None for value in values):
            return True
        return self._compare([values])

    def _compare(self, question: Question) -> bool:
        reply = self._quick.ask(question)
        for _ in range(2):
            # A worker's death may be an old one's, full of other answers' memory, or the kernel's choice.
            if reply is None or (reply == _LATE and self.seconds > _MOMENT_SECONDS):
                reply = self._slow.ask(question)
                if reply == _LATE:
                    break
        return reply == _YES

    @property
    def processes(self) -> set[subprocess.Popen[bytes]]:
        """The worker processes that there are now."""
        return {worker.process for worker in self._quick.all | self._slow.all}

    def close(self) -> None:
        """End the worker processes; a later comparison starts new ones."""
        self._quick.close()
        self._slow.close()

    def _after_fork(self) -> None:
        for worker in self._quick.all | self._slow.all:
            worker.abandon()
        self._reset()


def _decide(answer: str, gold: str) -> bool | Question:
    """The verdict where it takes no algebra, or the question that a worker answers."""
    if (values := expressions(answer)) and (wanted := expressions(gold)):
        if len(values) == len(wanted) == 1:
            verdict = plain_verdict(values[0], wanted[0])
            return [values, wanted] if verdict is None else verdict
        return values == wanted or [values, wanted]
    return False


_DEFAULT = Grader()


def is_equivalent(answer: str, gold: str) -> bool:
    r"""Say whether `answer` is mathematically equal to `gold`.

    What is compared: the content of the answer's `\boxed{...}` if it has one, else the whole answer, without
    surrounding `$`, Markdown and closing periods. It must be the expression itself: a sentence that mentions the gold
    value is wrong. Several boxes of different values are the list of these.

    What is equal: integers by value (`042`, `+42`, `42.0`, `$1{,}000$`); exact forms by algebra (`\frac{1}{2}`
    and `0.5`, `\sqrt{8}` and `2\sqrt{2}`), exactly; a rounded decimal only if it agrees to six places and to one
    part in 100,000 (`0.333333` is 1/3, `0.3333` isn't); sets in any order, tuples and intervals in theirs; and other
    notation, see `notation`. Units, degrees, percent signs and a numeral's base may be left out (`5\text{ cm}` and
    `5`; `50\%` and both `50` and `0.5`). A name before an equals sign is dropped (`x=5` and `5`), but every
    further member of a chain must be the gold value. A list of alternatives equals only a gold that is the same list.

    Args:
        answer: Text the model wrote, trusted in nothing.
        gold: The reference answer.

    Returns:
        The verdict, within some 6 seconds of processor time; `False` for anything empty, malformed, longer than
        `MAX_CHARS`, or too heavy to evaluate.

    Raises:
        GraderUnavailable: The worker can't be started, because the installation is broken. No
            pair of strings causes it.

    Example:
        >>> is_equivalent(r"The answer is \boxed{042}.", "42"), is_equivalent("4", "42")
        (True, False)
    """
    return _DEFAULT.is_equivalent(answer, gold)


async def is_equivalent_async(answer: str, gold: str) -> bool:
    """`is_equivalent` from an event loop, which goes on while a worker compares."""
    return await _DEFAULT.is_equivalent_async(answer, gold)


def is_value(text: str) -> bool:
    """Say whether `text` can serve as a gold answer: it is a value that grades equal to itself.

    A value is what the parser reads as one expression, or a word or two of text. Nothing, `None`, `nan` and what is
    longer than `MAX_CHARS` are none.

    Raises:
        GraderUnavailable: See `is_equivalent`.
    """
    return _DEFAULT.is_value(text)


def _close_all() -> None:
    for grader in list(_GRADERS):
        grader.close()


def _forget_all() -> None:
    for grader in list(_GRADERS):
        grader._after_fork()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
