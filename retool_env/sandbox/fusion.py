"""SandboxFusion's `POST /run_code` as JSON objects, for the server and the remote client.

See https://github.com/bytedance/SandboxFusion for the protocol. Its fields cannot express a whole
`Execution`, so both sides add an object under the key `retool`, which other clients and servers
ignore. In a request it holds `display` and the limits that the protocol lacks; in a response it
holds the outcome, the error and the traceback. With it, an `Execution` arrives unchanged.
"""

import dataclasses
import signal
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from retool_env.execution import Execution, Limits, Outcome
from retool_env.sandbox.record import encode_files

OWN = "retool"
"""The key of the object that the protocol does not define."""

OWN_LIMITS = ("output_bytes", "processes", "tmp_mb")
"""The limits in that object; the other limits are `run_timeout` and `memory_limit_MB`."""

_TRACEBACK = "Traceback (most recent call last):"
_MOST_SECONDS = 1e6  # the longest believable time of a program
_SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")


def request_of(code: str, limits: Limits, stdin: str, display: bool) -> dict[str, Any]:
    """The request that asks for one program.

    Args:
        code: The program's text.
        limits: The program's limits.
        stdin: The text on the program's standard input.
        display: Whether the value of a last expression is shown.
    """
    return {
        "code": code,
        "language": "python",
        "stdin": stdin,
        "run_timeout": limits.wall_seconds,
        "compile_timeout": limits.wall_seconds,
        "memory_limit_MB": limits.memory_mb,
        "files": {},
        "fetch_files": [],
        OWN: {name: getattr(limits, name) for name in OWN_LIMITS} | {"display": display},
    }


def response_of(
    execution: Execution, executor: str, files: Mapping[str, bytes] = MappingProxyType({})
) -> dict[str, Any]:
    """The response that reports an execution.

    | outcome | status | run_result.status | return_code |
    |---|---|---|---|
    | ok | Success | Finished | 0 |
    | timeout | Failed | TimeLimitExceeded | null |
    | infrastructure failure | SandboxError | Error | null |
    | any other | Failed | Finished | 1 |

    `stderr` is the traceback, or else the error; the program's own standard error is not kept.

    Args:
        execution: The result of the program.
        executor: The name of the machine that ran the program.
        files: The program's files that go back: names and contents.
    """
    status, ended, return_code = {
        Outcome.OK: ("Success", "Finished", 0),
        Outcome.TIMEOUT: ("Failed", "TimeLimitExceeded", None),
        Outcome.INFRASTRUCTURE: ("SandboxError", "Error", None),
    }.get(execution.outcome, ("Failed", "Finished", 1))
    return {
        "status": status,
        "message": execution.error if status == "SandboxError" else "",
        "compile_result": None,
        "run_result": {
            "status": ended,
            "execution_time": execution.duration,
            "return_code": return_code,
            "stdout": execution.stdout,
            "stderr": execution.traceback or execution.error,
        },
        "executor_pod_name": executor,
        "files": encode_files(files),
        OWN: {
            "outcome": execution.outcome.value,
            "error": execution.error,
            "traceback": execution.traceback,
        },
    }


def execution_of(response: Mapping[str, Any], limits: Limits) -> Execution:
    """The execution that a response reports.

    A response without the object `retool` comes from another implementation's server. Then
    `SandboxError` and `Error` are infrastructure failures, `TimeLimitExceeded` is a timeout, more
    output than `limits.output_bytes` is an output limit, and return code 0 is ok. Otherwise the
    last line of stderr is the error: a `MemoryError` is a memory limit, a `SyntaxError` without
    Python's traceback heading is a syntax error, and any other error is a runtime error. The
    outcome `blocked` cannot be told.

    Args:
        response: The response's JSON object.
        limits: The program's limits.

    Raises:
        ValueError: The object is not a response of the protocol.
    """
    try:
        run = response["run_result"] or {}
        stdout, duration = _text(run, "stdout"), _seconds(run)
        if OWN in response:
            own = response[OWN]
            outcome = Outcome(own["outcome"])
            if len(stdout) > limits.output_bytes:
                raise ValueError(f"{len(stdout)} characters of output are above the limit")
            error, trace = (_text({name: own[name]}, name) for name in ("error", "traceback"))
            return Execution(outcome, stdout, " ".join(error.splitlines()), trace, duration)
        stderr, return_code = _text(run, "stderr"), run.get("return_code")
        if response["status"] == "SandboxError" or run["status"] == "Error":
            error = _text(response, "message") or stderr or "it does not say why"
            return Execution(Outcome.INFRASTRUCTURE, stdout, _last_line(error))
        execution = _judge(run["status"], return_code, stdout, stderr, limits)
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        shown = f"{error!r:.200}"
        raise ValueError(f"not a response of SandboxFusion's /run_code: {shown}") from error
    return dataclasses.replace(execution, duration=duration)


def _text(record: Mapping[str, Any], name: str) -> str:
    """A text field, which may be null or missing. Lone surrogates are escaped.

    No file can hold a lone surrogate.
    """
    value = record.get(name)
    if not isinstance(value, str | None):
        raise TypeError(f"{name} is {type(value).__name__}, not text")
    return (value or "").encode("utf-8", "backslashreplace").decode()


def _seconds(run: Mapping[str, Any]) -> float:
    value = run.get("execution_time")
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise TypeError(f"execution_time is {type(value).__name__}, not a number")
    seconds = float(value or 0.0)
    if not 0 <= seconds <= _MOST_SECONDS:
        raise ValueError(f"execution_time is {seconds}")
    return seconds


def _judge(
    status: str, return_code: int | None, stdout: str, stderr: str, limits: Limits
) -> Execution:
    written = stdout.encode("utf-8", "surrogatepass")
    if len(written) > limits.output_bytes:
        kept = written[: limits.output_bytes].decode("utf-8", "ignore")
        error = f"output limit: the program wrote more than {limits.output_bytes} bytes"
        return Execution(Outcome.OUTPUT_LIMIT, kept, error)
    if status == "TimeLimitExceeded":
        error = f"time limit: the program ran for more than {limits.wall_seconds:g} s"
        return Execution(Outcome.TIMEOUT, stdout, error)
    if return_code == 0:
        return Execution(Outcome.OK, stdout)
    if not isinstance(return_code, int) or isinstance(return_code, bool):
        raise TypeError(f"status {status!r} with return code {return_code!r}")
    error = _last_line(stderr) or _ending(return_code)
    raised = _TRACEBACK in stderr
    if error.startswith("MemoryError"):
        outcome = Outcome.MEMORY_LIMIT
    elif error.startswith(_SYNTAX_ERRORS) and not raised:
        outcome = Outcome.SYNTAX_ERROR
    else:
        outcome = Outcome.RUNTIME_ERROR
    shown = stderr if raised or outcome is Outcome.SYNTAX_ERROR else ""
    return Execution(outcome, stdout, error, shown)


def _ending(return_code: int) -> str:
    if -return_code in set(signal.Signals):
        return f"ended by {signal.Signals(-return_code).name}"
    return f"exit status {return_code}"


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
