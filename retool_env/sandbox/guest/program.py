"""Compiles a program, runs it in this process, and says how it ended.

The program is the module `__main__` with one dictionary of globals, and its text is compiled as it is.
"""

import _io  # whose classes are checked without the cost of abstract ones
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
"""What tracebacks call the program's file. Each block of a session has a name of its own."""

_DENIED = {errno.EPERM, errno.EACCES, errno.EROFS, errno.ENETUNREACH}
_LINE = 2000  # characters of an error that are kept
_names: set[str] = set()  # of all programs so far


class Ending(NamedTuple):
    """How a program ended."""

    outcome: str
    """The outcome's name."""
    error: str
    """The error in one line."""
    traceback: str
    """The program's part of the traceback."""
    status: int
    """The status that its process is to exit with."""


_OK = Ending("ok", "", "", 0)  # made beforehand: a program may have left no memory


def new_main() -> ModuleType:
    """An empty module `__main__`, in which a program will run."""
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
    """Runs `source`.

    Args:
        source: The program.
        main: The module it runs in.
        display: Whether the value of a last statement that is an expression is shown on stdout.
        name: What tracebacks call its file.
        begin: Called just before it runs; what this raises is the program's.

    Raises:
        MemoryError: The program ran out of memory; there may be none left to say so.
    """
    # A dictionary entry of this form is never looked up on disk.
    lines = _lines(source)
    linecache.cache[name] = (len(source), None, lines, name)
    _names.add(name)
    try:
        # A text with a lone surrogate or, in some versions, a NUL is refused by a ValueError.
        programs = _compile(source, display, name)
    except (SyntaxError, ValueError) as error:
        return Ending("syntax_error", _one_line(error), _traceback(error), 1)
    except (RecursionError, MemoryError) as error:
        # Without a text there really is no memory; with one, it is nested deeper than Python parses.
        if isinstance(error, MemoryError) and not error.args:
            raise
        return Ending("syntax_error", _one_line(error), _traceback(error), 1)
    return _run(programs, main, begin)


def _run(programs: list, main: ModuleType, begin: Callable[[], object]) -> Ending:
    # Short: where an instruction beyond the first 256 of a function raises again, Python needs memory for its
    # number, and without any tries that for ever.
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


def clear(before: int) -> None:
    """Ends what a program that is over has made, as Python does at its own end.

    Its module goes, and with it what nothing else refers to: `__del__` runs, and the `finally` of generators. The
    caller must not refer to the module. What existed before the program is frozen, and not looked at.

    Args:
        before: How many objects the collector knew before the program.
    """
    flush()  # a collection can close a descriptor before what is written to it
    main = sys.modules.pop("__main__", None)
    namespace = id(getattr(main, "__dict__", None))
    del main
    if hasattr(builtins, "_"):  # the last value that was displayed
        builtins._ = None
    if len(gc.get_objects()) > before:  # to collect nothing takes as long as a small program
        gc.collect()
        for each in gc.get_objects():
            if (
                id(each) == namespace and type(each) is dict
            ):  # something else refers to a part of it
                for name in each:
                    each[name] = None
                gc.collect()
        flush()


def flush() -> None:
    """Writes out what open writers on standard output still hold; others could be waited for."""
    with suppress(OSError):
        output = os.fstat(1)
        for each in gc.get_objects():  # without those that are frozen
            if issubclass(type(each), _io._IOBase):
                with suppress(Exception):
                    if os.path.samestat(os.fstat(each.fileno()), output):
                        each.flush()
    with suppress(Exception):
        sys.stdout.flush()


def _lines(source: str) -> list[str]:
    """The lines of a text as the compiler counts them: other separators than these are none."""
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
    """Says `error` as the last line of its traceback would."""
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
    """Python's traceback with the program's own frames alone: no path of the machine is in it.

    The marks below a line differ between versions of Python and are left out; a frame that repeats
    is shown three times, as Python does.
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
    """Was it the sandbox that said no?"""
    if not isinstance(error, OSError):
        return False
    cause = getattr(error, "reason", error)  # urllib wraps the reason
    return getattr(cause, "errno", None) in _DENIED or type(cause).__name__ == "gaierror"
