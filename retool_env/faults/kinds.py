"""The kinds of faults: the calls to which each applies, and the result that it shows.

A program always runs, also under a fault. Two kinds are made in its process, by a prelude
(`retool_env.faults.guest`), which reports whether the fault took place; after a wrong function the
program runs once more without it. For all other kinds, `show` puts another result in the place of
the true result. Where a kind does not apply, the call is *not eligible*, and the true result is
shown.
The texts belong to suite v0 and never change.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from retool_env.execution import Execution, Fault, Limits, Outcome
from retool_env.faults import guest
from retool_env.faults.settings import KINDS
from retool_env.faults.values import wrong_value

MADE_IN_GUEST = ("missing_package", "wrong_function")
"""The kinds that are made in the program's process."""

SLOW_SECONDS = 1.0
"""The delay of the kind `slow`."""

LEAST_CUT, MOST_KEPT = 8, 100
"""The kinds `cut` and `always_cut` need an output of at least 8 characters, and keep its first
half, at most 100 characters."""

SESSION_ENDED = "; the session was ended by that, its variables are lost"
"""The end of the error of a block that ended the process of its session."""

_REST = "# The rest is not hashed.\n"
_filters = threading.Lock()
_PACKAGE, _FUNCTION = "sympy", "factorint"
_IMPORTERS = ("import_module", "__import__", "find_spec", "run_module")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_MISSING = f"ModuleNotFoundError: No module named '{_PACKAGE}'"
_UNLOADED = re.compile(rf"ImportError: module {_PACKAGE}[\w.]* not in sys\.modules")
_TRY_AGAIN = "the interpreter could not run the program: try again"
_BUSY = "the interpreter is busy: try again later"
_GONE = "the interpreter is gone: it can't be used any longer in this conversation"
_WARNING = "<program>:1: DeprecationWarning: this version of Python is supported until 2028\n"


def fault_texts() -> list[str]:
    """The texts and numbers that a suite of faults fixes, and the code that changes the guest."""
    numbers = [str(number) for number in (SLOW_SECONDS, LEAST_CUT, MOST_KEPT)]
    return [_TRY_AGAIN, _BUSY, _GONE, _WARNING, _PACKAGE, _FUNCTION, *numbers, _hashed_guest()]


class FaultyCall(Protocol):
    """A call for which a fault is ordered: a `retool_env.episode.RunProgram`."""

    @property
    def program(self) -> str:
        """The program text."""

    @property
    def limits(self) -> Limits:
        """The limits of the program."""

    @property
    def session(self) -> bool:
        """Whether the program runs in the episode's session."""

    @property
    def fault(self) -> str | None:
        """The kind of the ordered fault."""

    @property
    def problem(self) -> str:
        """The id of the problem."""

    @property
    def block(self) -> int:
        """In a session: the number of the block in the session's process, from 1."""

    @property
    def before(self) -> Execution | None:
        """The result that was shown last in this episode, its output cut as it was shown."""

    def hidden(self, length: int) -> tuple[int, int]:
        """The characters of an output that the model does not see: the first, and the one after."""

    def seen(self, execution: Execution, recorded: bool = False) -> str:
        """A result as the model sees it; an output of a record is cut already."""


def prelude(call: FaultyCall) -> str:
    """The code that the process runs before the program; empty if it does not make the fault."""
    if call.fault == "missing_package" and (
        # A session would keep the fault beyond this call, also if the call imports nothing.
        _imports(call.program) if call.session else _PACKAGE in call.program
    ):
        return f"{_guest()}\nhide({_PACKAGE!r}, {call.session})\n"
    if call.fault == "wrong_function" and _uses_function(call.program):
        return f"{_guest()}\ndrop_factors()\n"
    return ""


def wants_true(call: FaultyCall, shown: Execution, true: Sequence[Execution]) -> bool:
    """Whether a program has to run (again) without its fault, to know what the fault changed.

    The process makes the kind `wrong_function` and can't say whether the result changed. So the
    program runs without the fault as well, and a second time if the result differs: a program that
    depends on chance differs in any case. A block of a session can't run twice.

    Args:
        call: The call.
        shown: The result with the fault.
        true: The results without the fault so far.
    """
    if call.fault != "wrong_function" or call.session or not prelude(call):
        return False
    if shown.outcome in (Outcome.SYNTAX_ERROR, Outcome.INFRASTRUCTURE):
        return False
    return not true or (len(true) == 1 and call.seen(true[0]) != call.seen(shown))


def _made_in_guest(
    call: FaultyCall,
    shown: Execution,
    true: Sequence[Execution],
    reported: Collection[str] | None,
) -> Fault:
    """The record of a fault that the process made."""
    assert call.fault is not None
    again = call.fault == "wrong_function" and not call.session  # the true result decides below
    # A process that was ended could not say: then the text of the program decides.
    struck = _can_strike(call) if again or reported is None else call.fault in reported
    if call.fault == "missing_package":
        struck = struck or _lacks_package(shown)
    if shown.outcome is Outcome.SYNTAX_ERROR or not struck:
        return Fault(call.fault, injected=False)
    if not true or any(one.outcome is Outcome.INFRASTRUCTURE for one in true):
        return Fault(call.fault, injected=True)
    if call.seen(true[0]) == call.seen(shown):
        return Fault(call.fault, injected=False)
    certain = all(call.seen(one) == call.seen(true[0]) for one in true)
    return Fault(call.fault, injected=True, real=true[0] if certain else None)


