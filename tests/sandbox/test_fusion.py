"""SandboxFusion's messages: our messages arrive, and messages of other implementations are read."""

import json

import pytest

from retool_env.sandbox import Execution, Limits, Outcome
from retool_env.sandbox.fusion import execution_of, request_of, response_of

TRACEBACK = 'Traceback (most recent call last):\n  File "<code>", line 1\nValueError: ü'
EXECUTIONS = [
    Execution(Outcome.OK, "42\n", duration=0.1 + 0.2),
    Execution(Outcome.SYNTAX_ERROR, "", "SyntaxError: invalid syntax", "x x\n  ^", 0.0),
    Execution(Outcome.RUNTIME_ERROR, "half\x00éü", "ValueError: ü", TRACEBACK, 1.5),
    Execution(Outcome.TIMEOUT, "a\n", "time limit: the program ran for more than 5 s", "", 5.0),
    Execution(Outcome.MEMORY_LIMIT, "", "MemoryError: ...", TRACEBACK, 0.2),
    Execution(Outcome.OUTPUT_LIMIT, "x" * 100, "output limit: ..."),
    Execution(Outcome.BLOCKED, "", "PermissionError (the sandbox does not allow it)", TRACEBACK),
    Execution(Outcome.INFRASTRUCTURE, "", "cannot start"),
]


def test_every_outcome_is_among_them() -> None:
    assert {execution.outcome for execution in EXECUTIONS} == set(Outcome)


@pytest.mark.parametrize("execution", EXECUTIONS, ids=lambda e: e.outcome)
def test_an_execution_arrives_as_it_was_sent(execution: Execution) -> None:
    arrived = execution_of(json.loads(json.dumps(response_of(execution, "pod"))), Limits())
    assert arrived == execution
    assert arrived.duration == execution.duration  # left out of comparisons


@pytest.mark.parametrize(
    ("outcome", "status", "run_status", "return_code"),
    [
        (Outcome.OK, "Success", "Finished", 0),
        (Outcome.SYNTAX_ERROR, "Failed", "Finished", 1),
        (Outcome.RUNTIME_ERROR, "Failed", "Finished", 1),
        (Outcome.TIMEOUT, "Failed", "TimeLimitExceeded", None),
        (Outcome.MEMORY_LIMIT, "Failed", "Finished", 1),
        (Outcome.OUTPUT_LIMIT, "Failed", "Finished", 1),
        (Outcome.BLOCKED, "Failed", "Finished", 1),
        (Outcome.INFRASTRUCTURE, "SandboxError", "Error", None),
    ],
)
def test_what_other_clients_read(outcome, status, run_status, return_code) -> None:
    response = response_of(Execution(outcome, "out", "error", duration=0.5), "pod")
    assert response["status"] == status
    assert response["message"] == ("error" if status == "SandboxError" else "")
    assert response["compile_result"] is None and response["files"] == {}
    assert response["executor_pod_name"] == "pod"
    assert response["run_result"] == {
        "status": run_status,
        "execution_time": 0.5,
        "return_code": return_code,
        "stdout": "out",
        "stderr": "error",
    }


def test_stderr_is_the_traceback_where_there_is_one() -> None:
    execution = Execution(Outcome.RUNTIME_ERROR, "", "ValueError: 1", "Traceback ...")
    assert response_of(execution, "")["run_result"]["stderr"] == "Traceback ..."


def test_a_request_names_every_limit() -> None:
    limits = Limits(wall_seconds=1.5, memory_mb=77, output_bytes=11, processes=2, tmp_mb=3)
    request = request_of("print(1)", limits, "in", True)
    assert request["code"] == "print(1)" and request["language"] == "python"
    assert request["stdin"] == "in"
    assert request["run_timeout"] == 1.5 and request["memory_limit_MB"] == 77
    assert request["files"] == {} and request["fetch_files"] == []
    assert request["retool"] == {
        "output_bytes": 11,
        "processes": 2,
        "tmp_mb": 3,
        "display": True,
    }


