"""Each kind of fault: which calls it applies to, and what it shows, compared with real failures."""

import asyncio
import dataclasses
import itertools
import re
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.episode import RunProgram
from retool_env.execution import Execution, Fault, Limits, Outcome
from retool_env.faults import KINDS, kinds
from retool_env.interpreter import Interpreter
from retool_env.protocol.result import cut_output, render_output
from retool_env.sandbox import make_sandbox

LIMITS = Limits(wall_seconds=1, memory_mb=256)
OK = Execution(Outcome.OK, "the sum is 1234\n")
FAILED = Execution(Outcome.RUNTIME_ERROR, "1\n", "NameError: name 'x'", "Traceback ...")
UNCOMPILED = Execution(Outcome.SYNTAX_ERROR, "", "SyntaxError: invalid syntax (line 1)")
LOST = Execution(Outcome.INFRASTRUCTURE, "", "its guest is gone")
BEFORE = Execution(Outcome.OK, "an earlier result\n")
GUEST_PROGRAMS = {
    "missing_package": "import sympy\nprint(sympy.factorint(60))",
    "wrong_function": "from sympy import factorint\nprint(factorint(60))",
}


def call(kind, session=False, program="print(1234)", before=BEFORE):
    program = GUEST_PROGRAMS.get(kind, program)
    return RunProgram(program, LIMITS, session, fault=kind, problem="p", before=before)


@pytest.fixture(scope="module")
def without_sympy():
    with make_sandbox("nsjail", packages=["numpy"], guests=1) as made:
        yield made


# --- texts equal to those of real failures -------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "program", "session"),
    [
        ("timeout", "while True: pass", False),
        ("always_timeout", "while True: pass", True),
        ("memory", "x = bytearray(1 << 33)", False),
        ("memory", "x = bytearray(1 << 33)", True),
        ("session_ended", "import os; os._exit(1)", True),
    ],
)
def test_an_injected_fault_shows_the_text_of_the_real_failure(kind, program, session, sandbox):
    def later():
        """Whether a name that the session held before is still known."""
        return interpreter.run(RunProgram("print(kept)", LIMITS, session)).outcome

    seen = []
    for need in (RunProgram(program, LIMITS, session), call(kind, session)):
        interpreter = Interpreter(sandbox)
        interpreter.run(RunProgram("kept = 1", LIMITS, session))
        execution = interpreter.run(need)
        seen.append((dataclasses.replace(execution, fault=None), later()))
        interpreter.close()
    assert execution.fault == Fault(kind, True, Execution(Outcome.OK, "1234\n"))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("waiting", [True, False], ids=["run", "run_async"])
@pytest.mark.parametrize(
    "program",
    [
        "import sympy",
        "x = 1\nfrom sympy.ntheory import factorint as f\nprint(f(12))",
        "import numpy, sympy.core as c",
        "import importlib\nprint(0)\nimportlib.import_module('sympy')",
        "m = __import__('sympy.core')",
        "try:\n    import sympy\nexcept ImportError as error:\n    print(repr(error), error.name)",
        "import traceback\ntry:\n    import sympy\nexcept ImportError:\n"
        "    print(traceback.format_exc())",
        "def f():\n    import sympy\n    return sympy\nf()",
        "exec('import sympy')",
        "import importlib.util\nprint(importlib.util.find_spec('sympy') is None)",
        "import importlib\nfor n in ('numpy', 'sympy'):\n    importlib.import_module(n)",
        "from importlib import import_module as im\nim('sympy')",
        "import builtins\nf = builtins.__import__\nf('sympy')",
        "m = 'sympy'\nexec(f'import {m}')",
        "import pydoc\nprint(pydoc.locate('sympy.factorint') is None)",
        "import pkgutil\npkgutil.resolve_name('sympy:factorint')",
    ],
)
def test_a_missing_package_is_missing_as_in_a_guest_without_it(
    program, waiting, sandbox, without_sympy
):
    need = RunProgram(program, LIMITS, fault="missing_package", problem="p")
    interpreter = Interpreter(sandbox)
    shown = interpreter.run(need) if waiting else asyncio.run(interpreter.run_async(need))
    assert shown.fault == Fault("missing_package", True)
    assert dataclasses.replace(shown, fault=None) == without_sympy.run(program, LIMITS)
    assert sandbox.run(program, LIMITS).outcome is Outcome.OK, "the next program has it again"


