"""The values that go into a run and come out of it."""

import dataclasses
import pickle

import pytest

from retool_env.sandbox import (
    Execution,
    Limits,
    Outcome,
    RemoteSandbox,
    Sandbox,
    Session,
    make_sandbox,
)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Limits.{name} must be positive"):
        Limits(**{name: value})


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
    assert (remote._token, remote._attempts) == ("secret", 2)
    assert make_sandbox("http://a:1", token="other")._token == "other"
