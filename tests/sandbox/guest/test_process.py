"""The result of a program: outcome, output and error. Equal in both sandboxes."""

import pytest

from retool_env.sandbox import Execution, Limits, Outcome, Sandbox

ENDINGS = {
    "a print": ("print(1)", Outcome.OK, "1\n", ""),
    "nothing": ("", Outcome.OK, "", ""),
    "no print of a last expression": ("1 + 1", Outcome.OK, "", ""),
    "a raise": (
        "print('before')\n1 / 0",
        Outcome.RUNTIME_ERROR,
        "before\n",
        "ZeroDivisionError: division by zero",
    ),
    "an error without text": ("assert False", Outcome.RUNTIME_ERROR, "", "AssertionError"),
    "an error of the program's own": (
        "class Wrong(Exception): pass\nraise Wrong('so')",
        Outcome.RUNTIME_ERROR,
        "",
        "Wrong: so",
    ),
    "an error of several lines": (
        "raise ValueError('one\\ntwo')",
        Outcome.RUNTIME_ERROR,
        "",
        "ValueError: one two",
    ),
    "bad syntax": (
        "print(1)\nx = = 2",
        Outcome.SYNTAX_ERROR,
        "",
        "SyntaxError: invalid syntax (line 2)",
    ),
    "bad indentation": (
        "  print(1)",
        Outcome.SYNTAX_ERROR,
        "",
        "IndentationError: unexpected indent (line 1)",
    ),
    "bad syntax met while running": (
        "eval('1 +')",
        Outcome.RUNTIME_ERROR,
        "",
        "SyntaxError: invalid syntax (line 1)",
    ),
    "endless recursion": (
        "def f(): return f()\nf()",
        Outcome.RUNTIME_ERROR,
        "",
        "RecursionError: maximum recursion depth exceeded",
    ),
    "exit": ("print(1)\nexit()\nprint(2)", Outcome.OK, "1\n", ""),
    "sys.exit(0)": ("import sys\nsys.exit(0)", Outcome.OK, "", ""),
    "sys.exit(3)": ("import sys\nsys.exit(3)", Outcome.RUNTIME_ERROR, "", "SystemExit: 3"),
    "sys.exit of a text": ("exit('no root')", Outcome.RUNTIME_ERROR, "", "SystemExit: no root"),
    "os._exit(0)": ("import os\nprint(1)\nos._exit(0)", Outcome.OK, "1\n", ""),
    "os._exit(3)": ("import os\nos._exit(3)", Outcome.RUNTIME_ERROR, "", "exit status 3"),
    "a crash": (
        "import ctypes\nctypes.string_at(0)",
        Outcome.RUNTIME_ERROR,
        "",
        "ended by SIGSEGV",
    ),
    "input": ("input()", Outcome.RUNTIME_ERROR, "", "EOFError: EOF when reading a line"),
    "a NUL in the text": (
        "print('\0')",
        Outcome.SYNTAX_ERROR,
        "",
        "SyntaxError: source code string cannot contain null bytes",
    ),
    "a NUL in the output": ("print('a\\0b')", Outcome.OK, "a\0b\n", ""),
    "text beyond ASCII": ("print('π ≈ 3', '𝔽')", Outcome.OK, "π ≈ 3 𝔽\n", ""),
    "bytes that are no text": (
        "import sys\nsys.stdout.buffer.write(b'a\\xffb')",
        Outcome.OK,
        "a\ufffdb",
        "",
    ),
    "a character that ends too early": (
        "import sys\nsys.stdout.buffer.write(b'a\\xcf')",
        Outcome.OK,
        "a\ufffd",
        "",
    ),
    "a surrogate in the output": (
        "print('\\ud800')",
        Outcome.RUNTIME_ERROR,
        "",
        "UnicodeEncodeError: 'utf-8' codec can't encode character '\\ud800' in position 0:"
        " surrogates not allowed",
    ),
    "a surrogate in the error": (
        "raise ValueError('\\ud800')",
        Outcome.RUNTIME_ERROR,
        "",
        "ValueError: \\ud800",
    ),
}


