"""The graders that are compared: the project's, and math-verify in a process of its own."""

from __future__ import annotations

import multiprocessing
import re
import resource
import time
from typing import Any, Self

from retool_env.grading import Grader

PATIENCE = 20.0
"""Seconds for one comparison by math-verify: more than its own limits, 5 s for each of its three parts, add up to."""

PEER_MEMORY = 4 << 30
"""Bytes of address space of math-verify's process."""

Pair = tuple[str, str]
"""An answer and a gold."""
Graded = tuple[bool | None, float]
"""A verdict, which is `None` where there was none in time, and seconds."""


class Ours:
    """The project's grader with one worker, timed by its caller."""

    def __init__(self) -> None:
        self._grader = Grader(workers=1)
        self.grade("1/2", "0.5")  # starts the worker

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._grader.close()

    def grade(self, answer: str, gold: str) -> Graded:
        """The verdict and the seconds until it was there."""
        began = time.perf_counter()
        verdict = self._grader.is_equivalent(answer, gold)
        return verdict, time.perf_counter() - began


class MathVerify:
    """math-verify in a process of its own, timed inside that process.

    Args:
        patience: Seconds until a comparison is given up. The process is then replaced.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self.process = context.Process(target=_serve_math_verify, args=(other,), daemon=True)
        self.process.start()
        other.close()  # so that the end of the process is the end of the connection
        self._connection.recv()  # all is imported

    def _stop(self) -> None:
        self.process.kill()
        self.process.join()
        self._connection.close()

    def grade(self, answer: str, gold: str) -> Graded:
        """The verdict and its seconds; the verdict is `None` if it took too long or ended the process."""
        try:
            self._connection.send((answer, gold))
            if self._connection.poll(self.patience):
                return self._connection.recv()
        except (EOFError, OSError):
            pass
        self._stop()
        self._start()
        return None, self.patience


def _serve_math_verify(connection: Any) -> None:
    """Answer pairs until the connection closes."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (PEER_MEMORY, PEER_MEMORY))
    verify(parse("$1/2$"), parse("0.5"))
    connection.send("ready")
    while True:
        try:
            answer, gold = connection.recv()
        except EOFError:
            return
        began = time.perf_counter()
        try:
            verdict = bool(verify(parse(delimited(gold)), parse(delimited(answer))))
        except Exception:
            verdict = None
        connection.send((verdict, time.perf_counter() - began))


def delimited(text: str) -> str:
    r"""The text, between dollar signs if it holds no mathematical delimiter and no box."""
    return text if re.search(r"\$|\\\(|\\\[|\\boxed", text) else f"${text}$"
