"""A program's outcome, one-line error and traceback, in this process without a guest."""

import builtins
import contextlib
import io
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.sandbox.guest import program


def run(source: str, display: bool = False) -> tuple[str, str, str, str]:
    """The outcome, error, traceback and output of a program in an empty `__main__`."""
    main, underscore = sys.modules["__main__"], getattr(builtins, "_", None)
    stdout = io.StringIO()
    try:
        with contextlib.redirect_stdout(stdout):
            said = program.execute(source, program.new_main(), display)
    finally:
        sys.modules["__main__"] = main
        builtins._ = underscore
    return (*said[:3], stdout.getvalue())


@pytest.fixture(autouse=True, scope="module")
def underscore() -> Iterator[None]:
    """Removes the value that a display leaves in `_`."""
    yield
    if getattr(builtins, "_", 0) is None:
        del builtins._


STATEMENTS = [
    "x = 3",
    "print('a', end=' ')",
    "print(x)",
    "1 + 1",
    "'a string'",
    "for i in range(3):\n    i * i\n    print(i)",
    "if True:\n    7",
    "def f(n):\n    'doc'\n    return n * 2",
    "print(f(4))",
    "f(4)",
    "class A:\n    y = 5\n    y",
    "import math; math.pi; print(math.tau)",
    "x = 1; x; x",
    "try:\n    1 / 0\nexcept ZeroDivisionError:\n    'caught'",
    "with open('/dev/null') as file:\n    file.read()",
    "print('''two\nlines''')",
    "from __future__ import annotations",
    "print(*[i for i in range(3)], sep='\\n')",
    "x = (1,\n     2)",
    "# a comment",
    "",
    "raise ValueError('wrong')",
    "undefined",
    "exit(3)",
    "import sys; sys.exit()",
    "def g():\n    return g(",
    "\tx",
    "print(__name__, __doc__)",
    "lambda: 1",
]
LAST = {
    "x = 5": "",
    "None": "",
    "print('end')": "",
    "6 * 7": "42\n",
    "'text'": "'text'\n",
    "2, 3; 4": "4\n",
    "[i\n for i in range(3)]  # a comment": "[0, 1, 2]\n",
    "(y := 9)": "9\n",
    "4;": "4\n",
    "if True: 8": "",
    "...": "Ellipsis\n",
    "1 if True else 2\n\n": "1\n",
}


@given(st.lists(st.sampled_from(STATEMENTS), max_size=6), st.sampled_from([*LAST]))
def test_display_shows_the_last_value_and_changes_nothing_else(body: list[str], last: str) -> None:
    source = "\n".join([*body, last])
    outcome, error, trace, stdout = run(source)
    assert run(source, display=True) == (
        outcome,
        error,
        trace,
        # Shown when it is reached, which it is not after an exit, were that without an error.
        stdout + LAST[last] * (outcome == "ok" and "import sys; sys.exit()" not in body),
    )


def test_a_value_that_cannot_be_shown_is_the_programs_error() -> None:
    source = "class A:\n    def __repr__(self):\n        raise KeyError('no')\nA()"
    outcome, error, trace, _ = run(source, display=True)
    assert (outcome, error) == ("runtime_error", "KeyError: 'no'")
    assert 'line 4, in <module>\n    A()\n  File "<program>", line 3, in __repr__' in trace


RAISING = """
import json
class Own(Exception): pass
class Liar(Exception):
    def __str__(self): raise RuntimeError
def deep(n): return deep(n - 1) if n else raising()
def raising():
    {statement}
{call}
"""
STATEMENTS_THAT_RAISE = [
    "raise Own({text!r})",
    "raise Liar({text!r})",
    "json.loads('[' + {text!r})",
    "int({text!r} + 'x')",
    "eval('1 +' + {text!r} + '(')",
    "exec({text!r} + '(')",
    "raise ValueError({text!r}) from OSError(13, {text!r})",
    "open('/nonexistent/' + {text!r})",
    "raise SystemExit({text!r} or 1)",
    "raise KeyboardInterrupt({text!r})",
    "assert not 'x', {text!r}",
    "import nowhere",
    "raise ExceptionGroup({text!r}, [ValueError(1)])",
    "sorted([1, 'a'], key=lambda a: raising)",
]


