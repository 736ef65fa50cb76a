"""The arguments and the result of a run."""

import asyncio
import dataclasses
import math
import pickle
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from helpers.tree import descriptors

from retool_env import execution
from retool_env.sandbox import (
    Execution,
    Limits,
    Outcome,
    RemoteSandbox,
    Sandbox,
    Session,
    make_sandbox,
)

NAMES = [field.name for field in dataclasses.fields(Limits)]
COUNTS = [name for name in NAMES if name != "wall_seconds"]
NO_NUMBERS = [
    None,
    True,
    "1",
    b"1",
    [],
    {},
    1j,
    Decimal(1),
    np.bool_(True),
    float("nan"),
    -math.inf,
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, -1, math.inf, 10**400, 1e300, *NO_NUMBERS], ids=repr)
def test_what_is_no_limit_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^Limits.{name} must be a (whole )?number.*, not "):
        Limits(**{name: value})


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0.5, 1.0, 1e3, Fraction(3, 2), np.float64(2)], ids=repr)
def test_what_is_counted_is_whole(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^Limits.{name} must be a whole number from 1 to "):
        Limits(**{name: value})


def test_numbers_of_other_libraries_become_pythons_own() -> None:
    """Python's own numbers can be sent to another machine as JSON."""
    limits = Limits(**{name: np.int64(3) for name in NAMES})
    assert limits == Limits(3.0, 3, 3, 3, 3)
    kinds = {name: type(value) for name, value in vars(limits).items()}
    assert kinds == {"wall_seconds": float, **dict.fromkeys(COUNTS, int)}
    for value in (np.float32(0.5), Fraction(1, 2), 0.5):
        assert type(Limits(value).wall_seconds) is float and Limits(value) == Limits(0.5)


def test_a_limit_says_what_it_may_be() -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1e\\+06, not 1000001"):
        Limits(wall_seconds=1_000_001)
    with pytest.raises(ValueError, match="from 1 to 4294967296, not 4294967297"):
        Limits(memory_mb=(1 << 32) + 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_highest_limits_hold_together(either: Sandbox, name: str) -> None:
    """Counts of bytes, milliseconds or nanoseconds of processor time do not overflow."""
    highest = Limits(**{name: execution._MOST[name]})
    assert either.run("print(1)", highest) == Execution(Outcome.OK, "1\n")
    assert asyncio.run(either.run_async("print(1)", highest)) == Execution(Outcome.OK, "1\n")
    with either.session(highest) as session:
        assert session.run("print(1)") == Execution(Outcome.OK, "1\n")


def test_little_memory_is_beyond_that_of_the_interpreter(either: Sandbox) -> None:
    assert either.run("print(1)", Limits(memory_mb=16)) == Execution(Outcome.OK, "1\n")


def test_duration_is_no_part_of_equality() -> None:
    assert Execution(Outcome.OK, "1", duration=1.0) == Execution(Outcome.OK, "1", duration=2.0)
    assert Execution(Outcome.OK, "1") != Execution(Outcome.OK, "2")
    assert Execution(Outcome.OK, "", "", "a") != Execution(Outcome.OK, "", "", "b")


def test_values_survive_pickling() -> None:
    execution = Execution(Outcome.TIMEOUT, "x", "time limit", "Traceback ...", 1.5)
    assert pickle.loads(pickle.dumps(execution)).duration == 1.5
    assert pickle.loads(pickle.dumps(execution)) == execution


def test_sandboxes_and_sessions_satisfy_the_protocols(either: Sandbox) -> None:
    assert isinstance(either, Sandbox)
    with either.session() as session:
        assert isinstance(session, Session)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'docker'.*nsjail.*unsafe"):
        make_sandbox("docker")


def test_urls_are_a_remote_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOOL_SANDBOX_TOKEN", "secret")
    remote = make_sandbox("http://a:1,https://b/run_code", attempts=2)
    assert isinstance(remote, RemoteSandbox)
    assert remote.urls == ("http://a:1", "https://b")
    given = RemoteSandbox(["http://a:1", "https://b"], "secret", attempts=2)
    assert pickle.dumps(remote) == pickle.dumps(given)
    given = RemoteSandbox(["http://a:1"], "other")
    assert pickle.dumps(make_sandbox("http://a:1", token="other")) == pickle.dumps(given)


# --- what a sandbox is asked


WRONG = {
    "limits": (["foo", None, {"wall_seconds": 1}, 5], TypeError, "limits must be a Limits"),
    "code": ([None, b"print(1)", 3, ["print(1)"]], TypeError, "code must be a str, not "),
    "stdin": ([None, b"in", 3], TypeError, "stdin must be a str, not "),
    "display": ([1, None, "yes"], TypeError, "display must be True or False"),
}
CASES = [(name, value, *rest) for name, (values, *rest) in WRONG.items() for value in values]


def calls(sandbox: Sandbox, name: str, value: object) -> list:
    """Every way to ask a sandbox for a program with such an argument.

    Args:
        sandbox: The sandbox.
        name: The name of the argument.
        value: The argument's value.
    """

    def asked() -> tuple[str, dict]:
        others = {"code": "print(1)", name: value}
        return others.pop("code"), others

    def run() -> None:
        code, others = asked()
        sandbox.run(code, **others)

    def run_async() -> None:
        code, others = asked()
        asyncio.run(sandbox.run_async(code, **others))

    def block() -> None:
        code, others = asked()
        with sandbox.session(**others) as session:
            session.run(code)

    def block_async() -> None:
        code, others = asked()
        with sandbox.session(**others) as session:
            asyncio.run(session.run_async(code))

    remote = isinstance(sandbox, RemoteSandbox)
    return [run, run_async, *([] if name == "stdin" or remote else [block, block_async])]


@pytest.mark.parametrize(("name", "value", "kind", "message"), CASES)
def test_wrong_arguments_are_refused_by_name(
    either: Sandbox, name: str, value: object, kind: type, message: str
) -> None:
    with RemoteSandbox(["http://localhost:1"]) as remote:
        for call in (*calls(either, name, value), *calls(remote, name, value)):
            with pytest.raises(kind, match=message):
                call()
    assert either.pool.slots.free == either.concurrency


@pytest.mark.some(1)
def test_refusals_hold_no_descriptor_and_no_place(either: Sandbox) -> None:
    either.run("1")
    before = descriptors()
    for _ in range(200):
        for call in calls(either, "limits", "foo") + calls(either, "stdin", "x" * (17 << 20)):
            with pytest.raises((TypeError, ValueError)):
                call()
    assert descriptors() <= before
    assert either.pool.slots.free == either.concurrency


def test_standard_input_has_room_in_tmp_or_is_refused(either: Sandbox) -> None:
    limits = Limits(tmp_mb=1)
    code = "import sys\nprint(len(sys.stdin.buffer.read()))"
    full = either.run(code, limits, stdin="x" * (1 << 20))
    assert full == Execution(Outcome.OK, f"{1 << 20}\n")
    for text in ("x" * ((1 << 20) + 1), "π" * ((1 << 19) + 1), "\ud800" * (1 << 19)):
        with pytest.raises(ValueError, match=r"stdin: \d+ bytes .*1 MiB.*Limits.tmp_mb"):
            either.run(code, limits, stdin=text)
    half = "x" * (1 << 19)
    given = execution.Files({"f": half.encode()})
    assert either.run(code, limits, stdin=half, files=given).stdout == f"{1 << 19}\n"
    with pytest.raises(ValueError, match="stdin and files: 1048577 bytes"):
        either.run(code, limits, stdin=half + "x", files=given)


def test_what_no_program_is_is_the_models_own_error(either: Sandbox) -> None:
    """A model can write a text with a NUL, or with half of a surrogate pair."""
    for code in ("print(1)\0", "\0", "print('\ud800')"):
        assert either.run(code).outcome is Outcome.SYNTAX_ERROR
        with either.session() as session:
            assert session.run(code).outcome is Outcome.SYNTAX_ERROR


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"concurrency": "4"}, "concurrency must be a whole number"),
        ({"concurrency": 1.5}, "concurrency must be a whole number"),
        ({"guests": True}, "guests must be a whole number"),
        ({"packages": "numpy"}, "packages must be a list of names"),
        ({"packages": [3]}, "packages must be a list of names"),
        ({"packages": 3}, "packages must be a list of names"),
        ({"python": 3}, "python must be a path"),
        ({"binary": ["nsjail"]}, "binary must be a path"),
    ],
)
def test_wrong_settings_of_a_sandbox_are_refused_by_name(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sandbox(**setting)