@pytest.mark.parametrize(("code", "outcome", "stdout", "error"), ENDINGS.values(), ids=ENDINGS)
def test_ending(either: Sandbox, code: str, outcome: Outcome, stdout: str, error: str) -> None:
    execution = either.run(code)
    assert (execution.outcome, execution.stdout, execution.error) == (outcome, stdout, error)
    if execution.traceback:
        assert execution.traceback.split("\n")[-1] == error
    raised = error and not error.startswith(("ended by", "exit status"))
    assert bool(execution.traceback) == bool(raised)


SCRIPTS = {
    "functions calling each other": (
        "import math\ndef f(n): return 1 if n < 1 else g(n)\n"
        "def g(n): return math.prod([n, f(n-1)])"
        "\nprint(f(5), [f(n) for n in range(3)])",
        "120 [1, 1, 2]\n",
    ),
    "the main guard": ("def f(): print(7)\nif __name__ == '__main__':\n    f()", "7\n"),
    "a dataclass": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\n"
        "class P:\n    x: int\nprint(P(1))",
        "P(x=1)\n",
    ),
    "pickle": (
        "import pickle\nclass P: x = 3\nprint(pickle.loads(pickle.dumps(P())).x)",
        "3\n",
    ),
    "a thread and atexit": (
        "import atexit, threading, time\natexit.register(print, 'bye')\n"
        "threading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()\n"
        "print('main')",
        "main\nthread\nbye\n",
    ),
    "a failing child": (
        "import os\nif os.fork() == 0:\n    raise ValueError('the child')\n"
        "os.wait()\nprint('fine')",
        "fine\n",
    ),
    "a child that ends the program's way": (
        "import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint('both')",
        "both\nboth\n",
    ),
    "multiprocessing": (
        "import multiprocessing as m\ndef f(x): return x * x\n"
        "with m.Pool(2) as pool:\n    print(pool.map(f, [1, 2, 3]))",
        "[1, 4, 9]\n",
    ),
    "a subprocess": (
        "import subprocess, sys\n"
        "print(subprocess.run([sys.executable, '-c', 'print(5)'], capture_output=True).stdout)",
        "b'5\\n'\n",
    ),
    "output without a newline": ("print('a', end='')", "a"),
    "closed descriptors": ("import os\nprint(1)\nos.closerange(3, 99)", "1\n"),
    "a file": ("open('x', 'w').write('y')\nprint(open('x').read())", "y\n"),
    "asyncio": ("import asyncio\nprint(asyncio.run(asyncio.sleep(0, 3)))", "3\n"),
    "the packages": (
        "import mpmath, numpy, sympy\nx = sympy.Symbol('x')\n"
        "print(sympy.integrate(x, x), numpy.linalg.det(numpy.eye(2)), mpmath.mpf(2))",
        "x**2/2 1.0 2.0\n",
    ),
    "a writer on standard output that is not closed": (
        "import os\nwriter = os.fdopen(1, 'w')\nwriter.write('held\\n')",
        "held\n",
    ),
    "a writer on a copy of it, in a cycle": (
        "import os\nheld = [os.fdopen(os.dup(1), 'w')]\n"
        "held.append(held)\nheld[0].write('held\\n')",
        "held\n",
    ),
    "a writer that a module of Python's keeps": (
        "import json, os\njson.writer = os.fdopen(1, 'w')\njson.writer.write('held\\n')",
        "held\n",
    ),
    "a writer of a child's": (
        "import os\nif os.fork() == 0:\n    w = os.fdopen(1, 'w')\n    w.write('child\\n')\n"
        "else:\n    os.wait()\n    print('parent')",
        "child\nparent\n",
    ),
    "__del__, which sees the other names": (
        "class A:\n    def __del__(self): print('gone', x)\nx = 5\na = A()\nprint('end')",
        "end\ngone 5\n",
    ),
    "__del__ in a cycle": (
        "class A:\n    def __del__(self): print('gone')\na = A()\na.a = a\ndel a\nprint('end')",
        "end\ngone\n",
    ),
    "finally of a generator that is not finished": (
        "def g():\n    try:\n        yield 1\n    finally:\n        print('finally')\n"
        "h = g()\nnext(h)\nprint('end')",
        "end\nfinally\n",
    ),
    "a context that is left open": (
        "import contextlib\n@contextlib.contextmanager\ndef c():\n"
        "    try:\n        yield\n    finally:\n"
        "        print('left')\nx = c()\nx.__enter__()",
        "left\n",
    ),
    "weakref.finalize": (
        "import weakref\nclass A: pass\na = A()\nweakref.finalize(a, print, 'finalized')",
        "finalized\n",
    ),
    "statuses of children": (
        "import os, sys\n"
        "for end in (lambda: None, lambda: sys.exit(7), lambda: 1 / 0, lambda: sys.exit('x')):\n"
        "    if os.fork() == 0:\n        end()\n        break\n"
        "    print(os.waitstatus_to_exitcode(os.wait()[1]))",
        "0\n7\n1\n1\n",
    ),
    "a pool of its own size": (
        "import multiprocessing as m, os\n"
        "with m.Pool() as pool:\n"
        "    print(pool.map(abs, range(-3, 0)), pool._processes == os.cpu_count())",
        "[3, 2, 1] True\n",
    ),
    "executors of their own size": (
        "from concurrent.futures import ProcessPoolExecutor as P, ThreadPoolExecutor as T\n"
        "with P() as p, T() as t:\n    print(list(p.map(abs, [-1])), sum(t.map(abs, range(50))))",
        "[1] 1225\n",
    ),
    "no arguments": ("import sys\nprint(sys.argv)", "['']\n"),
    "what the module site adds": (
        "print(type(help), quit)",
        "<class '_sitebuiltins._Helper'> Use quit() or Ctrl-D (i.e. EOF) to exit\n",
    ),
}


