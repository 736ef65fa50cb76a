r"""Are two answers mathematically equal?

Inside: :func:`is_equivalent`, the question the reward asks; :func:`extract_boxed`, which finds the
content of a ``\boxed{...}``; and :class:`Grader`, which keeps the processes that answer.

Plain integers are compared here, digit by digit. Everything else goes to a worker process
(:mod:`retool_env.grading_worker`) that runs math-verify, because an answer is written by an
optimiser and may take for ever to evaluate (``9^{9^{9^9}}``) or eat all memory. math-verify's own
time limit works in a main thread only; a process can be killed from anywhere.

The invariant: the verdict is ``False`` unless the answer commits to one value and that value is the
gold one. Whatever is empty, malformed, ambiguous, too long, or too slow is wrong, never an error.
"""

import atexit
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

from retool_env.children import child_environment

MAX_CHARS = 2_000
"""Longer answers are wrong unseen: the longest gold answer of MATH has 159 characters."""

_WORKER_SCRIPT = Path(__file__).with_name("grading_worker.py")
_START_SECONDS = 60.0

_BOX_TOKEN = re.compile(r"(?P<box>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)
_OPENING = re.compile(r"(?:\s|\\?\$|\\\(|\\\[)+")
_CLOSING = re.compile(r"(?:[\s.,]|\\?\$|\\\)|\\\])+\Z")
_GROUP = r"(?:,|\\,|\\!|,\\!|\{,\})"
_INTEGER = re.compile(rf"([+-]?) *([0-9]+|[1-9][0-9]{{0,2}}(?:{_GROUP}[0-9]{{3}})+)")


class GraderUnavailable(RuntimeError):
    """The worker process can't be started: the installation is broken, not the answer."""


def extract_boxed(text: str) -> str | None:
    r"""Return the content of the last complete ``\boxed{...}``, or ``None`` where there is none.

    Braces nest, escaped braces don't count, and a box inside another belongs to the outer one.

    Example:
        >>> extract_boxed(r"so \boxed{1}, or rather \boxed{\frac{1}{2}} and \boxed{")
        '\\frac{1}{2}'
    """
    boxes = _boxes(text)
    return boxes[-1] if boxes else None


def _boxes(text: str) -> list[str]:
    """The contents of all complete outermost boxes, in one pass: hostile text is long."""
    open_braces: list[tuple[int, int] | None] = []  # (start, content start) of a box, None: a brace
    spans: list[tuple[int, int, int]] = []
    for token in _BOX_TOKEN.finditer(text):
        if token["box"]:
            open_braces.append((token.start(), token.end()))
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces and (box := open_braces.pop()):
            while spans and spans[-1][0] > box[0]:
                spans.pop()
            spans.append((*box, token.start()))
    return [text[begin:end] for _, begin, end in spans]


def _strip(text: str) -> str:
    r"""Remove what surrounds an expression in prose: spaces, ``$``, ``\(``, a closing period."""
    text = text.replace("\N{MINUS SIGN}", "-")
    if opening := _OPENING.match(text):
        text = text[opening.end() :]
    return _CLOSING.sub("", text)


def _expression(text: str) -> str | None:
    """The one expression that an answer commits to, or ``None``."""
    if len(text) > MAX_CHARS:
        return None
    while boxes := _boxes(text):
        if len({_strip(box) for box in boxes}) > 1:
            return None  # several answers are no answer
        text = boxes[-1]
    text = _strip(text)
    return text if text and "\\boxed" not in text else None


def _integer(text: str) -> str | None:
    """The canonical digits of a plain integer (``int`` itself refuses more than 4,300 digits)."""
    if not (match := _INTEGER.fullmatch(text)):
        return None
    digits = re.sub("[^0-9]", "", match[2]).lstrip("0") or "0"
    return "-" + digits if match[1] == "-" and digits != "0" else digits


class _Worker:
    """One child process; used by one thread at a time."""

    def __init__(self, wall_seconds: float, memory_mb: int) -> None:
        self.wall_seconds = wall_seconds
        # -P: the script's folder must not shadow other modules. A fixed hash seed: sympy's order of
        # terms, and with it a verdict on the edge of the time limit, is the same in every run.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER_SCRIPT), str(wall_seconds), str(memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            env=child_environment(python=True) | {"PYTHONHASHSEED": "0"},
        )
        greeting = self._read_line(_START_SECONDS)
        if greeting != b"ready":
            self.kill()
            reason = greeting.decode(errors="replace") if greeting else "it ended or hung at once"
            raise GraderUnavailable(
                f"The grading process can't be started: {reason}. "
                "Check that `python -c 'import math_verify'` works in this environment."
            )

    def ask(self, answer: str, gold: str) -> bool | None:
        """The verdict, or ``None`` if the process died; it is killed if it overstays."""
        try:
            self.process.stdin.write(json.dumps([answer, gold]).encode() + b"\n")
            reply = self._read_line(self.wall_seconds + 1.0)  # it ends itself at wall_seconds
        except (OSError, ValueError):  # it died, or `close` closed its pipes
            reply = None
        except BaseException:  # e.g. KeyboardInterrupt: a late reply would answer the next question
            self.kill()
            raise
        if reply is None:
            self.kill()
            return None
        return reply == b"1"

    def _read_line(self, seconds: float) -> bytes | None:
        """One line without its end, or ``None`` at the end of the stream or of the time."""
        fd = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        deadline = time.monotonic() + seconds
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000) or not (chunk := os.read(fd, 4096)):
                return None
            line += chunk
        return line[:-1]

    @property
    def alive(self) -> bool:
        return not self.process.stdin.closed

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._close_pipes()

    def abandon(self) -> None:
        """Forget a process that belongs to the parent of this fork."""
        self._close_pipes()
        self.process.returncode = 0  # not ours to wait for

    def _close_pipes(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()


_GRADERS: weakref.WeakSet["Grader"] = weakref.WeakSet()


class Grader:
    """Decides equivalence, with at most `workers` processes, each started when first needed.

    Safe to share between threads. After a fork the child starts processes of its own.

    Args:
        wall_seconds: Time for one comparison; at its end the answer counts as wrong and the process
            is replaced.
        memory_mb: Address space of a worker, in MiB; beyond it the answer counts as wrong.
        workers: How many comparisons may run at once, so that one slow answer doesn't hold up the
            others. A worker takes some 80 MiB. By default the number of cores, but at most 4.
    """

    def __init__(
        self, wall_seconds: float = 5.0, memory_mb: int = 1024, workers: int | None = None
    ) -> None:
        self.wall_seconds = wall_seconds
        self.memory_mb = memory_mb
        self.workers = workers or min(4, os.cpu_count() or 1)
        self._reset()
        _GRADERS.add(self)

    def _reset(self) -> None:
        self._slots = threading.BoundedSemaphore(self.workers)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    def is_equivalent(self, answer: str, gold: str) -> bool:
        """See :func:`is_equivalent`."""
        if not answer.strip() or not gold.strip():
            return False
        answer_expression = _expression(answer)
        gold_box = extract_boxed(gold)
        gold_expression = _strip(gold if gold_box is None else gold_box)
        if not answer_expression or not gold_expression:
            return False
        if answer_expression == gold_expression:
            return True
        gold_integer = _integer(gold_expression)
        answer_integer = _integer(answer_expression)
        if gold_integer is not None and answer_integer is not None:
            return gold_integer == answer_integer
        return self._compare(answer_expression, gold_expression[:MAX_CHARS])

    def _compare(self, answer: str, gold: str) -> bool:
        with self._slots:
            for _ in range(2):
                worker = self._take()
                start = time.monotonic()
                try:
                    verdict = worker.ask(answer, gold)
                finally:
                    if worker.alive:
                        self._idle.append(worker)
                    else:
                        self._all.discard(worker)
                if verdict is not None:
                    return verdict
                # A death before the time is up may be an old worker's, full of other answers'
                # memory, or the kernel's choice: a fresh one decides.
                if time.monotonic() - start > 0.9 * self.wall_seconds:
                    break
        return False

    def _take(self) -> _Worker:
        try:
            return self._idle.pop()
        except IndexError:
            worker = _Worker(self.wall_seconds, self.memory_mb)
            self._all.add(worker)
            return worker

    def close(self) -> None:
        """End the worker processes; a later comparison starts new ones."""
        self._idle.clear()
        while self._all:
            self._all.pop().kill()

    def _after_fork(self) -> None:
        for worker in self._all:
            worker.abandon()
        self._reset()


_DEFAULT = Grader()


def is_equivalent(answer: str, gold: str) -> bool:
    r"""Say whether `answer` is mathematically equal to `gold`.

    What is compared: the content of the answer's ``\boxed{...}`` if it has one, else the whole
    answer, without surrounding ``$`` and closing periods or commas. It must be the expression
    itself: a sentence that mentions the gold value is wrong, and so are several differing boxes.

    What is equal: integers by value (``042``, ``+42``, ``42.0``, ``$1{,}000$``); exact forms by
    algebra (``\frac{1}{2}`` and ``0.5``, ``\sqrt{8}`` and ``2\sqrt{2}``); a rounded decimal only
    if it agrees to six places and to one part in 100,000 (``0.333333`` is 1/3, ``0.3333`` isn't);
    sets in any order, tuples and intervals in theirs. Units, degrees and percent signs are ignored
    as math-verify ignores them (``5\text{ cm}`` and ``5``; ``50\%`` and both ``50`` and ``0.5``).
    A name before an equals sign is dropped (``x=5`` and ``5``), but every further member of a chain
    must be the gold value. A list of alternatives equals only a gold that is the same list.

    Args:
        answer: Text the model wrote, trusted in nothing.
        gold: The reference answer.

    Returns:
        The verdict, within some 6 seconds; ``False`` for anything empty, malformed, longer than
        :data:`MAX_CHARS`, or too heavy to evaluate.

    Raises:
        GraderUnavailable: The worker can't be started, because the installation is broken. No
            pair of strings causes it.

    Example:
        >>> is_equivalent(r"The answer is \boxed{042}.", "42"), is_equivalent("4", "42")
        (True, False)
    """
    return _DEFAULT.is_equivalent(answer, gold)


def _close_all() -> None:
    for grader in list(_GRADERS):
        grader.close()


def _forget_all() -> None:
    for grader in list(_GRADERS):
        grader._after_fork()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
