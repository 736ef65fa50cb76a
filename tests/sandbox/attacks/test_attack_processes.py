"""Attacks by many processes, by signals, and by processes that would outlive their program."""

import time
from pathlib import Path

import pytest
from helpers.intruders import CALL, PATIENT, QUICK, descendants, guest_processes, together

from retool_env.sandbox import Limits, NsjailSandbox, Outcome, UnsafeSandbox


def test_fork_bomb(jail: NsjailSandbox) -> None:
    execution = jail.run("import os\nwhile True: os.fork()", QUICK)
    assert execution.outcome is Outcome.RUNTIME_ERROR
    assert "BlockingIOError" in execution.error or "exit status" in execution.error


def test_fork_bomb_that_does_not_give_up(jail: NsjailSandbox) -> None:
    code = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
    assert jail.run(code, Limits(wall_seconds=0.2, processes=8)).outcome is Outcome.TIMEOUT


def test_number_of_processes(jail: NsjailSandbox) -> None:
    code = """
import os, time
made = 0
try:
    while True:
        if not os.fork():
            time.sleep(9)
        made += 1
except BlockingIOError:
    print(made)
"""
    neighbours = together(jail, code, code, limits=Limits(wall_seconds=5, processes=7))
    # Each counts its own alone.
    assert [execution.stdout for execution in neighbours] == ["6\n", "6\n"]


def test_thread_bomb(jail: NsjailSandbox) -> None:
    code = """
import threading, time
made = 0
try:
    while made < 500:
        threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
        made += 1
except RuntimeError:
    print(made)
"""
    assert jail.run(code, Limits(wall_seconds=5, processes=8)).stdout == "7\n"


def test_threads_that_burn(jail: NsjailSandbox) -> None:
    code = """
import threading
def burn():
    while True: pass
for _ in range(6): threading.Thread(target=burn).start()
burn()
"""
    began = time.monotonic()
    assert jail.run(code, QUICK).outcome is Outcome.TIMEOUT
    assert time.monotonic() - began < 15


def test_many_quick_children(jail: NsjailSandbox) -> None:
    """The program itself reaps thousands of children a second; other programs do not wait."""
    busy = """
import os, time
end = time.monotonic() + 1.5
while time.monotonic() < end:
    if not os.fork(): os._exit(0)
    os.wait()
"""
    neighbours = together(jail, busy, busy, "print(6 * 7)")
    assert [execution.outcome for execution in neighbours] == [Outcome.OK] * 3


def test_daemon(jail: NsjailSandbox) -> None:
    """A daemon with its own session and without descriptors still ends with the program."""
    code = """
import os, signal, time
if not os.fork():
    os.setsid()
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    if os.fork(): os._exit(0)
    os.closerange(0, 1000)
    time.sleep(600)
time.sleep(0.1)
print("gone")
"""
    execution = jail.run(code, PATIENT)  # `unharmed` looks for what is left
    assert (execution.outcome, execution.stdout) == (Outcome.OK, "gone\n")


def test_ignoring_every_signal(jail: NsjailSandbox) -> None:
    code = """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True: pass
"""
    execution = jail.run(code, QUICK)
    assert execution.outcome is Outcome.TIMEOUT
    assert execution.duration < 5


def test_sleeping_past_the_limit(jail: NsjailSandbox) -> None:
    execution = jail.run("import time\ntime.sleep(600)", QUICK)
    assert execution.outcome is Outcome.TIMEOUT
    assert execution.duration < 5


def test_stopping_itself(jail: NsjailSandbox) -> None:
    code = """
import os, signal
if not os.fork():
    os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(-1, os.WUNTRACED)
os.kill(os.getpid(), signal.SIGSTOP)
print("a first process cannot be stopped from inside")
"""
    assert jail.run(code, QUICK).outcome is Outcome.OK


@pytest.mark.parametrize("target", ["0", "-1", "1"])
@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP", "SIGTERM"])
def test_signals_to_all_that_it_can_name(jail: NsjailSandbox, target: str, number: str) -> None:
    """Neither the guest nor another program gets the signal, even with the same user."""
    code = f"""
import os, signal, time
time.sleep(0.1)
os.kill({target}, signal.{number})
"""
    quiet = "import time\ntime.sleep(0.5)\nprint('undisturbed')"
    neighbour, _ = together(jail, quiet, code)
    assert (neighbour.outcome, neighbour.stdout) == (Outcome.OK, "undisturbed\n")


def test_only_its_own_processes_exist(jail: NsjailSandbox) -> None:
    code = """
import os
found = []
for pid in range(1, 40000):
    try:
        os.kill(pid, 0)
        found.append(pid)
    except PermissionError:
        found.append(-pid)
    except ProcessLookupError:
        pass
print(found, os.getpid(), os.getppid())
"""
    assert jail.run(code, PATIENT).stdout == "[1] 1 0\n"


def test_priority_of_others(jail: NsjailSandbox) -> None:
    code = """
import os
for kind in (os.PRIO_PGRP, os.PRIO_USER, os.PRIO_PROCESS):
    os.setpriority(kind, 0, 19)
print(os.getpgid(0), os.getsid(0))
"""
    execution = jail.run(code, QUICK)
    assert (execution.outcome, execution.stdout) == (Outcome.OK, "1 1\n")


