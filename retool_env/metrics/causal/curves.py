"""Outcome curves: the state of the continuations of an arm by the number of further calls.

Each continuation has one state after `c` further calls: right, wrong answer, gave up, cut, or going
on. So the shares of one `c` sum to 100 %. Nothing is censored.
"""

from __future__ import annotations

from collections.abc import Iterator

from retool_env.metrics.causal.continuation import STATUSES, Cells, Continuation, Status, Value
from retool_env.metrics.causal.figure import CausalFigure, arm_share


def outcome_curve(cells: Cells, arm: str, most: int = 8) -> Iterator[CausalFigure]:
    """The shares of all states after 0, 1, 2, … further calls.

    Args:
        cells: The continuations by prefix and arm.
        arm: The arm.
        most: The largest number of calls of the curve. The curve ends earlier if all continuations
            have ended.
    """
    rows = [one for arms in cells.values() for one in arms.get(arm, ()) if one.status != "failed"]
    longest = max((one.calls for one in rows), default=-1)
    for calls in range(min(most, longest) + 1):
        for status in STATUSES:
            if status != "failed":
                yield arm_share(
                    f"outcome/{arm}/{calls}/{status}",
                    cells,
                    arm,
                    _is(status, calls),
                    f"Share of continuations that are '{status}' after {calls} further calls.",
                )


def _is(status: Status, calls: int) -> Value:
    def value(one: Continuation) -> float:
        return one.status_after(calls) == status

    return value
