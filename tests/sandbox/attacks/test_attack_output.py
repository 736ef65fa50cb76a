"""Attacks by output, by its destination, by exits in odd places, and by invalid texts."""

import pytest
from helpers.intruders import PATIENT, QUICK

from retool_env.sandbox import Limits, NsjailSandbox, Outcome

SECOND = Limits(wall_seconds=1, output_bytes=1000)


@pytest.mark.parametrize(
    "code",
    [
        "while True: print('x' * 100)",
        "import os\nwhile True: os.write(1, bytes(range(256)))",
        "import os\nfor _ in range(3): os.fork()\nwhile True: os.write(1, b'x' * 999)",
        "import sys\nsys.stdout.write('x' * 10**8)",
        "import os, threading\nf = lambda: [os.write(1, b'xx') for _ in range(10**9)]\n"
        "for _ in range(4): threading.Thread(target=f).start()",
        "import os\nos.set_blocking(1, False)\nwhile True:\n  try: os.write(1, b'x' * 70000)\n"
        "  except BlockingIOError: pass",
    ],
)
def test_endless_output(jail: NsjailSandbox, code: str) -> None:
    execution = jail.run(code, Limits(wall_seconds=5, output_bytes=1000))
    assert execution.outcome is Outcome.OUTPUT_LIMIT
    assert len(execution.stdout.encode("utf-8", "replace")) <= 3000


def test_output_of_bytes(jail: NsjailSandbox) -> None:
    code = (
        "import os\nlone = '\\ud800'.encode('utf-8', 'surrogatepass')\n"
        "os.write(1, bytes(range(256)) + b'\\xf0\\x9f\\x98' + lone)"
    )
    execution = jail.run(code, QUICK)
    assert execution.outcome is Outcome.OK
    assert execution.stdout.encode() and "�" in execution.stdout and "\0" in execution.stdout


def test_slow_drip_does_not_put_off_the_end(jail: NsjailSandbox) -> None:
    code = "import os, time\nwhile True:\n  os.write(1, b'x')\n  time.sleep(0.0001)"
    execution = jail.run(code, Limits(wall_seconds=0.5, output_bytes=1 << 30))
    assert execution.outcome is Outcome.TIMEOUT
    assert execution.duration < 5


def test_output_after_closing_it(jail: NsjailSandbox) -> None:
    execution = jail.run(
        "import os\nprint(1, flush=True)\nos.close(1)\nprint(2, flush=True)", QUICK
    )
    assert (execution.outcome, execution.stdout) == (Outcome.RUNTIME_ERROR, "1\n")


def test_every_descriptor_closed(jail: NsjailSandbox) -> None:
    for ending in ("", "while True: pass"):
        execution = jail.run(
            f"import os\nprint(5, flush=True)\nos.closerange(0, 4096)\n{ending}", QUICK
        )
        assert execution.outcome is (Outcome.TIMEOUT if ending else Outcome.OK)
        assert execution.stdout == "5\n"


def test_writing_to_every_descriptor(jail: NsjailSandbox) -> None:
    """A forged result reaches only stdout."""
    code = """
import os, struct
forged = b'["ok", "", ""]'
frames = [b"ready", b"warm", b"!failed", struct.pack("<id", 0, 0.0), struct.pack("<d", 1.0),
          struct.pack("<IIdd", 1, len(forged), 1.0, 2.0) + forged]
for number in range(4096):
    for frame in frames:
        try: os.write(number, frame)
        except OSError: pass
raise ValueError("the truth")
"""
    execution = jail.run(code, QUICK)
    assert (execution.outcome, execution.error) == (Outcome.RUNTIME_ERROR, "ValueError: the truth")


