"""The main loop of a worker process: answers questions within limits of time and memory."""

import faulthandler
import json
import logging
import mmap
import os
import signal
import sys

from .comparison import compare, reply_to
from .expressions import refuse_numbers_side_by_side
from .values import numbers_equal, symbolically_equal

_MARGIN_SECONDS = 0.1
_OUT_OF_MEMORY = 2


class _Late(BaseException):
    """The time of a comparison is over. No `except Exception` of a library catches this error."""


def serve(seconds: float, memory_mb: int) -> None:
    """Answers questions until the input closes.

    Args:
        seconds: The processor time of one comparison.
        memory_mb: The address space of this process, in MiB.
    """
    replies = os.fdopen(os.dup(1), "w", newline="\n")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library's print must not be a reply
    _bound_memory(memory_mb)
    logging.disable(logging.CRITICAL)
    try:
        from latex2sympy2_extended import latex2sympy2
        from math_verify import grader

        for name, ours in (("numeric", numbers_equal), ("symbolic", symbolically_equal)):
            assert callable(getattr(grader, f"sympy_{name}_eq")), "another math-verify is needed"
            setattr(grader, f"sympy_{name}_eq", ours)
        reader = latex2sympy2._Latex2Sympy
        reader.convert_postfix_list = refuse_numbers_side_by_side(reader.convert_postfix_list)
        assert compare("1+1", "2")  # imports everything and builds the parser's tables
    except Exception as error:
        print(repr(error), file=replies, flush=True)
        return
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            _start_clock(seconds)
            verdict = str(int(reply_to(*question)))
            _stop_clock()
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        except _Late:
            verdict = "late"
        except Exception:
            verdict = "0"
        _stop_clock()
        print(verdict, file=replies, flush=True)
        # Memory that earlier comparisons left in use must not make a later comparison fail.
        if _resident_mb() > memory_mb // 2:
            os._exit(0)


def _bound_memory(memory_mb: int) -> None:
    """Limits the address space. Only Linux can; Windows and macOS do nothing here."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _start_clock(seconds: float) -> None:
    """Starts the timers that end a comparison after its processor time.

    The first timer raises an exception. An exception does not interrupt C code: there, the second
    timer ends the process. Windows has no such timers: there, the process ends after the wall-clock
    time, with status 1.
    """
    if sys.platform == "win32":
        faulthandler.dump_traceback_later(seconds + _MARGIN_SECONDS, exit=True)
        return
    signal.signal(signal.SIGPROF, _interrupt)
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds + _MARGIN_SECONDS)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _stop_clock() -> None:
    if sys.platform == "win32":
        faulthandler.cancel_dump_traceback_later()
        return
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _interrupt(number: int, frame: object) -> None:
    raise _Late


def _resident_mb() -> float:
    """The memory in use, in MiB.

    `ru_maxrss` is not used, because a child inherits it from its parent: under a large trainer,
    each answer would end its worker.
    """
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE / (1 << 20)
    except OSError:  # without /proc, the limit of the address space remains
        return 0.0