@given(
    st.sampled_from(STATEMENTS_THAT_RAISE),
    st.text(max_size=20),
    st.sampled_from(
        ["raising()", "deep(2)", "[raising() for _ in 'x']", "try: 1/0\nfinally: deep(9)"]
    ),
)
def test_a_traceback_is_the_programs_own(statement: str, text: str, call: str) -> None:
    source = RAISING.format(statement=statement.format(text=text), call=call)
    outcome, error, trace, _ = run(source)
    assert outcome in ("runtime_error", "blocked") and error and "\n" not in error
    lines = trace.split("\n")
    assert lines[-1] == error
    assert lines[0] == "Traceback (most recent call last):"
    places = [line for line in lines[:-1] if line.startswith("  File ")]
    assert places[0].endswith("in <module>")
    assert all(line.startswith('  File "<program>", line ') for line in places)
    assert sys.prefix not in trace and __file__ not in trace


@given(st.text())
def test_any_text_has_an_outcome(text: str) -> None:
    """Most texts do not compile; a text that compiles must not run here."""
    source = f"if 0:\n {text}" if "\n" not in text else f"def f():\n {text!r}"
    outcome, error, trace, _ = run(source)
    assert (outcome == "ok") == (error == "") == (trace == "")
    if outcome != "ok":
        assert trace.split("\n")[-1] == error


def test_tracebacks_look_like_pythons() -> None:
    source = "def f(a):\n    return 1 / a\n\nf(0)\n"
    assert run(source)[2] == (
        "Traceback (most recent call last):\n"
        '  File "<program>", line 4, in <module>\n'
        "    f(0)\n"
        '  File "<program>", line 2, in f\n'
        "    return 1 / a\n"
        "ZeroDivisionError: division by zero"
    )
    assert run("x = 1\ny = = 2")[2] == (
        '  File "<program>", line 2\n    y = = 2\nSyntaxError: invalid syntax (line 2)'
    )


def test_endless_recursion_is_told_shortly() -> None:
    trace = run("def f(n):\n    return f(n + 1)\nf(0)")[2]
    assert "Previous line repeated" in trace and len(trace.splitlines()) < 15


def test_errors_are_bounded() -> None:
    outcome, error, _, _ = run("raise ValueError('x' * 10**6)")
    assert outcome == "runtime_error" and len(error) == 2000
    assert run("raise " + "ValueError('x' * 10**6)")[2].endswith(error)


@pytest.mark.parametrize("text", ["x\0y", "'\ud800'", "print('\ud800')"])
def test_texts_that_are_no_source(text: str) -> None:
    outcome, error, trace, _ = run(text)
    assert outcome == "syntax_error" and trace.split("\n")[-1] == error


@pytest.mark.parametrize("source", ["(" * 500 + ")" * 500, "-" * 100_000 + "1", "1" + "+1" * 10**5])
@pytest.mark.parametrize("display", [False, True])
def test_nesting_beyond_the_compiler_is_no_want_of_memory(source: str, display: bool) -> None:
    outcome, error, trace, _ = run(source, display)
    assert outcome == "syntax_error" and error
    assert trace.split("\n")[-1] == error


def test_running_out_of_memory_is_for_the_caller() -> None:
    with pytest.raises(MemoryError):
        run("raise MemoryError")


@pytest.mark.parametrize(
    ("statement", "outcome"),
    [
        ("raise PermissionError(1, 'Operation not permitted')", "blocked"),
        ("raise OSError(30, 'Read-only file system')", "blocked"),
        ("raise OSError(101, 'Network is unreachable')", "blocked"),
        ("import urllib.error\nraise urllib.error.URLError(OSError(101, 'x'))", "blocked"),
        ("import socket\nraise socket.gaierror(-3, 'name resolution')", "blocked"),
        ("raise OSError(28, 'No space left on device')", "runtime_error"),
        ("raise FileNotFoundError(2, 'x')", "runtime_error"),
        ("raise ValueError(13)", "runtime_error"),
    ],
)
def test_what_the_sandbox_denies_is_blocked(statement: str, outcome: str) -> None:
    assert run(statement)[0] == outcome


def test_the_lines_are_there_for_the_program_itself() -> None:
    source = "import inspect, traceback\ndef f():\n    return 3\nprint(inspect.getsource(f))\n"
    assert run(source)[3] == "def f():\n    return 3\n\n"
