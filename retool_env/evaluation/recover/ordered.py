"""Whether the recorded results of an episode follow from the faults that were ordered for it.

The schedule of an arm orders a fault for some calls. The record holds the fault of each call, with
the result that was shown and the program's own result. So a record can be compared with the
schedule, and each shown result with the result that the fault makes of the program's own result.
"""

from __future__ import annotations

from retool_env.episode import RunProgram
from retool_env.errors import SettingsError
from retool_env.evaluation.replay.programs import programs
from retool_env.execution import Execution, Outcome
from retool_env.faults import KINDS
from retool_env.faults.kinds import MADE_IN_GUEST, begins, prelude, show
from retool_env.faults.schedule import Schedule
from retool_env.need import next_block
from retool_env.protocol.result import cut_text
from retool_env.rollout.fork import error_arms
from retool_env.rules import Rules
from retool_env.transcript import Transcript


def strange_call(transcript: Transcript, rules: Rules, schedule: Schedule | None) -> int:
    """The number of the first call whose record does not follow from the schedule, from 1.

    Args:
        transcript: The episode.
        rules: The rules of the episode; their faults do not count.
        schedule: The faults of the episode; `None`: no faults.

    Returns:
        The number; 0 if all calls follow.
    """
    lasting = None
    ran = {number for number, _ in programs(transcript)}
    for number, span in enumerate(transcript.spans[2::2], 1):
        shown = span.execution
        if shown is None:
            continue
        kind = None
        if number in ran:
            kind = lasting or (schedule and schedule.ordered(number))
        if (shown.fault and shown.fault.kind) != kind:
            return number
        if kind is None:
            continue
        if kind not in KINDS:
            return number
        call = faulty_call(transcript, number, kind, rules)
        if not follows(call, shown):
            return number
        if begins(call, shown):
            lasting = kind
    return 0


def shows_arm(fork: Transcript, parent: Transcript) -> bool:
    """Whether a fork at an error of the model's own shows the result of its arm.

    Args:
        fork: The fork, an arm of `retool_env.rollout.fork.error_arms`.
        parent: The parent of the fork.
    """
    assert fork.parent is not None
    call, name = fork.parent.call, fork.parent.arm
    try:
        arm = next(one for one in error_arms(parent, call, fork.parent.sample) if one.arm == name)
    except (SettingsError, StopIteration):
        return False
    at = 2 * call
    if arm.dropped or len(fork.spans) <= at:  # ended by a budget
        return True
    return fork.spans[at].execution == (arm.result or parent.spans[at].execution)


def faulty_call(transcript: Transcript, number: int, kind: str, rules: Rules) -> RunProgram:
    """A recorded call with a fault, as the episode asked for it.

    Args:
        transcript: The episode.
        number: The number of the call, from 1.
        kind: The kind of the fault.
        rules: The rules of the episode.
    """
    earlier = [span.execution for span in transcript.spans[2 * number - 2 : 0 : -2]]
    return RunProgram(
        transcript.turns[number - 1].content,
        rules.limits,
        rules.session,
        rules.display,
        fault=kind,
        problem=transcript.problem.id,
        block=next_block(transcript.spans[: 2 * number]),
        before=next((one for one in earlier if one is not None), None),
        view=(rules.output_characters, rules.output_cut, rules.errors),
    )


def follows(call: RunProgram, shown: Execution) -> bool:
    """Whether a shown result is the result of its fault, as far as the record tells.

    A true result that is longer than the output of the rules is cut in the record, so its fault
    can't be applied anew. The process of the program makes some kinds: only a program that runs
    again shows their results.

    Args:
        call: The call, with its fault.
        shown: The recorded result, with a record of the same kind of fault.
    """
    fault = shown.fault
    assert fault is not None
    if shown.outcome is Outcome.INFRASTRUCTURE:
        return not fault.injected
    if call.fault in MADE_IN_GUEST:
        changed = fault.real is None or call.seen(fault.real, True) != call.seen(shown, True)
        return not fault.injected or (changed and (call.session or bool(prelude(call))))
    true = fault.real if fault.injected else shown
    if true is None:
        return False
    return len(true.stdout) > call.view[0] or is_result(call, shown, show(call, true))


def is_result(call: RunProgram, shown: Execution, expected: Execution) -> bool:
    """Whether a recorded result, its output cut, is this result.

    Args:
        call: The call.
        shown: The recorded result.
        expected: The result, its output whole.
    """
    limit, where, _ = call.view
    again = expected.fault is not None and expected.fault.kind == "stale"  # it is cut already
    stdout = expected.stdout if again else cut_text(expected.stdout, limit, where)
    struck = shown.fault is not None and shown.fault.injected
    return (shown.outcome, shown.stdout, shown.error, struck) == (
        expected.outcome,
        stdout,
        expected.error,
        expected.fault is not None and expected.fault.injected,
    )