@pytest.mark.parametrize(("code", "stdout"), SCRIPTS.values(), ids=SCRIPTS)
def test_script_runs_as_python_runs_it(either: Sandbox, code: str, stdout: str) -> None:
    assert either.run(code) == Execution(Outcome.OK, stdout)


@pytest.mark.parametrize("code", ["raise ValueError('x')", "import sys\nsys.exit(3)", "1 / 0"])
def test_a_failure_ends_as_scripts_end_too(either: Sandbox, code: str) -> None:
    end = "import os\nclass A:\n    def __del__(self): print('gone')\n"
    end += "a = A()\nw = os.fdopen(1, 'w')\nw.write('held')\n"
    execution = either.run(end + code)
    assert execution.outcome is Outcome.RUNTIME_ERROR
    assert execution.stdout in ("gone\nheld", "heldgone\n")


def test_the_end_has_no_time_of_its_own(either: Sandbox) -> None:
    code = "import time\nclass A:\n    def __del__(self): time.sleep(60)\na = A()\nprint('end')"
    execution = either.run(code, Limits(wall_seconds=0.5))
    assert (execution.outcome, execution.stdout) == (Outcome.TIMEOUT, "end\n")


def test_a_writer_is_flushed_after_each_block(either: Sandbox) -> None:
    with either.session() as session:
        assert (
            session.run("import os\nw = os.fdopen(1, 'w', closefd=False)\nw.write('one')").stdout
            == "one"
        )
        assert session.run("w.write('two')").stdout == "two"


def test_lone_surrogate_is_a_syntax_error(either: Sandbox) -> None:
    execution = either.run("print('\ud800')")
    assert execution.outcome is Outcome.SYNTAX_ERROR
    assert "surrogates not allowed" in execution.error


def test_stderr_is_neither_failure_nor_output(either: Sandbox) -> None:
    code = (
        "import sys, warnings\nwarnings.warn('careful')\nsys.stderr.write('x' * 10**6)\n"
        "import logging\nlogging.error('hm')\nprint('kept')"
    )
    assert either.run(code) == Execution(Outcome.OK, "kept\n")


def test_equal_programs_have_equal_output(either: Sandbox) -> None:
    code = (
        "import random, numpy, sympy.core.random\n"
        "print({str(i) for i in range(50)}, random.random(), numpy.random.rand(),"
        " sympy.core.random.random())"
    )
    assert len({either.run(code).stdout for _ in range(6)}) == 1


