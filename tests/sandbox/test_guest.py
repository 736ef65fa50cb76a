"""What becomes of a program: its outcome, its output, its error. The same in both sandboxes."""

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
}


@pytest.mark.parametrize(("code", "outcome", "stdout", "error"), ENDINGS.values(), ids=ENDINGS)
def test_ending(sandbox: Sandbox, code: str, outcome: Outcome, stdout: str, error: str) -> None:
    assert sandbox.run(code) == Execution(outcome, stdout, error)


SCRIPTS = {
    "functions calling each other": (
        "import math\ndef f(n): return 1 if n < 1 else g(n)\ndef g(n): return math.prod([n, f(n-1)])"
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
        "import os\nif os.fork() == 0:\n    raise ValueError('the child')\nos.wait()\nprint('fine')",
        "fine\n",
    ),
    "multiprocessing": (
        "import multiprocessing as m\ndef f(x): return x * x\n"
        "with m.Pool(2) as pool:\n    print(pool.map(f, [1, 2, 3]))",
        "[1, 4, 9]\n",
    ),
    "output without a newline": ("print('a', end='')", "a"),
    "closed descriptors": ("import os\nprint(1)\nos.closerange(3, 99)", "1\n"),
    "the packages": (
        "import mpmath, numpy, sympy\nx = sympy.Symbol('x')\n"
        "print(sympy.integrate(x, x), numpy.linalg.det(numpy.eye(2)), mpmath.mpf(2))",
        "x**2/2 1.0 2.0\n",
    ),
}


@pytest.mark.parametrize(("code", "stdout"), SCRIPTS.values(), ids=SCRIPTS)
def test_script_runs_as_python_runs_it(sandbox: Sandbox, code: str, stdout: str) -> None:
    assert sandbox.run(code) == Execution(Outcome.OK, stdout)


def test_lone_surrogate_is_a_syntax_error(sandbox: Sandbox) -> None:
    execution = sandbox.run("print('\ud800')")
    assert execution.outcome is Outcome.SYNTAX_ERROR
    assert "surrogates not allowed" in execution.error


def test_stderr_is_neither_failure_nor_output(sandbox: Sandbox) -> None:
    code = (
        "import sys, warnings\nwarnings.warn('careful')\nsys.stderr.write('x' * 10**6)\n"
        "import logging\nlogging.error('hm')\nprint('kept')"
    )
    assert sandbox.run(code) == Execution(Outcome.OK, "kept\n")


def test_hash_order_is_the_same_each_time(sandbox: Sandbox) -> None:
    code = "print({str(i) for i in range(50)})"
    assert sandbox.run(code) == sandbox.run(code)


def test_no_state_between_programs(sandbox: Sandbox) -> None:
    sandbox.run("x = 1\nimport math\nmath.pi = 3")
    assert sandbox.run("import math\nprint(math.pi > 3.1)\nprint(x)") == Execution(
        Outcome.RUNTIME_ERROR, "True\n", "NameError: name 'x' is not defined"
    )


def test_memory_limit(sandbox: Sandbox) -> None:
    limits = Limits(memory_mb=256)
    expected = "MemoryError: the program needed more than 256 MiB"
    for code in (
        "print('a')\nx = [0] * 10**9",
        "print('a')\nx = []\nwhile True: x.append(bytes(10**6))",
        "print('a')\nimport numpy\nnumpy.ones(10**9)",
    ):
        assert sandbox.run(code, limits) == Execution(Outcome.MEMORY_LIMIT, "a\n", expected)
    assert sandbox.run("x = bytes(10**8)", limits).outcome is Outcome.OK