def test_in_a_session_bound_names_stay_and_new_imports_are_refused(sandbox):
    limits = Limits(wall_seconds=30)

    def need(program, kind=None):
        return RunProgram(program, limits, session=True, fault=kind, problem="p")

    interpreter = Interpreter(sandbox)
    interpreter.run(need("import sympy\nfrom sympy import solve, symbols, lambdify, sin"))
    missing = "missing_package"
    refused = interpreter.run(need("from sympy import integrate", missing))
    assert refused.error == "ModuleNotFoundError: No module named 'sympy'"
    assert refused.traceback.count("\n") == 3, "no frame of the sandbox"
    # Functions of sympy that import its modules when they are called.
    program = "x = symbols('x')\nprint(solve(x**2 - 4, x), lambdify(x, sin(x), 'sympy')(0))"
    own = interpreter.run(need(program, missing))
    assert (own.stdout, own.fault) == ("[-2, 2] 0\n", Fault(missing, False))
    again = interpreter.run(need("import math, sympy", missing))
    assert again.error == refused.error and again.fault == Fault(missing, True)
    # The session keeps the fault, also for an import that is not seen in the program.
    unseen = "try:\n    __import__('sym' + 'py')\nexcept ImportError:\n    print('none')"
    assert interpreter.run(need(unseen, missing)).stdout == "none\n"
    interpreter.close()


def test_in_a_session_an_earlier_function_meets_the_missing_package_as_well(sandbox):
    missing = "missing_package"
    interpreter = Interpreter(sandbox)
    for program, kind, injected in (
        ("def f():\n    import sympy\n    return sympy.pi", None, None),
        ("print(f())", missing, False),  # nothing is hidden yet
        ("import sympy", missing, True),
        ("print(f())", missing, True),
        ("print(1)", missing, False),
    ):
        shown = interpreter.run(RunProgram(program, LIMITS, True, fault=kind, problem="p"))
        assert (shown.fault and shown.fault.injected) == injected
        assert (shown.outcome is not Outcome.OK) == bool(injected)
    interpreter.close()


@pytest.mark.parametrize("session", [True, False])
def test_the_wrong_function_drops_a_factor_and_the_others_stay_right(session, sandbox):
    interpreter = Interpreter(sandbox)
    bound = "from sympy import *\nimport sympy, inspect\nf = factorint\nbefore = str(f)\n"
    program = "print(factorint(60), sympy.factorint(9), f(7), factorint(12, multiple=True))\n"
    program += "print(totient(60), divisors(12), primefactors(60), before == str(f))\n"
    program += "print(inspect.signature(f).parameters['limit'], inspect.getsource(f)[:13])\n"
    if session:
        assert interpreter.run(RunProgram(bound, LIMITS, session)).outcome is Outcome.OK
        program += "print(f(8))"
    else:
        program = bound + program + "print(f(8))"
    for _ in range(2):  # in a session, the fault is made twice in one process
        need = RunProgram(program, LIMITS, session, fault="wrong_function", problem="p")
        shown = interpreter.run(need)
        assert shown.stdout.splitlines() == [
            "{2: 2, 3: 1} {3: 1} {7: 1} [2, 2]",
            "16 [1, 2, 3, 4, 6, 12] [2, 3, 5] True",
            "limit=None def factorint",
            "{2: 2}",
        ]
        assert shown.fault.injected
        if session:
            assert shown.fault.real is None  # a block can't run twice
        else:
            assert shown.fault.real.stdout.startswith("{2: 2, 3: 1, 5: 1} {3: 2} {7: 1} [2, 2, 3]")
    interpreter.close()
    assert sandbox.run("import sympy\nprint(sympy.factorint(60))").stdout == "{2: 2, 3: 1, 5: 1}\n"


