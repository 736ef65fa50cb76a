"""The prelude in a program's process: its traces, and what it reports to the host."""

import contextlib
import dataclasses

import pytest

from retool_env.episode import RunProgram
from retool_env.execution import Fault, Files, Limits
from retool_env.faults import guest
from retool_env.interpreter import Interpreter
from retool_env.sandbox import make_sandbox

SOURCE = open(guest.__file__).read()  # noqa: SIM115
HIDDEN = f"{SOURCE}\nhide('sympy', False)"


def run(sandbox, program, prelude, limits=Limits()):  # noqa: B008
    return sandbox.run(program, limits, files=Files(prelude=prelude))


@pytest.mark.parametrize(
    "program",
    [
        "print(dir(), __name__, sorted(globals()), __builtins__, __import__)",
        "import sys; print(sys.meta_path, sys.path, len(sys.path_hooks))",
        "import sys, gc; print(sys.getrecursionlimit(), gc.isenabled(), sys.gettrace())",
        "a = 1\n\nraise ValueError(a)",
        "import os; print(os.listdir('.'), os.environ)",
        "1 +",
        "import numpy, mpmath, fractions; print(numpy.arange(3), mpmath.pi)",
        "print([m for m in dir(__import__('builtins'))])",
    ],
)
def test_a_program_that_does_not_import_the_package_runs_as_ever(program, sandbox):
    assert run(sandbox, program, HIDDEN) == sandbox.run(program)


def test_an_import_that_is_refused_in_a_session_shows_no_word_of_the_fault(sandbox):
    program = "print(__import__, type(__import__), __import__.__name__, __import__.__doc__)\n"
    program += "print(__import__('math').pi, __import__.__qualname__, callable(__import__))"
    shown = run(sandbox, program, f"{SOURCE}\nhide('sympy', True)")
    assert shown == sandbox.run(program) and "built-in function __import__" in shown.stdout


@pytest.mark.parametrize(
    "attempt",
    [
        "importlib.reload(importlib)",
        "importlib.invalidate_caches()",
        "sys.path.append(sys.path[-1])",
        "sys.path_importer_cache.clear()",
        "[sys.modules.pop(n) for n in list(sys.modules) if n.startswith('importlib')]",
        "print(importlib.util.find_spec('sympy'), 'sympy' in sys.modules)",
        "import sympyy",
        "import pkgutil, numpy, mpmath; importlib.reload(mpmath)",
    ],
)
def test_a_program_does_not_undo_it_by_accident(attempt, sandbox):
    program = "import sys, importlib.util\ntry:\n    {}\nexcept ImportError as e: print(e)\n"
    execution = run(sandbox, program.format(attempt) + "import sympy", HIDDEN)
    assert execution.error == "ModuleNotFoundError: No module named 'sympy'"


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "session"])
@pytest.mark.parametrize(
    ("failing", "prelude"),
    [
        ("sympy.factorint('a')", f"{SOURCE}\ndrop_factors()"),
        ("sympy.factorint()", f"{SOURCE}\ndrop_factors()"),
        ("import nothing_such", f"{SOURCE}\nhide('sympy', True)"),
        ("from math import nothing_such", f"{SOURCE}\nhide('sympy', True)"),
    ],
)
def test_a_traceback_that_the_program_prints_holds_no_frame_of_it(alone, failing, prelude, sandbox):
    setup = "import sympy, traceback"
    program = f"try:\n    {failing}\nexcept Exception:\n    print(traceback.format_exc())"
    if alone:
        program = f"import traceback\n{'import sympy' * ('sympy' in failing)}\n{program}"
        shown, true = run(sandbox, program, prelude), sandbox.run(program)
    else:
        with sandbox.session() as one, sandbox.session() as other:
            one.run(setup)
            other.run(setup)
            shown, true = one.run(program, prelude=prelude), other.run(program)
    assert shown == true and "Traceback" in shown.stdout


def test_an_import_of_the_module_changes_nothing(sandbox):
    assert run(sandbox, "import sympy; print(sympy.factorint(60))", SOURCE).stdout == (
        "{2: 2, 3: 1, 5: 1}\n"
    )


