"""Immortal objects: the memory that they save, and their unchanged behaviour."""

import subprocess
import sys
import textwrap

HEAD = """
import ctypes, gc, os, sys
from retool_env.sandbox.guest.immortal import immortalize

class Thing:
    def __init__(self):
        self.name = "a name that is not interned " + str(len(sys.argv))
        self.parts = [(1000.5, 10**40), {"key": b"value" * 3}]

    def use(self):
        return self.name.upper() + str(self.parts) + "a constant of the code, never interned!"

thing = Thing()
expected = thing.use()
"""


def alone(code: str) -> str:
    """The output of a fresh process that runs `code` after `THINGS`."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_counts_of_all_that_can_be_reached_stay_as_they_are() -> None:
    stdout = alone("""
        immortalize()
        code = Thing.use.__code__
        objects = [thing, Thing, Thing.use, code, code.co_consts, code.co_consts[-1],
                   code.co_names, thing.name, thing.parts, thing.parts[0], thing.parts[0][0],
                   thing.parts[0][1], thing.parts[1]["key"], sys]
        before = [ctypes.string_at(id(each), 8) for each in objects]
        more = objects * 5
        assert thing.use() == expected
        print({sys.getrefcount(each) for each in objects} == {sys.getrefcount(None)})
        print([ctypes.string_at(id(each), 8) for each in objects] == before)
    """)
    assert stdout == "True\nTrue\n"


def test_new_objects_are_counted_and_freed() -> None:
    stdout = alone("""
        import weakref
        immortalize()
        new = Thing()
        gone = weakref.ref(new)
        print(sys.getrefcount(new), gone() is new)
        del new
        print(gone())
    """)
    assert stdout == "2 True\nNone\n"


def test_a_second_time_finds_what_is_new() -> None:
    stdout = alone("""
        first = immortalize()
        things = [Thing() for _ in range(1000)]
        second = immortalize()
        print(first > 5000, 1000 < second < 20_000, thing.use() == expected)
    """)
    assert stdout == "True True True\n"


def test_the_collector_and_the_end_of_the_interpreter_bear_it() -> None:
    stdout = alone("""
        immortalize()
        gc.collect()
        cycle = []
        cycle.append(cycle)
        del cycle
        print(gc.collect() >= 1, thing.use() == expected)
    """)
    assert stdout == "True True\n"


def test_a_copy_that_uses_objects_has_few_pages_of_its_own() -> None:
    """The comparison is a copy of the same process with ordinary objects."""
    code = """
        many = [(str(number), float(number)) for number in range(200_000)]
        if {immortal}:
            immortalize()
        gc.freeze()
        def written():
            lines = list(open("/proc/self/smaps_rollup"))
            (line,) = [line for line in lines if line.startswith("Private_Dirty")]
            return int(line.split()[1])
        if os.fork() == 0:
            before = written()
            for pair in many:
                pair
            print(written() - before)
            sys.stdout.flush()
            os._exit(0)
        os.wait()
    """
    counted, uncounted = (int(alone(code.format(immortal=it))) for it in (False, True))
    assert counted > 10_000 and uncounted < 1000  # kilobytes