@pytest.mark.parametrize(
    ("program", "injected", "known"),
    [
        ("print(factorint(60))", True, True),
        ("print(factorint(7), 'prime')", False, False),
        ("factorint(60)\nprint('unused')", False, False),
        ("import time\nprint(time.time_ns(), factorint(60))", True, False),  # it depends on chance
        ("print(max(factorint(10)), 1 // 0)", False, False),  # it fails in the same way
        ("print(1 // (len(factorint(6)) - 1))", True, True),  # it fails by the fault alone
    ],
)
def test_the_wrong_function_is_recorded_as_injected_where_it_changed_the_result(
    program, injected, known, sandbox
):
    need = RunProgram(
        f"from sympy import factorint\n{program}", LIMITS, fault="wrong_function", problem="p"
    )
    interpreter = Interpreter(sandbox)
    for shown in (interpreter.run(need), asyncio.run(_awaited(interpreter, need))):
        assert (shown.fault.injected, shown.fault.real is not None) == (injected, known)
        assert kinds.begins(need, shown)  # from its first use
    if known:
        true = interpreter.run(dataclasses.replace(need, fault=None))
        assert shown.fault.real.stdout == true.stdout != shown.stdout
    interpreter.close()


async def _awaited(interpreter, need):
    return await interpreter.run_async(need)


def test_a_sandbox_that_fails_without_the_fault_leaves_the_true_result_unknown():
    need = RunProgram(GUEST_PROGRAMS["wrong_function"], LIMITS, fault="wrong_function")
    shown = Execution(Outcome.OK, "{2: 2, 3: 1}\n")
    assert kinds.wants_true(need, shown, [])
    assert kinds.show(need, shown, [LOST]).fault == Fault("wrong_function", True)
    assert not kinds.wants_true(need, LOST, [])
    assert not kinds.wants_true(dataclasses.replace(need, session=True), shown, [])


# --- eligibility and texts ----------------------------------------------------------------------

ELIGIBLE = {  # the kinds for each true result; those made in the guest are tested below
    OK: {*KINDS} - {"session_ended", *kinds.MADE_IN_GUEST},
    FAILED: {
        *("timeout", "memory", "always_timeout", "try_again", "busy", "gone"),
        *("blank_line", "warning", "slow"),
    },
    UNCOMPILED: {"try_again", "busy", "gone", "blank_line", "slow"},
    LOST: set(),
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in kinds.MADE_IN_GUEST])
@pytest.mark.parametrize("true", ELIGIBLE, ids=lambda true: str(true.outcome))
@pytest.mark.parametrize("session", [True, False], ids=["session", "alone"])
def test_a_call_that_is_not_eligible_shows_the_true_result(kind, true, session):
    eligible = ELIGIBLE[true] | ({"session_ended"} if session and true in (OK, FAILED) else set())
    shown = kinds.show(call(kind, session), true)
    if kind in eligible:
        assert shown.fault == Fault(kind, True, true)
        failed = KINDS[kind].sort == "explicit" or true.outcome is not Outcome.OK
        assert (shown.outcome is not Outcome.OK) == failed
        if kind != "slow":
            assert render_output(shown, 400) != render_output(true, 400), "the model sees it"
    else:
        assert shown == dataclasses.replace(true, fault=Fault(kind, False))
    ended = kind in eligible and kind in ("timeout", "always_timeout", "session_ended")
    assert kinds.ends_session(call(kind, session), shown) == (session and ended)


@pytest.mark.parametrize(
    ("kind", "stdout", "shown"),
    [
        ("cut", "1234567", None),
        ("cut", "12345678\n", "1234"),
        ("always_cut", "x" * 1000, "x" * 100),
        ("cut", "", None),
        ("empty", "1\n", ""),
        ("empty", " \n", None),
        ("stale", "1\n", BEFORE.stdout),
        ("stale", BEFORE.stdout, None),
        ("wrong_value", "no number\n", None),
        ("wrong_value", "", None),
        ("blank_line", "1\n", "1\n\n"),
        ("blank_line", "1", "1\n\n"),
        ("blank_line", "", "\n"),
        ("slow", "1\n", "1\n"),
    ],
)
def test_what_a_change_of_the_output_shows(kind, stdout, shown):
    true = Execution(Outcome.OK, stdout)
    found = kinds.show(call(kind), true)
    assert found.stdout == (stdout if shown is None else shown)
    assert found.fault.injected == (shown is not None)


