"""The values that go into a run and come out of it."""

import dataclasses
import pickle

import pytest

from retool_env.sandbox import Execution, Limits, Outcome, Sandbox, make_sandbox


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Limits.{name} must be positive"):
        Limits(**{name: value})


def test_memory_limit_leaves_room_for_the_interpreter(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="at least 64"):
        Limits(memory_mb=63)
    assert sandbox.run("print(1)", Limits(memory_mb=64)) == Execution(Outcome.OK, "1\n")


def test_duration_is_no_part_of_equality() -> None:
    assert Execution(Outcome.OK, "1", duration=1.0) == Execution(Outcome.OK, "1", duration=2.0)
    assert Execution(Outcome.OK, "1") != Execution(Outcome.OK, "2")


def test_values_survive_pickling() -> None:
    execution = Execution(Outcome.TIMEOUT, "x", "time limit", 1.5)
    assert pickle.loads(pickle.dumps(execution)).duration == 1.5
    assert pickle.loads(pickle.dumps(execution)) == execution


def test_sandboxes_satisfy_the_protocol(sandbox: Sandbox) -> None:
    assert isinstance(sandbox, Sandbox)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'docker'.*nsjail.*unsafe"):
        make_sandbox("docker")
