"""The answer to which a false value in a result leads: the measure of contagion."""

from __future__ import annotations

import re

from retool_env.execution import Execution
from retool_env.metrics.causal.contagion import FALSE_VALUES
from retool_env.problems.staged import implied_answer, read_stages
from retool_env.protocol.result import without_notice
from retool_env.transcript import Transcript

# Thousands may be grouped, as in 1,000. A number of a fraction is not a value.
_INTEGER = re.compile(
    r"(?<![\w./])(?<![0-9],)-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?![\w/]|[.,][0-9])"
)
_MOST_DIGITS = 1000


def implied_by_fault(transcript: Transcript) -> str | None:
    """The answer that follows from the false value that the interpreter showed.

    It is the false value itself. On a staged problem, it is the answer that is computed with the
    false value in place of the stage's true value.

    Args:
        transcript: An episode or a fork. Its first false value counts.

    Returns:
        The answer; `None` if it can't be judged: the shown result differs from the true result in
        other ways than in one integer (swapped lines, for example), the true result is not known
        (`wrong_function` in a session, or in a program that depends on chance), a wrong function
        struck again later, or the true integer is not the value of a stage.
    """
    faults = [one for one in _executions(transcript) if one.fault and one.fault.injected]
    wrong = [one for one in faults if one.fault and one.fault.kind == "wrong_function"]
    pair = next(filter(None, map(_false_value, faults)), None)
    if pair is None or len(wrong) > 1:
        return None
    true, false = pair
    stages = read_stages(transcript.problem)
    if not stages:
        return str(false)
    stage = next((stage.name for stage in stages if stage.value == true), None)
    return None if stage is None else implied_answer(transcript.problem, stage, false)


def _executions(transcript: Transcript) -> list[Execution]:
    return [span.execution for span in transcript.response if span.execution is not None]


def _false_value(execution: Execution) -> tuple[int, int] | None:
    """The true and the false integer of a result; `None` if not exactly one integer differs."""
    fault = execution.fault
    if fault is None or fault.kind not in FALSE_VALUES or fault.real is None:
        return None
    true, shown = _integers(fault.real.stdout), _integers(execution.stdout)
    if len(true) != len(shown):
        return None
    differing = [pair for pair in zip(true, shown, strict=True) if pair[0] != pair[1]]
    return differing[0] if len(differing) == 1 else None


def _integers(text: str) -> list[int]:
    found = _INTEGER.findall(without_notice(text))
    return [int(number.replace(",", "")) for number in found if len(number) <= _MOST_DIGITS]