@pytest.mark.parametrize(
    "before", [None, FAILED, Execution(Outcome.OK, "")], ids=["first", "failed", "empty"]
)
def test_a_stale_output_needs_an_earlier_output(before):
    assert not kinds.show(call("stale", before=before), OK).fault.injected


def test_invented_texts_are_not_the_sandbox_s_and_never_change():
    assert [kind for kind in KINDS if KINDS[kind].invented] == [
        "try_again",
        "busy",
        "gone",
        "warning",
    ]
    texts = {kind: kinds.show(call(kind), OK).error for kind in ("try_again", "busy", "gone")}
    assert texts == {
        "try_again": "the interpreter could not run the program: try again",
        "busy": "the interpreter is busy: try again later",
        "gone": "the interpreter is gone: it can't be used any longer in this conversation",
    }
    assert kinds.show(call("warning"), OK).stdout == (
        "<program>:1: DeprecationWarning: this version of Python is supported until 2028\n"
        "the sum is 1234\n"
    )


def test_a_wrong_value_depends_on_the_output_and_the_problem_only():
    def wrong(problem, program="print(1)"):
        need = dataclasses.replace(call("wrong_value", program=program), problem=problem)
        return kinds.show(need, OK).stdout

    assert wrong("p") == wrong("p", "a = 1\nprint(a)") != OK.stdout
    assert len({wrong(str(i)) for i in range(20)}) > 5


@pytest.mark.parametrize(
    ("program", "missing", "wrong"),
    [
        ("import sympy", True, False),
        ("import sympyx", False, False),
        ("from sympyx import sympy", False, False),
        ("from . import sympy", False, False),
        ("import numpy as np, sympy as s\ns.factorint(6)", True, True),
        ("from sympy import factorint as f\nprint(list(map(f, [6])))", True, True),
        ("from sympy import factorint", True, False),
        ("def factorint(n): return n\nfactorint(6)", False, False),
        ("importlib.import_module(name='sympy.core')", True, False),
        ("importlib.import_module(name)  # sympy", False, False),
        ("'sympy'", False, False),
        ("import sympy\n(", False, False),
        ("import sympy\n" + "(" * 10_000, False, False),
        ("import sympy\nx = " + "-" * 100_000 + "1", False, False),
        ("import sympy\n'\\d'", True, False),
        ("import sympy\x00", False, False),
        ("exec('import sympy\\nprint(1)')", True, False),
        ("code = '\\n  import sympy'\nexec(code)", True, False),
        ("eval('__import__(\"sympy\")')", True, False),
        ("print('import sympy')", False, False),
        ("n = 'sympy'\nm = importlib.import_module(n)", True, False),
        ("for n in ['numpy', 'sympy.core']: __import__(n)", True, False),
        ("importlib.import_module('numpy')  # not 'sympy'\nprint('sympy')", False, False),
        ("importlib.util.find_spec('sympy')", True, False),
        ("factorint = lambda n: n\nfactorint(6)", False, False),
        ("import sympy\ndef factorint(n): return sympy.factorint(n)\nfactorint(6)", True, True),
        ("from sympy import factorint\nfactorint = cache(factorint)", True, True),
        ("import sympy\nf = sympy.factorint", True, True),
        ("import sympy\ngetattr(sympy, 'factorint')(6)", True, True),
        ("factorint(6)", False, True),  # bound in an earlier block
    ],
    ids=range(30),
)
def test_programs_are_read_for_what_the_guest_can_refuse(program, missing, wrong):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind, expected in (("missing_package", missing), ("wrong_function", wrong)):
            need = RunProgram(program, LIMITS, fault=kind)
            block = dataclasses.replace(need, session=True)
            assert bool(kinds.prelude(block)) == expected
            # A process that can't say whether the fault took place: the text decides.
            assert kinds.show(need, OK).fault == Fault(kind, expected)
            assert not kinds.show(need, UNCOMPILED).fault.injected