def begins(call: FaultyCall, execution: Execution) -> bool:
    """Whether a persistent fault lasts from this call on: the call is eligible for it.

    A fault in the program's process lasts from the first program that uses what it changes, also
    if the result was right.

    Args:
        call: The call.
        execution: The result that `show` returned.
    """
    fault = execution.fault
    if call.fault is None or not KINDS[call.fault].persistent:
        return False
    if fault is None or fault.injected:
        return True
    ran = execution.outcome not in (Outcome.SYNTAX_ERROR, Outcome.INFRASTRUCTURE)
    return call.fault in MADE_IN_GUEST and ran and _can_strike(call)


def show(
    call: FaultyCall,
    true: Execution,
    without: Sequence[Execution] = (),
    reported: Collection[str] | None = None,
) -> Execution:
    """The result that the model sees, with the record of the fault.

    Args:
        call: The call.
        true: The result of the program; with a prelude, of the program after it.
        without: With a prelude: the results of the program without it, see `wants_true`.
        reported: The kinds that the process reported: an import was refused, or a function gave a
            wrong result (`Files.reported`). `None` if it could not say.
    """
    assert call.fault is not None
    if true.outcome is Outcome.INFRASTRUCTURE:
        shown = None
    elif call.fault in MADE_IN_GUEST:
        return dataclasses.replace(true, fault=_made_in_guest(call, true, without, reported))
    elif call.fault == "slow":
        shown = dataclasses.replace(true, duration=true.duration + SLOW_SECONDS)
    else:
        shown = _SHOWN[call.fault](call, true)
        if shown is not None and call.seen(shown, call.fault == "stale") == call.seen(true):
            shown = None  # the model would see no difference
        elif shown is not None and SESSION_ENDED in true.error and SESSION_ENDED not in shown.error:
            shown = None  # the model would not know that its session has ended
    if shown is None:
        return dataclasses.replace(true, fault=Fault(call.fault, injected=False))
    return dataclasses.replace(shown, fault=Fault(call.fault, injected=True, real=true))


def _lacks_package(shown: Execution) -> bool:
    """Whether a program failed for want of the package, which its process did not report.

    The import was refused in a child process, or the package is not among the loaded modules.
    """
    return shown.error == _MISSING or bool(_UNLOADED.fullmatch(shown.error))


def _can_strike(call: FaultyCall) -> bool:
    """Whether the text of a program uses what the fault changes in its process."""
    reads = {"missing_package": _imports, "wrong_function": _uses_function}
    return reads[str(call.fault)](call.program)


def delay(execution: Execution) -> float:
    """The seconds that the result has to wait."""
    fault = execution.fault
    return SLOW_SECONDS if fault and fault.injected and fault.kind == "slow" else 0.0


def ends_session(call: FaultyCall, execution: Execution) -> bool:
    """Whether the shown result says that the session has ended, so that it has to be ended.

    Args:
        call: The call.
        execution: The result that `show` returned.
    """
    fault = execution.fault
    ending = ("timeout", "always_timeout", "session_ended")
    return bool(call.session and fault and fault.injected and fault.kind in ending)


def _failed(call: FaultyCall, true: Execution, outcome: Outcome, error: str) -> Execution:
    """A result that shows an error and nothing that the program printed."""
    return Execution(outcome, "", error, duration=true.duration)


def _timeout(call: FaultyCall, true: Execution) -> Execution | None:
    if true.outcome is Outcome.SYNTAX_ERROR:
        return None
    error = f"time limit: the program ran for more than {call.limits.wall_seconds:g} s"
    return _failed(call, true, Outcome.TIMEOUT, error + SESSION_ENDED * call.session)


def _memory(call: FaultyCall, true: Execution) -> Execution | None:
    if true.outcome is Outcome.SYNTAX_ERROR:
        return None
    error = f"MemoryError: the program needed more than {call.limits.memory_mb} MiB"
    return _failed(call, true, Outcome.MEMORY_LIMIT, error)


def _session_ended(call: FaultyCall, true: Execution) -> Execution | None:
    if not call.session or true.outcome is Outcome.SYNTAX_ERROR:
        return None
    return _failed(call, true, Outcome.RUNTIME_ERROR, f"exit status 1{SESSION_ENDED}")


def _says(error: str) -> Callable[[FaultyCall, Execution], Execution]:
    """An invented error of the interpreter, which does not depend on the program."""
    return lambda call, true: _failed(call, true, Outcome.RUNTIME_ERROR, error)