def test_no_state_between_programs(either: Sandbox) -> None:
    either.run("x = 1\nimport builtins, math, sys\nmath.pi = builtins.print = sys.argv = 3")
    raised = "NameError: name 'x' is not defined"
    for _ in range(6):
        execution = either.run("import math\nprint(math.pi > 3.1)\nprint(x)")
        assert (execution.stdout, execution.error) == ("True\n", raised)


def test_the_namespace_is_empty(either: Sandbox) -> None:
    assert either.run("print(sorted(vars()))").stdout == (
        "['__builtins__', '__doc__', '__loader__', '__name__', '__package__', '__spec__']\n"
    )


@pytest.mark.parametrize(
    "code",
    [
        "x = [0] * 10**9",
        "x = []\nwhile True: x.append(bytes(10**6))",
        "import numpy\nnumpy.ones(10**9)",
        "raise MemoryError",
    ],
)
def test_memory_limit(either: Sandbox, code: str) -> None:
    limits = Limits(memory_mb=256)
    expected = "MemoryError: the program needed more than 256 MiB"
    execution = either.run(f"print('a')\n{code}", limits)
    assert (execution.outcome, execution.stdout) == (Outcome.MEMORY_LIMIT, "a\n")
    assert execution.error == expected
    assert either.run("x = bytes(10**8)", limits).outcome is Outcome.OK


FULL_OF_SMALL = {
    "numbers": "x = {}\ni = 0\nwhile True:\n    x[i] = str(i)\n    i += 1",
    "tuples": "h = None\nwhile True: h = (h,)",
    "lists": "x = []\nwhile True: x.append([])",
}


@pytest.mark.some(1)
@pytest.mark.parametrize("code", FULL_OF_SMALL.values(), ids=FULL_OF_SMALL)
def test_memory_that_small_objects_fill_to_the_last_byte(jail: Sandbox, code: str) -> None:
    """The memory that is left does not suffice to build the result."""
    limits = Limits(memory_mb=64, wall_seconds=20)
    expected = "MemoryError: the program needed more than 64 MiB"
    for _ in range(3):
        execution = jail.run(code, limits)
        assert (execution.outcome, execution.error) == (Outcome.MEMORY_LIMIT, expected)


def test_a_program_that_recovers_from_that_is_ok(jail: Sandbox) -> None:
    code = "x = []\ntry:\n    while True: x.append([])\nexcept MemoryError: pass\nprint('on')"
    for _ in range(3):
        assert jail.run(code, Limits(memory_mb=64)) == Execution(Outcome.OK, "on\n")


MOCKED = {
    "the clock": "import time\ntime.monotonic = lambda: 0.0",
    "a clock that ends": "import time\ntime.monotonic = iter([]).__next__",
    "the process's number": "import os\nos.getpid = lambda: 1234",
    "the exit": "import os\nos._exit = lambda code: None",
    "JSON": "import json\njson.dumps = None",
}


@pytest.mark.parametrize("code", MOCKED.values(), ids=MOCKED)
def test_functions_that_a_program_replaces_are_its_own_affair(either: Sandbox, code: str) -> None:
    assert either.run(f"{code}\nprint(1)") == Execution(Outcome.OK, "1\n")
    assert either.run(f"{code}\n1 / 0").error == "ZeroDivisionError: division by zero"
    with either.session() as session:
        assert session.run(f"x = 5\n{code}") == Execution(Outcome.OK, "")
        assert session.run("print(x)") == Execution(Outcome.OK, "5\n")


HOLDERS = {
    "a signal handler": "import signal\nsignal.signal(signal.SIGALRM, lambda *_: 0)",
    "a module of Python's": "import math\nmath.mine = lambda: 3",
    "builtins": "import builtins\nbuiltins.mine = lambda: 3",
    "copyreg": "import copyreg\ncopyreg.pickle(A, lambda a: 'a')",
}


@pytest.mark.parametrize("code", HOLDERS.values(), ids=HOLDERS)
def test_what_else_refers_to_the_program_does_not_keep_it_from_its_end(
    either: Sandbox, code: str
) -> None:
    program = (
        "class A:\n    def __del__(self): print('del')\na = A()\ndef g():\n    try: yield 1\n"
        "    finally: print('fin')\nx = g(); next(x); print('end')\n"
    )
    assert sorted(either.run(program + code).stdout.split()) == ["del", "end", "fin"]