@settings(max_examples=50)
@given(st.text(max_size=200), st.sampled_from(["cut", "empty", "wrong_value", "blank_line"]))
def test_an_injected_change_always_changes_the_output(stdout, kind):
    true = Execution(Outcome.OK, stdout)
    shown = kinds.show(call(kind), true)
    assert shown.fault.injected == (shown.stdout != stdout)
    assert shown.fault.real == (true if shown.fault.injected else None)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in kinds.MADE_IN_GUEST])
def test_a_model_always_learns_that_its_session_has_ended(kind, sandbox, monkeypatch):
    monkeypatch.setattr(kinds, "SLOW_SECONDS", 0.01)
    interpreter = Interpreter(sandbox)
    need = call(kind, session=True, program="import os; os._exit(3)")
    shown = interpreter.run(need)
    assert shown.error.endswith("the session was ended by that, its variables are lost")
    hiding = ("memory", "try_again", "busy", "gone")
    assert shown.fault.injected == (kind not in hiding and KINDS[kind].sort != "silent")
    interpreter.close()


NUMBERS = "".join(f"{n}\n" for n in range(1000, 1400))


@pytest.mark.parametrize("kind", sorted(kinds._SHOWN))
@pytest.mark.parametrize("cut", ["head", "tail", "middle"])
def test_a_fault_that_the_model_does_not_see_is_not_injected(kind, cut):
    # These kinds change only the number in the notice of a cut, if they change a hidden part.
    counted = kind in ("wrong_value", "blank_line", "warning")
    notice = re.compile(r"[0-9]+ characters cut" if counted else r"$^")
    outputs = [NUMBERS, "7\n" + "x" * 900, "x" * 900 + "7", "5\n", "5"]
    for limit, stdout, number in itertools.product([400, 30], outputs, range(10)):
        true = Execution(Outcome.OK, stdout)
        for before in (stdout, stdout.strip()):
            last = cut_output(Execution(Outcome.OK, before), limit, cut)
            view = (limit, cut, "traceback")
            need = dataclasses.replace(call(kind, before=last), view=view, problem=f"{number}")
            shown = kinds.show(need, true)
            injected = shown.fault.injected
            seen = notice.sub("", need.seen(shown, recorded=injected and kind == "stale"))
            assert injected == (seen != notice.sub("", need.seen(true)))


def test_a_wrong_value_changes_the_last_number_that_the_model_sees():
    for number in range(20):
        need = dataclasses.replace(
            call("wrong_value"), view=(403, "tail", "traceback"), problem=f"{number}"
        )
        shown = kinds.show(need, Execution(Outcome.OK, NUMBERS))
        lines = need.seen(shown).split("\n")[:80]
        assert shown.fault.injected and lines != NUMBERS.split("\n")[:80]


# --- the true result ----------------------------------------------------------------------------


@pytest.mark.parametrize("session", [True, False], ids=["session", "alone"])
def test_the_true_result_is_that_of_the_program_without_the_fault(session, sandbox, monkeypatch):
    monkeypatch.setattr(kinds, "SLOW_SECONDS", 0.01)
    program = "print(1234, 'is a sum')\nprint(5)"
    true = sandbox.run(program)
    for kind in KINDS:
        interpreter = Interpreter(sandbox)
        need = RunProgram(program, LIMITS, session, fault=kind, problem="p", before=BEFORE)
        shown = interpreter.run(need)
        if shown.fault.injected:
            assert shown.fault.real == true
        else:
            assert dataclasses.replace(shown, fault=None) == true
        interpreter.close()


def test_the_slow_kind_waits(sandbox, monkeypatch):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr("retool_env.interpreter.time.sleep", waited.append)
    monkeypatch.setattr("retool_env.interpreter.asyncio.sleep", sleep)
    for kind in ("slow", "busy"):
        interpreter = Interpreter(sandbox)
        one = interpreter.run(call(kind))
        assert one == asyncio.run(interpreter.run_async(call(kind)))
    assert waited == [1.0, 1.0, 0.0, 0.0]