def test_without_the_package_nothing_is_wrong():
    with make_sandbox("nsjail", packages=["numpy"], guests=1) as sandbox:
        execution = run(sandbox, "import sympy", f"{SOURCE}\ndrop_factors()")
    assert execution.error == "ModuleNotFoundError: No module named 'sympy'"


def test_a_prelude_works_without_a_jail():
    with pytest.warns(RuntimeWarning), make_sandbox("unsafe", guests=1) as sandbox:
        execution = run(sandbox, "import sympy", HIDDEN)
        with sandbox.session() as session:
            assert session.run("print(len('abc'))", prelude="import builtins").stdout == "3\n"
            shown = session.run("import sympy", prelude=HIDDEN)
    assert execution.error == shown.error == "ModuleNotFoundError: No module named 'sympy'"


def test_an_error_of_a_prelude_counts_as_the_program_s(sandbox):
    execution = run(sandbox, "print(1)", "1/0")
    assert execution.error == "ZeroDivisionError: division by zero"
    assert execution.traceback == execution.error, "without a frame of the prelude"


def test_a_program_with_a_prelude_also_gets_its_files(sandbox):
    files = Files({"in": b"7"}, ["out"], prelude="import builtins\nbuiltins.seven = 7")
    program = "open('out', 'w').write(str(seven * int(open('in').read())))"
    sandbox.run(program, files=files)
    assert files.fetched == {"out": b"49"}


LIMITS = Limits(wall_seconds=1, memory_mb=256)


@pytest.mark.parametrize(
    ("program", "stdout"),
    [
        ("print(5)\nraise ValueError\nimport sympy", "5\n"),
        ("def f():\n    import sympy\nprint(6)", "6\n"),
        ("if False:\n    import sympy\nprint(7)", "7\n"),
        ("print('sympy')", "sympy\n"),
        ("import sympyx", ""),
    ],
)
@pytest.mark.parametrize("session", [True, False])
def test_a_package_that_nothing_asked_for_was_not_missing(program, stdout, session, sandbox):
    need = RunProgram(program, LIMITS, session, fault="missing_package", problem="p")
    with contextlib.closing(Interpreter(sandbox)) as interpreter:
        shown = interpreter.run(need)
    assert (shown.stdout, shown.fault) == (stdout, Fault("missing_package", False))


def test_a_program_that_was_ended_is_judged_by_its_text(sandbox):
    for end in ("while True: pass", "import os; os._exit(3)", "x = bytearray(1 << 33)"):
        program = f"try:\n    import sympy\nexcept ImportError:\n    pass\n{end}"
        need = RunProgram(program, LIMITS, fault="missing_package", problem="p")
        assert Interpreter(sandbox).run(need).fault == Fault("missing_package", True)
        need = dataclasses.replace(need, program=f"'sympy'\n{end}")
        assert Interpreter(sandbox).run(need).fault == Fault("missing_package", False)


def test_in_a_session_a_later_block_that_meets_the_fault_is_injected(sandbox):
    blocks = {
        "wrong_function": (
            ("from sympy import factorint\ndef f(n): return factorint(n)\nprint(f(12))", None),
            ("print(factorint(12))", True),
            ("print(f(12))", True),  # no word of the function
            ("print(f(7))", False),  # its result is right
            ("print(factorint(7))", False),
            ("print(1)", False),
            ("print(f(8), 1 // 0)", True),
        ),
        "missing_package": (
            ("import sympy, pickle, importlib\nx = sympy.Symbol('x')", None),
            ("import sympy", True),
            ("pickle.dumps(x + 1)", True),
            ("importlib.reload(sympy)", True),
            ("print(x)", False),
            ("nothing", False),  # the model's own error
        ),
    }
    for kind, some in blocks.items():
        with contextlib.closing(Interpreter(sandbox)) as interpreter:
            for program, injected in some:
                fault = None if injected is None else kind
                shown = interpreter.run(RunProgram(program, LIMITS, True, fault=fault, problem="p"))
                assert (shown.fault and shown.fault.injected) == injected, program