def _prints(
    change: Callable[[FaultyCall, str], str | None],
) -> Callable[[FaultyCall, Execution], Execution | None]:
    """A silent fault, which changes the output of a program that ran without error."""

    def shown(call: FaultyCall, true: Execution) -> Execution | None:
        stdout = change(call, true.stdout) if true.outcome is Outcome.OK else None
        return None if stdout is None else dataclasses.replace(true, stdout=stdout)

    return shown


def _wrong_value(call: FaultyCall, stdout: str) -> str | None:
    return wrong_value(stdout, call.problem, call.hidden(len(stdout)))


def _cut(call: FaultyCall, stdout: str) -> str | None:
    text = stdout.strip()
    return text[: min(len(text) // 2, MOST_KEPT)] if len(text) >= LEAST_CUT else None


def _empty(call: FaultyCall, stdout: str) -> str | None:
    return "" if stdout.strip() else None


def _stale(call: FaultyCall, stdout: str) -> str | None:
    before = call.before
    if before is None or before.outcome is not Outcome.OK or not before.stdout.strip():
        return None
    return before.stdout


def _blank_line(call: FaultyCall, true: Execution) -> Execution | None:
    length = len(true.stdout)
    if call.hidden(length + 1)[1] > length:
        return None
    end = "\n" if true.stdout.endswith("\n") or not true.stdout else "\n\n"
    return dataclasses.replace(true, stdout=true.stdout + end)


def _warning(call: FaultyCall, true: Execution) -> Execution | None:
    # A block of a session has a name of its own.
    text = _WARNING.replace("<program>", f"<block {call.block}>") if call.session else _WARNING
    first, last = call.hidden(len(text) + len(true.stdout))
    if true.outcome is Outcome.SYNTAX_ERROR or (first < len(text) and first < last):
        return None
    return dataclasses.replace(true, stdout=text + true.stdout)


_SHOWN: dict[str, Callable[[FaultyCall, Execution], Execution | None]] = {
    "timeout": _timeout,
    "always_timeout": _timeout,
    "memory": _memory,
    "session_ended": _session_ended,
    "try_again": _says(_TRY_AGAIN),
    "busy": _says(_BUSY),
    "gone": _says(_GONE),
    "wrong_value": _prints(_wrong_value),
    "cut": _prints(_cut),
    "always_cut": _prints(_cut),
    "empty": _prints(_empty),
    "stale": _prints(_stale),
    "blank_line": _blank_line,
    "warning": _warning,
}
"""For each kind whose result is put in the place of the true result: the shown result, or `None`
where the call is not eligible."""


@functools.cache
def _guest() -> str:
    return Path(guest.__file__).read_text(encoding="utf-8")


def _hashed_guest() -> str:
    """The code that changes the guest, without the lines that only report, or hide a name."""
    text = _guest().partition(_REST)[0].rstrip() + "\n"
    return "".join(line for line in text.splitlines(True) if not line.endswith("# unhashed\n"))


def _nodes(program: str, word: str) -> Iterator[ast.AST]:
    """The parts of a program that holds a word; none if the program can't be parsed."""
    if word not in program:
        return
    try:
        # Parsing warns of the program's escape sequences. The lock keeps threads from restoring one
        # another's filters.
        with _filters, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    yield from ast.walk(tree)


def _imports(program: str) -> bool:
    """Whether a program imports the package that can be missing, in any form."""
    nodes = list(_nodes(program, _PACKAGE))
    texts: list[object] = [node.value for node in nodes if isinstance(node, ast.Constant)]
    for node in nodes:
        names: list[object] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.level == 0 else []
        elif isinstance(node, ast.Call) and _name(node.func) in _IMPORTERS:
            given = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "name")]
            # A name that the program computes is one of its texts.
            named = all(isinstance(value, ast.Constant) for value in given)
            names = [value.value for value in given if isinstance(value, ast.Constant)]
            names = names if named else texts
        elif isinstance(node, ast.Call) and _name(node.func) in ("exec", "eval"):
            programs = (text.strip() for text in texts if isinstance(text, str))
            names = [_PACKAGE for program in programs if _imports(program)]
        if any(isinstance(name, str) and name.split(".")[0] == _PACKAGE for name in names):
            return True
    return False


def _uses_function(program: str) -> bool:
    """Whether a program uses sympy's function that can be wrong, by its name or another name."""
    nodes = list(_nodes(program, _FUNCTION))
    own = {node.name for node in nodes if isinstance(node, _DEFINITIONS)} | {
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    imported = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == _FUNCTION
    }
    names = ({_FUNCTION} - own) | imported
    return any(
        (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names)
        or (isinstance(node, ast.Attribute) and node.attr == _FUNCTION)
        or (isinstance(node, ast.Call) and _gets_function(node))
        for node in nodes
    )


def _gets_function(call: ast.Call) -> bool:
    """Whether a call is `getattr` with the function's name."""
    texts = [value.value for value in call.args[1:2] if isinstance(value, ast.Constant)]
    return _name(call.func) == "getattr" and texts == [_FUNCTION]


def _name(function: ast.expr) -> str:
    """The last part of a function's name, as it is called."""
    if isinstance(function, ast.Name):
        return function.id
    return function.attr if isinstance(function, ast.Attribute) else ""
