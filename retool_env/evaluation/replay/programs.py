"""Programs of recorded episodes, run anew in the sandbox.

The programs of an episode run in their order; in a session, in one session, which begins anew where
the recorded session ended. A result is compared with the program's own recorded result:

| record                                   | compared with the new result                        |
|------------------------------------------|-----------------------------------------------------|
| no fault                                 | outcome, output and error                           |
| a fault in place of the result           | the real result, which the record holds             |
| a fault in the process of the program    | the shown result: the fault is made again           |
| a time-out, then and now                 | the outcome: the output so far depends on the time  |
| a failure of the sandbox, then or now    | nothing: `not comparable`                           |
| a result that an arm of a benchmark put  | nothing: `not comparable`                           |

The record holds an output as shown: of a long output, the cut text is compared. A program that
depends on time or chance may differ; this is not an error.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from retool_env.episode import RunProgram
from retool_env.errors import SandboxUnavailable, SettingsError
from retool_env.evaluation.recorded_rules import rules_of_episode
from retool_env.evaluation.runs import Run
from retool_env.execution import Execution, Outcome, Sandbox, check_seconds, check_whole_number
from retool_env.faults.kinds import MADE_IN_GUEST, SESSION_ENDED
from retool_env.interpreter import Interpreter, open_sandbox
from retool_env.protocol.result import cut_text, is_empty_program
from retool_env.rules import Rules
from retool_env.transcript import Call, Transcript

Verdict = Literal["same", "differs", "not comparable"]
"""The result of the comparison of two results of one program."""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""All verdicts."""

PUT_IN_PLACE = ("bare", "mended")
"""The arms that show a result which no program of the call gave; see `rollout.fork.error_arms`."""


def programs(transcript: Transcript) -> list[tuple[int, Call]]:
    """The calls of an episode whose program ran, each with its number from 1.

    Numbers count as in a fork: the result of call `n` is the span `2 * n`. A void turn that did not
    end the episode counts as well. An empty or unreadable call is left out, since nothing ran.

    Args:
        transcript: The episode.
    """
    numbers = [
        number
        for number, span in enumerate(transcript.spans[2::2], 1)
        if span.execution is not None
    ]
    calls = zip(numbers, transcript.calls, strict=True)
    return [(n, c) for n, c in calls if c.form != "unread" and not is_empty_program(c.program)]


@dataclass(frozen=True)
class Replayed:
    """A program that ran anew."""

    number: int
    """The number of the call, from 1; see `programs`."""
    program: str
    """The program."""
    recorded: Execution
    """The program's own recorded result, its output cut as shown."""
    now: Execution | None
    """The new result, whole; `None` if the program could not run here."""
    verdict: Verdict
    """The result of the comparison."""
    reason: str = ""
    """The reason for `not comparable`, or what a reader should know."""
    difference: str = ""
    """A unified diff from the recorded to the new result; empty if they are the same."""


def replay_programs(transcript: Transcript, rules: Rules, sandbox: Sandbox) -> Iterator[Replayed]:
    """Runs the programs of an episode anew, in their order.

    Args:
        transcript: The episode.
        rules: The rules of the episode.
        sandbox: Runs the programs.
    """
    interpreter = Interpreter(sandbox)
    try:
        for number, call in programs(transcript):
            need = RunProgram(call.program, rules.limits, rules.session, rules.display)
            shown, ordered = call.execution, call.execution.fault
            if ordered is not None and ordered.kind in MADE_IN_GUEST:
                need = dataclasses.replace(need, fault=ordered.kind)
            try:
                now = dataclasses.replace(interpreter.run(need), fault=None)
            except SandboxUnavailable as error:
                yield Replayed(number, call.program, shown, None, "not comparable", str(error))
                continue
            yield _compared(transcript, number, call, now, rules)
            if SESSION_ENDED in shown.error and SESSION_ENDED not in now.error:
                interpreter.close()
                interpreter = Interpreter(sandbox)
    finally:
        interpreter.close()


