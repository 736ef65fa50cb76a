"""The choice of a guest for a program, and the spare processes for the next program."""

import time

from retool_env.sandbox import Execution, Limits, Outcome
from retool_env.sandbox.local import PooledSandbox


def test_a_program_that_names_no_package_has_none_loaded_and_can_have_it(
    either: PooledSandbox,
) -> None:
    loaded = "import sys\nprint('sym' + 'py' in sys.modules, 'num' + 'py' in sys.modules)"
    assert either.run(loaded).stdout == "False False\n"
    for _ in range(100):  # until its guest has loaded them
        if (stdout := either.run(f"# sympy\n{loaded}").stdout) == "True True\n":
            break
        time.sleep(0.1)
    assert stdout == "True True\n"
    code = "print(__import__('sym' + 'py').Rational(1, 3))"
    assert either.run(code, Limits(wall_seconds=20)) == Execution(Outcome.OK, "1/3\n")


def test_processes_of_each_kind_are_kept_ready(either: PooledSandbox) -> None:
    def ready() -> list[tuple[str, ...]]:
        return sorted(job.guest.packages for job in either.pool.spares)

    each = 2 * either.number_of_guests
    expected = [()] * each + [either.packages] * each
    for code in ["print(1)", "# numpy"] * 2 * each:
        either.run(code)
    assert ready() == expected
    for _ in range(2 * each):
        either.run("print(1)", Limits(wall_seconds=3))
    assert ready() == expected  # stale ones of the same kind made room
    assert {job.limits.wall_seconds for job in either.pool.spares if not job.guest.packages} == {3}
