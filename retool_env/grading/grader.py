"""The worker processes that compare answers by algebra, and `is_equivalent`, the reward's question.

An optimiser writes the answers. An answer may evaluate for ever (`9^{9^{9^9}}`) or use up all
memory. The time limit of math-verify works only in a main thread, but any thread can kill a
process. So each comparison runs in a worker process.

A comparison that takes longer than a moment starts again in a lane for slow comparisons. So slow
comparisons never occupy all workers. The time is the worker's processor time, so a busy machine
changes no verdict.
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
"""The program of a worker. Its values: the folder of `worker`, the seconds and the MiB."""
_OVERRUN = -signal.SIGVTALRM if hasattr(signal, "SIGVTALRM") else 1
"""The return code of a worker that overran its time in code that an exception can't interrupt."""
_START_SECONDS = 60.0
_MOMENT_SECONDS = 0.25
_GONE_SECONDS = 60.0  # after the worker's time; only a machine that stands still replies so late
_THREADS = 64

_YES, _LATE = b"1", b"late"
_NO_VALUES = {"none", "null", "nan", "n/a", "?"}

Question = list[list[str]]
"""A question to a worker.

Two lists hold the expressions of the answer and the expressions of the gold: are they equal? A
single list holds the expressions of a gold: is each of them a value?
"""


class _Worker:
    """A child process that answers the questions of one thread at a time."""

    def __init__(self, seconds: float, memory_mb: int) -> None:
        self.seconds = seconds
        start = _START.format(str(Path(__file__).parent), seconds, memory_mb)
        # -P: modules in the current folder must not shadow other modules. A fixed hash seed: sympy
        # then orders terms in the same way in every run, and so a verdict near the time limit does
        # not change.
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
        """Returns the worker's reply; `_LATE` after the time; `None` if the process died."""
        try:
            self._questions.write(json.dumps(question).encode() + b"\n")
            reply = self._read_line(self.seconds + _GONE_SECONDS)
        except (OSError, ValueError):  # the process died, or `close` closed its pipes
            reply = None
        except BaseException:  # e.g. KeyboardInterrupt: a late reply would answer the next question
            self.kill()
            raise
        if reply is None:
            self.kill()
            return _LATE if self.process.returncode == _OVERRUN else None
        return reply

    def _read_line(self, seconds: float) -> bytes | None:
        """A line without its line break; `None` at the end of the stream or of the time."""
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
        """Releases the pipes of a process that the parent of this fork owns."""
        self._close_pipes()
        self.process.returncode = 0  # so that the child does not wait for its parent's process

    def _close_pipes(self) -> None:
        self._questions.close()
        self._replies.close()