def _compared(
    transcript: Transcript, number: int, call: Call, now: Execution, rules: Rules
) -> Replayed:
    recorded, fault = call.execution, call.execution.fault
    if fault is not None and fault.real is not None and fault.kind not in MADE_IN_GUEST:
        recorded = fault.real
    recorded = dataclasses.replace(recorded, fault=None)
    found = Replayed(number, call.program, recorded, now, "same")
    cut = cut_text(now.stdout, rules.output_characters, rules.output_cut)
    parent = transcript.parent
    if parent is not None and parent.call == number and parent.arm in PUT_IN_PLACE:
        reason = f"the arm {parent.arm} showed another result in place of the program's"
        return dataclasses.replace(found, verdict="not comparable", reason=reason)
    if Outcome.INFRASTRUCTURE in (recorded.outcome, now.outcome):
        when = "now" if now.outcome is Outcome.INFRASTRUCTURE else "in the record"
        reason = f"the sandbox failed {when}: {now.error if when == 'now' else recorded.error}"
        return dataclasses.replace(found, verdict="not comparable", reason=reason)
    if recorded.outcome is now.outcome is Outcome.TIMEOUT:
        return found
    if (recorded.outcome, recorded.stdout, recorded.error) == (now.outcome, cut, now.error):
        reason = "the output is cut in the record" if cut != now.stdout else ""
        return dataclasses.replace(found, reason=reason)
    difference = _difference(recorded, dataclasses.replace(now, stdout=cut))
    return dataclasses.replace(found, verdict="differs", difference=difference)


def _difference(recorded: Execution, now: Execution) -> str:
    texts = (_lines(recorded), _lines(now))
    return "\n".join(difflib.unified_diff(*texts, "recorded", "now", lineterm=""))


def _lines(execution: Execution) -> list[str]:
    """A result as lines: its outcome, its output and its error."""
    output = execution.stdout.splitlines()
    return [f"[{execution.outcome}]", *output, *execution.error.splitlines()]


def run_call(
    run: Run, address: str, call: int, seconds: float, sandbox: str | None = None
) -> Execution:
    """Runs the program of one recorded call again, with another time limit.

    In a session, the earlier programs of the session run first. No fault is made: the result is the
    program's own. The function blocks, and any thread may call it.

    Args:
        run: The run.
        address: The address of the episode.
        call: The number of the call, from 1; see `programs`.
        seconds: The time limit of the program, in seconds.
        sandbox: The name or the URLs of the sandbox; `None`: `nsjail` on this machine.

    Returns:
        The result, its output whole.

    Raises:
        SettingsError: The run has no such episode, the episode has no such call, or a number is
            wrong.
        SandboxUnavailable: The sandbox can't work here.
    """
    check_whole_number("call", call)
    seconds = check_seconds("seconds", seconds, most=MOST_SECONDS)
    place, transcript = run.episode(address, tokens=False)
    rules = rules_of_episode(run, transcript, place.step).rules
    earlier = [(n, c) for n, c in programs(transcript) if n <= call]
    if not earlier or earlier[-1][0] != call:
        known = ", ".join(str(n) for n, _ in programs(transcript)) or "none"
        raise SettingsError(f"{address} has no program of call {call}; its calls are {known}")
    if not rules.session:
        earlier = earlier[-1:]
    ends = [n for n, c in earlier[:-1] if SESSION_ENDED in c.execution.error]
    earlier = [(n, c) for n, c in earlier if not ends or n > ends[-1]]
    limits = dataclasses.replace(rules.limits, wall_seconds=seconds)
    opened = open_sandbox(sandbox or "nsjail", rules)
    assert opened is not None  # an episode with a program has an interpreter
    with opened:
        interpreter = Interpreter(opened)
        try:
            for _, each in earlier:
                need = RunProgram(each.program, limits, rules.session, rules.display)
                execution = interpreter.run(need)
            return execution
        finally:
            interpreter.close()


MOST_SECONDS = 3600.0
"""The longest time limit of `run_call`, in seconds."""