EXITS = {"0": 0, "None": 0, "False": 0, "256": 0, "True": 1, "0.0": 1, "'0'": 1, "[]": 1, "-1": 1}


@pytest.mark.parametrize("value", EXITS)
def test_the_status_of_an_exit_is_pythons(either: Sandbox, value: str) -> None:
    ok = either.run(f"import sys\nsys.exit({value})").outcome is Outcome.OK
    assert ok == (EXITS[value] == 0)


def test_lines_are_those_of_the_compiler(either: Sandbox) -> None:
    code = "s = " + "'" * 3 + "q\x0cw\u2028x\x85" + "'" * 3 + "\n\ndef f():\n    return 1 / 0\nf()"
    assert either.run(code).traceback.splitlines()[1:-1] == [
        '  File "<program>", line 5, in <module>',
        "    f()",
        '  File "<program>", line 4, in f',
        "    return 1 / 0",
    ]


def test_a_program_may_catch_the_want_of_memory(either: Sandbox) -> None:
    code = "try: bytes(2**31)\nexcept MemoryError: print('caught')"
    assert either.run(code) == Execution(Outcome.OK, "caught\n")


# --- stdin


@pytest.mark.parametrize(
    "stdin", ["", "42\n", "no newline", "π\n𝔽\n\0", "a\r\nb\n", "line\n" * 200_000]
)
def test_stdin_is_what_is_given(either: Sandbox, stdin: str) -> None:
    code = "import sys\ndata = sys.stdin.buffer.read().decode()\nprint(len(data), hash(data))"
    either_way = either.run(code, stdin=stdin)
    check = either.run(f"data = {stdin!r}\nprint(len(data), hash(data))")
    assert either_way == check


def test_stdin_is_read_as_scripts_read_it(either: Sandbox) -> None:
    code = "n = int(input())\nprint(sum(int(input()) for _ in range(n)))\ninput()"
    execution = either.run(code, stdin="3\n1\n2\n3\n")
    assert (execution.stdout, execution.error) == ("6\n", "EOFError: EOF when reading a line")
    code = "import sys\nfor line in sys.stdin: print(line.strip() * 2)"
    assert either.run(code, stdin="a\nb").stdout == "aa\nbb\n"


def test_stdin_of_one_is_not_anothers(either: Sandbox) -> None:
    for number in range(4):
        assert either.run("print(input())", stdin=f"{number}").stdout == f"{number}\n"
        assert either.run("input()").error == "EOFError: EOF when reading a line"


# --- display


def test_display_shows_the_last_value(either: Sandbox) -> None:
    for code, shown in {"x = 6\nx * 7": "42\n", "None": "", "x = 1": "", "'a'": "'a'\n"}.items():
        assert either.run(code, display=True) == Execution(Outcome.OK, shown)
        assert either.run(code) == Execution(Outcome.OK, "")
    assert either.run("print(1)\n2", display=True).stdout == "1\n2\n"
    assert either.run("if 1:\n    2", display=True).stdout == ""


# --- what the traceback holds


def test_traceback_has_the_programs_frames_alone(either: Sandbox) -> None:
    code = "import sympy\ndef f():\n    sympy.sympify('1 +')\nf()"
    execution = either.run(code)
    lines = execution.traceback.split("\n")
    assert lines[:5] == [
        "Traceback (most recent call last):",
        '  File "<program>", line 4, in <module>',
        "    f()",
        '  File "<program>", line 3, in f',
        "    sympy.sympify('1 +')",
    ]
    assert lines[5] == execution.error and len(lines) == 6


def test_a_long_traceback_is_cut_in_its_middle(either: Sandbox) -> None:
    lines = "".join(f"def f{n}(): f{n + 1}()  # {'x' * 100}\n" for n in range(200))
    execution = either.run(f"{lines}f0()")
    assert "line 201, in <module>" in execution.traceback and "\n  ...\n" in execution.traceback
    assert execution.traceback.endswith("NameError: name 'f200' is not defined")
    assert len(execution.traceback) < 7000