def foreign(status="Success", message="", /, **run) -> dict:
    """A response of another implementation's server.

    Args:
        status: The status of the response.
        message: The message of the response.
        **run: The fields of `run_result`.
    """
    return {"status": status, "message": message, "compile_result": None, "run_result": run}


RAISED = 'Traceback (most recent call last):\n  File "/tmp/x.py", line 1, in <module>\n'
NO_SYNTAX = '  File "/tmp/x.py", line 1\n    x x\n      ^\nSyntaxError: invalid syntax\n'
LIMITS = Limits(wall_seconds=2, output_bytes=10)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (
            foreign(status="Finished", return_code=0, stdout="7", stderr="warning"),
            Execution(Outcome.OK, "7"),
        ),
        (
            foreign("Failed", status="Finished", return_code=1, stdout="a", stderr=NO_SYNTAX),
            Execution(Outcome.SYNTAX_ERROR, "a", "SyntaxError: invalid syntax", NO_SYNTAX),
        ),
        (
            foreign("Failed", status="Finished", return_code=1, stderr=RAISED + "KeyError: 1\n"),
            Execution(Outcome.RUNTIME_ERROR, "", "KeyError: 1", RAISED + "KeyError: 1\n"),
        ),
        (  # raised by exec() while it ran: the program itself did compile
            foreign("Failed", status="Finished", return_code=1, stderr=RAISED + NO_SYNTAX),
            Execution(Outcome.RUNTIME_ERROR, "", "SyntaxError: invalid syntax", RAISED + NO_SYNTAX),
        ),
        (
            foreign("Failed", status="Finished", return_code=1, stderr=RAISED + "MemoryError\n"),
            Execution(Outcome.MEMORY_LIMIT, "", "MemoryError", RAISED + "MemoryError\n"),
        ),
        (
            foreign("Failed", status="Finished", return_code=3, stdout=None, stderr=""),
            Execution(Outcome.RUNTIME_ERROR, "", "exit status 3"),
        ),
        (
            foreign("Failed", status="Finished", return_code=-11, stderr=None),
            Execution(Outcome.RUNTIME_ERROR, "", "ended by SIGSEGV"),
        ),
        (
            foreign("Failed", status="TimeLimitExceeded", return_code=None, stdout="a"),
            Execution(Outcome.TIMEOUT, "a", "time limit: the program ran for more than 2 s"),
        ),
        (
            foreign(status="Finished", return_code=0, stdout="ééééé!"),
            Execution(
                Outcome.OUTPUT_LIMIT, "ééééé", "output limit: the program wrote more than 10 bytes"
            ),
        ),
        (
            foreign("SandboxError", "no disk", status="Finished", return_code=0),
            Execution(Outcome.INFRASTRUCTURE, "", "no disk"),
        ),
        (
            foreign("Failed", status="Error", stderr="boom\n"),
            Execution(Outcome.INFRASTRUCTURE, "", "boom"),
        ),
        (
            {"status": "SandboxError", "message": "", "run_result": None},
            Execution(Outcome.INFRASTRUCTURE, "", "it does not say why"),
        ),
    ],
)
def test_what_other_servers_say(response: dict, expected: Execution) -> None:
    assert execution_of(response, LIMITS) == expected


def test_the_duration_of_another_server() -> None:
    response = foreign(status="Finished", return_code=0, execution_time=0.25)
    assert execution_of(response, LIMITS).duration == 0.25


@pytest.mark.parametrize(
    "response",
    [
        {},
        [],
        "pong",
        None,
        {"detail": "no"},
        foreign("Success", status="Finished", return_code=None),
        {"status": "Success", "run_result": None},
        response_of(EXECUTIONS[0], "")
        | {"retool": {"outcome": "new", "error": "", "traceback": ""}},
        response_of(EXECUTIONS[0], "") | {"retool": {"outcome": "ok"}},
        response_of(EXECUTIONS[0], "") | {"retool": None},
    ],
)
def test_what_is_no_response_is_a_value_error(response) -> None:
    with pytest.raises(ValueError):
        execution_of(response, LIMITS)