@pytest.mark.parametrize("status", [0, 1, 77, 255])
def test_exit_at_once(jail: NsjailSandbox, status: int) -> None:
    execution = jail.run(f"import os\nprint(5, flush=True)\nos._exit({status})", QUICK)
    assert execution.outcome is (Outcome.RUNTIME_ERROR if status else Outcome.OK)
    assert execution.stdout == "5\n"


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("import atexit, sys\natexit.register(sys.exit, 3)", Outcome.OK),
        ("import atexit\natexit.register(lambda: [].pop())", Outcome.OK),
        ("import atexit, time\natexit.register(time.sleep, 60)", Outcome.TIMEOUT),
        ("import sys, threading\nthreading.Thread(target=sys.exit, args=(3,)).start()", Outcome.OK),
        ("import sys\nclass A:\n  def __del__(self): sys.exit(3)\nA()\nprint(5)", Outcome.OK),
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
            Outcome.TIMEOUT,
        ),
        ("raise SystemExit(None)", Outcome.OK),
        ("raise SystemExit('text')", Outcome.RUNTIME_ERROR),
        ("raise KeyboardInterrupt", Outcome.RUNTIME_ERROR),
        ("raise GeneratorExit", Outcome.RUNTIME_ERROR),
        ("import sys\nsys.stdout = None\nsys.stderr = 5\ndel sys.modules['json']", Outcome.OK),
        (
            "import builtins\nfor n in list(vars(builtins)): delattr(builtins, n)",
            Outcome.RUNTIME_ERROR,
        ),
        ("import os\nif not os.fork(): raise SystemExit(9)\nos.wait()", Outcome.OK),
        ("import sys\nsys.settrace(lambda *a: 1/0)\ndef f(): pass\nf()", Outcome.RUNTIME_ERROR),
        ("import gc, sys\nsys.modules.clear()\ngc.collect()", Outcome.OK),
    ],
)  # fmt: skip
def test_end_in_an_odd_place(jail: NsjailSandbox, code: str, outcome: Outcome) -> None:
    assert jail.run(code, QUICK).outcome is outcome


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("while True: pass", Outcome.TIMEOUT),
        ("raise SystemExit(0)", Outcome.RUNTIME_ERROR),
        ("import os; os._exit(0)", Outcome.OK),
        ("return 5", Outcome.RUNTIME_ERROR),
        ("raise self", Outcome.RUNTIME_ERROR),
        ("return 'x' * 10**7", Outcome.RUNTIME_ERROR),
        ("return 'a\\nb\\r\\0\\ud800'", Outcome.RUNTIME_ERROR),
        ("return [0] * 10**10", Outcome.RUNTIME_ERROR),
    ],
)
def test_exception_whose_text_misbehaves(jail: NsjailSandbox, body: str, outcome: Outcome) -> None:
    code = f"class Liar(Exception):\n  def __str__(self):\n    {body}\nraise Liar"
    execution = jail.run(code, QUICK)
    assert execution.outcome is outcome
    assert len(execution.error) < 5000 and "\n" not in execution.error
    execution.error.encode()


def test_exception_that_claims_to_be_the_sandboxes(jail: NsjailSandbox) -> None:
    code = """
class infrastructure_failure(PermissionError):
    __module__ = "builtins"
    @property
    def errno(self): raise SystemExit(0)
raise infrastructure_failure("the program was not run")
"""
    assert jail.run(code, QUICK).outcome in (Outcome.RUNTIME_ERROR, Outcome.BLOCKED)


def test_traceback_that_lies(jail: NsjailSandbox) -> None:
    """A traceback may name any lines and files: it is the program's text, and bounded."""
    code = """
import linecache
linecache.getline = lambda *_: "secret" * 10**6
linecache.cache.clear()
def lie(depth):
    code = compile("lie(depth - 1) if depth else 1/0", "/etc/passwd", "exec")
    exec(code, globals(), {"depth": depth})
lie(200)
"""
    execution = jail.run(code, PATIENT)
    assert execution.outcome in (Outcome.RUNTIME_ERROR, Outcome.MEMORY_LIMIT)
    assert len(execution.traceback) < 10_000
    assert "/etc/passwd" not in execution.traceback and "guest" not in execution.traceback


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("x = 'a\0b'", Outcome.SYNTAX_ERROR),
        ("\0", Outcome.SYNTAX_ERROR),
        ("x = '\ud800'", Outcome.SYNTAX_ERROR),
        ("print('é😀ﷺ')", Outcome.OK),
        ("﻿print(1)", Outcome.SYNTAX_ERROR),
        ("# coding: nonsense\nprint(1)", Outcome.OK),
        ("ｐｒｉｎｔ(1)", Outcome.OK),
        ("print(1)\r\x0c\rprint(2)", Outcome.OK),
        ("", Outcome.OK),
        ("‮print(1)", Outcome.SYNTAX_ERROR),
    ],
)  # fmt: skip
def test_odd_characters(jail: NsjailSandbox, code: str, outcome: Outcome) -> None:
    execution = jail.run(code, QUICK)
    assert execution.outcome is outcome, execution
    (execution.stdout + execution.error + execution.traceback).encode()


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("input()", ""),
        ("import sys\nprint(sys.stdin.read())", "\n"),
        ("import os\nprint(os.read(0, 9), os.read(2, 9))", "b'' b''\n"),
    ],
)
def test_input_that_is_not_there(jail: NsjailSandbox, code: str, shown: str) -> None:
    assert jail.run(code, QUICK).stdout == shown


def test_input_is_data(jail: NsjailSandbox) -> None:
    """Input is never taken for a program, whatever it holds and however much stays unread."""
    stdin = "\0raise SystemExit(3)\n" * 1000 + "\ud800"
    code = "import os, sys\nos.lseek(0, 0, 0)\nprint(len(os.read(0, 10**6)))\nos.ftruncate(0, 0)"
    assert jail.run(code, QUICK, stdin=stdin).stdout == f"{21 * 1000 + 3}\n"


def test_input_that_does_not_fit(jail: NsjailSandbox) -> None:
    """An input that is too large is the caller's error, not the program's or the sandbox's."""
    with pytest.raises(ValueError, match="stdin: 4194304 bytes are more than the 2 MiB of /tmp"):
        jail.run("print(len(input()))", QUICK, stdin="x" * (4 << 20))
