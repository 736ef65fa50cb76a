"""Compiles a program, runs it in this process, and says how it ended.

The program is the module `__main__` with one dictionary of globals, and its text is compiled as it is.
"""

import ast
import builtins
import errno
import linecache
import sys
import traceback
from types import ModuleType

NAME = "<program>"
"""What tracebacks call the program's file."""

_DENIED = {errno.EPERM, errno.EACCES, errno.EROFS, errno.ENETUNREACH}
_LINE = 2000  # characters of an error that are kept


def new_main() -> ModuleType:
    """An empty module `__main__`, in which a program will run."""
    main = ModuleType("__main__")
    main.__builtins__ = builtins
    sys.modules["__main__"] = main
    return main


def execute(source: str, main: ModuleType, display: bool = False) -> tuple[str, str, str]:
    """Runs `source`.

    Args:
        source: The program.
        main: The module it runs in.
        display: Whether the value of a last statement that is an expression is shown on stdout.

    Returns:
        The outcome's name, the error in one line, and the program's part of the traceback.

    Raises:
        MemoryError: The program ran out of memory; there may be none left to say so.
    """
    # A dictionary entry of this form is never looked up on disk; one a program, as in a fresh process.
    lines = source.splitlines(keepends=True)
    linecache.cache[NAME] = (len(source), None, lines, NAME)
    try:
        # A text with a lone surrogate or, in some versions, a NUL is refused by a ValueError.
        programs = _compile(source, display)
    except (SyntaxError, ValueError) as error:
        return "syntax_error", _one_line(error), _traceback(error)
    except (RecursionError, MemoryError) as error:
        # Without a text there really is no memory; with one, it is nested deeper than Python parses.
        if isinstance(error, MemoryError) and not error.args:
            raise
        return "syntax_error", _one_line(error), _traceback(error)
    try:
        for program in programs:
            exec(program, main.__dict__)
    except MemoryError:
        raise
    except SystemExit as error:
        if error.code is None or error.code == 0:
            return "ok", "", ""
        return "runtime_error", _one_line(error), _traceback(error)
    except BaseException as error:
        outcome = "blocked" if _is_denied(error) else "runtime_error"
        return outcome, _one_line(error), _traceback(error)
    return "ok", "", ""


def _compile(source: str, display: bool) -> list:
    if not display:
        return [compile(source, NAME, "exec", dont_inherit=True)]
    tree = compile(source, NAME, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    programs = []
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Interactive([tree.body.pop()])
        programs = [compile(last, NAME, "single", dont_inherit=True)]
    return [compile(tree, NAME, "exec", dont_inherit=True), *programs]


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
        if isinstance(error, SyntaxError) and error.filename == NAME:
            place = f'  File "{NAME}", line {error.lineno}\n'
            line = f"    {error.text.strip()}\n" if error.text else ""
            return f"{place}{line}{_one_line(error)}"
        frames = [
            traceback.FrameSummary(NAME, line, frame.f_code.co_name)
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_code.co_filename == NAME
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
