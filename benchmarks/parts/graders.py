"""The two graders of the comparison: this project's, and math-verify in a separate process."""

from __future__ import annotations

import multiprocessing
import re
import resource
import time
from typing import Any

from retool_env.grading import Grader

PATIENCE = 20.0
"""Seconds for one comparison by math-verify.

math-verify has three limits of 5 s each, and this limit exceeds their sum.
"""

PEER_MEMORY = 4 << 30
"""The address space of the process of math-verify, in bytes."""

Pair = tuple[str, str]
"""An answer and a reference answer (a gold)."""
Graded = tuple[bool | None, float]
"""A verdict and its seconds; the verdict is `None` after a timeout or a crash."""


class OurGrader:
    """This project's grader with one worker, timed by its caller."""

    def __init__(self) -> None:
        self._grader = Grader(workers=1)
        self.grade("1/2", "0.5")  # starts the worker

    def close(self) -> None:
        """End the worker."""
        self._grader.close()

    def grade(self, answer: str, gold: str) -> Graded:
        """The verdict, and the seconds that the caller waited for it."""
        began = time.perf_counter()
        verdict = self._grader.is_equivalent(answer, gold)
        return verdict, time.perf_counter() - began


class MathVerify:
    """math-verify in a separate process, timed inside that process.

    Args:
        patience: Seconds after which a comparison is given up and the process replaced.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self.process = context.Process(target=_serve_math_verify, args=(other,), daemon=True)
        self.process.start()
        other.close()  # so that the connection ends with the process
        self._connection.recv()  # the process has imported its packages

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self._connection.close()

    def grade(self, answer: str, gold: str) -> Graded:
        """The verdict and its seconds; the verdict is `None` after a timeout or a crash."""
        try:
            self._connection.send((answer, gold))
            if self._connection.poll(self.patience):
                return self._connection.recv()
        except (EOFError, OSError):
            pass
        self.close()
        self._start()
        return None, self.patience


def _serve_math_verify(connection: Any) -> None:
    """Grade pairs until the connection closes."""
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
    r"""The text, between dollar signs unless it holds a mathematical delimiter or a box."""
    return text if re.search(r"\$|\\\(|\\\[|\\boxed", text) else f"${text}$"
