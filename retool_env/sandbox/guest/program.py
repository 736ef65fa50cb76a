"""Compiles a program, runs it in this process, and reports how it ended.

The program is the module `__main__` with one dictionary of globals. Its text is compiled unchanged.
"""

import _io  # its classes are checked without the cost of abstract classes
import ast
import builtins
import errno
import gc
import linecache
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import NamedTuple

NAME = "<program>"
"""The file name of a program in tracebacks. Each block of a session has its own name."""

reported: set[str] = set()
"""The texts that preludes have reported during this block; see `run_prelude`."""

_DENIED = {errno.EPERM, errno.EACCES, errno.EROFS, errno.ENETUNREACH}
_LINE = 2000  # the most characters of an error
_names: set[str] = set()  # the file names of all programs so far


class Ending(NamedTuple):
    """How a program ended."""

    outcome: str
    """The outcome's name."""
    error: str
    """The error in one line."""
    traceback: str
    """The program's part of the traceback."""
    status: int
    """The exit status for the program's process."""


_OK = Ending("ok", "", "", 0)  # made in advance: a program may have left no memory


def new_main() -> ModuleType:
    """An empty module `__main__` for a program."""
    main = ModuleType("__main__")
    vars(main)["__builtins__"] = builtins
    sys.modules["__main__"] = main
    return main


def execute(
    source: str,
    main: ModuleType,
    display: bool = False,
    name: str = NAME,
    begin: Callable[[], object] = lambda: None,
) -> Ending:
    """Compiles and runs a program.

    Args:
        source: The program's text.
        main: The module that the program runs in.
        display: Whether the value of a last statement that is an expression is shown on stdout.
        name: The file name of the program in tracebacks.
        begin: Called just before the program runs; its exceptions count as the program's.

    Raises:
        MemoryError: The program ran out of memory; there may be no memory left to report it.
    """
    # `linecache` does not look on disk for an entry of this form.
    lines = _lines(source)
    linecache.cache[name] = (len(source), None, lines, name)
    _names.add(name)
    try:
        # `compile` raises ValueError for a lone surrogate and, in some versions, for a NUL.
        programs = _compile(source, display, name)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # A MemoryError without arguments means no memory; with arguments, the nesting is too deep.
        if isinstance(error, MemoryError) and not error.args:
            raise
        return Ending("syntax_error", _one_line(error), _traceback(error), 1)
    return _run(programs, main, begin)


def _run(programs: list, main: ModuleType, begin: Callable[[], object]) -> Ending:
    # Keep this function short. If an instruction beyond the first 256 of a function raises again,
    # Python needs memory for the instruction's number, and without memory tries for ever.
    try:
        begin()
        for program in programs:
            exec(program, main.__dict__)
    except MemoryError:
        raise
    except SystemExit as error:
        code = 0 if error.code is None else error.code
        status = code & 0xFF if isinstance(code, int) else 1
        if status == 0:
            return _OK
        return Ending("runtime_error", _one_line(error), _traceback(error), status)
    except BaseException as error:
        outcome = "blocked" if _is_denied(error) else "runtime_error"
        return Ending(outcome, _one_line(error), _traceback(error), 1)
    return _OK


def run_prelude(source: str) -> None:
    """Runs code of the sandbox's user before a program, in a namespace of its own.

    The code, and what it leaves in the process, calls `report(text)` to tell the host something.

    Args:
        source: The code. Its errors count as the program's.
    """
    # Python gives this file name to its own code for imports. `_traceback` leaves such frames out.
    code = compile(source, "<frozen importlib._bootstrap>", "exec", dont_inherit=True)
    exec(code, {"__name__": "importlib._bootstrap", "report": reported.add})


def clear(before: int) -> None:
    """Frees the objects of a program that is over, as Python does at its own end.

    The module goes first, and with it every object that nothing else refers to: `__del__` runs, and
    so does the `finally` of generators. The caller must not refer to the module. Objects from
    before the program are frozen and not examined.

    Args:
        before: The number of objects that the garbage collector knew before the program.
    """
    flush()  # a collection can close a descriptor before the writer on top of it is flushed
    main = sys.modules.pop("__main__", None)
    namespace = id(getattr(main, "__dict__", None))
    del main
    if hasattr(builtins, "_"):  # the last value that was displayed
        builtins._ = None
    if len(gc.get_objects()) > before:  # an empty collection takes as long as a small program
        gc.collect()
        for each in gc.get_objects():
            # The namespace is still there if something else refers to a part of it.
            if id(each) == namespace and type(each) is dict:
                for name in each:
                    each[name] = None
                gc.collect()
        flush()


def flush() -> None:
    """Flushes open writers on standard output only, since other writers could block."""
    with suppress(OSError):
        output = os.fstat(1)
        for each in gc.get_objects():  # frozen objects are not among these
            if issubclass(type(each), _io._IOBase):
                with suppress(Exception):
                    if os.path.samestat(os.fstat(each.fileno()), output):
                        each.flush()
    with suppress(Exception):
        sys.stdout.flush()


def _lines(source: str) -> list[str]:
    """The lines of a text as the compiler counts them; other separators do not end a line."""
    *whole, last = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [f"{line}\n" for line in whole] + [last] * bool(last)


def _compile(source: str, display: bool, name: str) -> list:
    if not display:
        return [compile(source, name, "exec", dont_inherit=True)]
    tree = compile(source, name, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    assert isinstance(tree, ast.Module)
    programs = []
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Interactive([tree.body.pop()])
        programs = [compile(last, name, "single", dont_inherit=True)]
    return [compile(tree, name, "exec", dont_inherit=True), *programs]


def _one_line(error: BaseException) -> str:
    """The error as in the last line of its traceback."""
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__}.{name}"
    try:
        text = str(error)
    except Exception:
        text = "<exception str() failed>"
    if isinstance(error, SyntaxError):
        text = f"{error.msg} (line {error.lineno})" if error.lineno else str(error.msg)
    text = " ".join(text.split("\n"))
    return (f"{name}: {text}" if text else name)[:_LINE]


def _traceback(error: BaseException) -> str:
    """Python's traceback with only the program's frames, so that it holds no path of the machine.

    It omits the marks below lines, which differ between Python versions. A frame that repeats is
    shown three times, as in Python.
    """
    try:
        if isinstance(error, SyntaxError) and error.filename in _names:
            place = f'  File "{error.filename}", line {error.lineno}\n'
            line = f"    {error.text.strip()}\n" if error.text else ""
            return f"{place}{line}{_one_line(error)}"
        frames = [
            traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name)
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_code.co_filename in _names
        ]
        shown = "".join(traceback.StackSummary.from_list(frames).format())
        head = "Traceback (most recent call last):\n" if frames else ""
        return f"{head}{shown}{_one_line(error)}"
    except Exception:  # no memory or no stack left, or objects that lie about themselves
        return ""


def _is_denied(error: BaseException) -> bool:
    """Whether the sandbox caused the error by a refusal."""
    if not isinstance(error, OSError):
        return False
    cause = getattr(error, "reason", error)  # urllib wraps the reason
    return getattr(cause, "errno", None) in _DENIED or type(cause).__name__ == "gaierror"