def test_signal_without_a_name() -> None:
    """Without a jail, a program can end itself by any signal."""
    with pytest.warns(RuntimeWarning), UnsafeSandbox(guests=1) as sandbox:
        execution = sandbox.run("import os\nos.kill(os.getpid(), 40)", QUICK)
    assert (execution.outcome, execution.error) == (Outcome.RUNTIME_ERROR, "ended by signal 40")


def test_first_thread_ends_alone(jail: NsjailSandbox) -> None:
    """The process is then a zombie with a living thread; it still ends."""
    code = """
import threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
call(60, 93, 0)
"""
    assert jail.run(CALL + code, QUICK).outcome is Outcome.TIMEOUT


def test_another_interpreter(jail: NsjailSandbox) -> None:
    """`exec` keeps every limit; LD_PRELOAD and similar variables affect only the program."""
    child = (
        "import ctypes, os\nmode = ctypes.CDLL(None).prctl(39, 0, 0, 0, 0)\n"
        "print(mode, os.getpid(), flush=True)\nwhile True: pass"
    )
    code = f"""
import os, sys
os.environ["LD_PRELOAD"] = "/tmp/none.so"
os.execv(sys.executable, [sys.executable, "-c", {child!r}])
"""
    execution = jail.run(code, QUICK)
    assert (execution.outcome, execution.stdout) == (Outcome.TIMEOUT, "1 1\n")


def test_preload_does_not_last(jail: NsjailSandbox) -> None:
    code = "import os\nos.environ['LD_PRELOAD'] = '/tmp/x.so'\nos.putenv('PYTHONPATH', '/tmp')"
    assert jail.run(code, QUICK).outcome is Outcome.OK
    code = "import os\nprint([n for n in os.environ if n.startswith(('LD', 'PYTHONPATH'))])"
    assert jail.run(code, QUICK).stdout == "[]\n"


def test_changed_modules_do_not_last(jail: NsjailSandbox) -> None:
    """Objects, code, C memory and the import system change only in a copy that ends."""
    code = """
import builtins, ctypes, math, numpy, os, sympy, sys
builtins.print = lambda *_: None
sympy.factorint = numpy.dot = math.sqrt = lambda *_: "poisoned"
sympy.Integer.__add__ = lambda *_: 0
sys.modules["fractions"] = None
sys.meta_path.clear()
ctypes.memset(id(257) + 16, 1, 1)
ctypes.c_long.from_address(id(7) + 24).value = 8
os.environ.clear()
"""
    jail.run(code, QUICK)
    code = """
import fractions, math, numpy, os, sympy
print(sympy.factorint(360), numpy.dot([1, 2], [3, 4]), math.sqrt(16), 3 + 4, sympy.Integer(2) + 3)
print(fractions.Fraction(1, 3), os.environ["HOME"])
"""
    assert jail.run(code, PATIENT).stdout == "{2: 3, 3: 2, 5: 1} 11 4.0 7 5\n1/3 /tmp\n"


BOMBS = {
    "processes": "while True:\n    try: os.fork()\n    except OSError: pass",
    "processes that nobody waits for": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    "while True:\n    try:\n        if os.fork() == 0:\n            sum(range(10**6))\n"
    "            os._exit(0)\n    except OSError: pass",
    "processes that burn": "for _ in range(60):\n    if os.fork() == 0:\n        while True: pass\n"
    "while True: pass",
    "threads that burn": "def burn():\n    while True: sum(range(1000))\n"
    "for _ in range(60): threading.Thread(target=burn).start()\nburn()",
    "sessions of their own": "for _ in range(6):\n    if os.fork() == 0:\n        os.setsid()\n"
    "        if os.fork(): os._exit(0)\n        while True: pass\nwhile True: pass",
}


@pytest.mark.some(4)
@pytest.mark.parametrize("in_session", [False, True], ids=["program", "block"])
@pytest.mark.parametrize("code", BOMBS.values(), ids=BOMBS)
def test_keeping_itself_waiting_earns_no_time(
    jail: NsjailSandbox, code: str, in_session: bool
) -> None:
    """The program waits for its own processes. Waiting for other programs could earn 20 s."""
    limits = Limits(wall_seconds=1, memory_mb=512, processes=64)
    code = f"import os, signal, threading\n{code}"
    began = time.monotonic()
    if in_session:
        with jail.session(limits) as session:
            session.run("x = 1")
            execution = session.run(code)
    else:
        execution = jail.run(code, limits)
    assert execution.outcome is Outcome.TIMEOUT
    assert time.monotonic() - began < 10


def test_memory_runs_out_for_programs_first(jail: NsjailSandbox) -> None:
    with jail.session(PATIENT) as session:
        session.run("import os\nif os.fork() == 0:\n    import time\n    time.sleep(60)")
        pids = [session.pid, *descendants(session.pid), *guest_processes(jail)]
        shares = {int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in pids}
    assert len(pids) == 4 and shares == {1000}
    assert int(Path("/proc/self/oom_score_adj").read_text()) < 1000