def _readable(fd: int, seconds: float) -> bool:
    """Waits for data; returns whether data came within the seconds.

    Windows cannot wait for a pipe. There, the read call waits, and the worker ends itself in time.
    """
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class _Lane:
    """At most `workers` processes, which start on demand and have `seconds` for each question."""

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
    """Decides equivalence with worker processes, which start on demand.

    Threads can share a grader. After a fork, the child starts its own processes.

    Args:
        seconds: The processor time of one comparison. After this time, the answer is wrong.
        memory_mb: The address space of a worker, in MiB. An answer that needs more is wrong.
        workers: The number of processes for short comparisons, and also the number of processes for
            comparisons that take longer than a moment. A worker occupies some 80 MiB. `None`: the
            number of processor cores, but at most 4.
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
        """Returns whether two answers are equal: see the function `is_equivalent`."""
        verdict = _decide(answer, gold)
        return verdict if isinstance(verdict, bool) else self.compare(verdict)

    async def is_equivalent_async(self, answer: str, gold: str) -> bool:
        """Returns whether two answers are equal, without blocking the event loop."""
        verdict = _decide(answer, gold)
        if isinstance(verdict, bool):
            return verdict
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.compare, verdict)

    def is_value(self, text: str) -> bool:
        """Returns whether a text can serve as a gold answer: see the function `is_value`."""
        values = expressions(text)
        if not values or any(value.lower() in _NO_VALUES for value in values):
            return False
        if all(plain_verdict(value, "0") is not None for value in values):
            return True
        return self.compare([values])

    def compare(self, question: Question) -> bool:
        """Returns a worker's verdict on a question.

        Raises:
            GraderUnavailable: The worker can't be started, because the installation is broken.
        """
        reply = self._quick.ask(question)
        for _ in range(2):
            # The question need not be the cause of a worker's death: earlier answers may have
            # filled the memory, or the kernel may have killed the process.
            if reply is None or (reply == _LATE and self.seconds > _MOMENT_SECONDS):
                reply = self._slow.ask(question)
                if reply == _LATE:
                    break
        return reply == _YES

    @property
    def processes(self) -> set[subprocess.Popen[bytes]]:
        """The current worker processes."""
        return {worker.process for worker in self._quick.all | self._slow.all}

    def close(self) -> None:
        """Ends the worker processes. A later comparison starts new processes."""
        self._quick.close()
        self._slow.close()

    def _after_fork(self) -> None:
        for worker in self._quick.all | self._slow.all:
            worker.abandon()
        self._reset()


def _decide(answer: str, gold: str) -> bool | Question:
    """The verdict if it needs no algebra, else the question for a worker."""
    if (values := expressions(answer)) and (wanted := expressions(gold)):
        if len(values) == len(wanted) == 1:
            verdict = plain_verdict(values[0], wanted[0])
            return [values, wanted] if verdict is None else verdict
        return values == wanted or [values, wanted]
    return False


_DEFAULT = Grader()


def is_equivalent(answer: str, gold: str) -> bool:
    r"""Returns whether `answer` is mathematically equal to `gold`.

    The grader compares the content of the answer's `\boxed{...}`, or the whole answer if it has no
    box. It removes surrounding `$`, Markdown and closing periods. The rest must be the expression
    itself: a sentence that mentions the gold value is wrong. Several boxes with different values
    are the list of these values.

    These rules decide equality:

    * Integers are equal by value: `042`, `+42`, `42.0` and `$42$`.
    * Exact forms are equal by algebra: `\frac{1}{2}` and `0.5`, `\sqrt{8}` and `2\sqrt{2}`.
    * A rounded decimal must agree to six places and to one part in 100,000: `0.333333` equals 1/3,
      but `0.3333` does not.
    * The order matters in tuples and intervals, but not in sets.
    * Other notation is read as LaTeX: see `retool_env.grading.notation`.
    * A unit, a degree sign, a percent sign and the base of a numeral are optional: `5\text{ cm}`
      equals `5`, and `50\%` equals both `50` and `0.5`.
    * A name before an equals sign is optional: `x=5` equals `5`. Each further member of a chain
      must equal the gold value.
    * A list of alternatives equals only a gold that is the same list.

    Args:
        answer: The text that the model wrote. It may be hostile.
        gold: The reference answer.

    Returns:
        The verdict, after at most some 6 seconds of processor time. It is `False` if the answer is
        empty, malformed or longer than `MAX_CHARS`, or if the comparison exceeds its time or
        memory.

    Raises:
        GraderUnavailable: The worker can't be started, because the installation is broken. No
            answer and no gold cause this error.

    Example:
        >>> is_equivalent(r"The answer is \boxed{042}.", "42"), is_equivalent("4", "42")
        (True, False)
    """
    return _DEFAULT.is_equivalent(answer, gold)


async def is_equivalent_async(answer: str, gold: str) -> bool:
    """Does the same as `is_equivalent`; the event loop runs on while a worker compares."""
    return await _DEFAULT.is_equivalent_async(answer, gold)


def is_value(text: str) -> bool:
    """Returns whether `text` can serve as a gold answer: a value that is graded equal to itself.

    A value is one expression that the parser can read, or a few words of text. An empty text,
    `None`, `nan` and a text longer than `MAX_CHARS` are not values.

    Raises:
        GraderUnavailable: The worker can't be started, because the installation is broken.
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
