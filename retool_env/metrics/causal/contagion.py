"""Contagion: does a false value in a result reach the final answer?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from retool_env.grading import is_equivalent
from retool_env.metrics.causal.continuation import (
    CONTROL,
    Cells,
    Continuation,
    eligible,
    failures,
    mean_value,
    shown_value,
)
from retool_env.metrics.causal.figure import CausalFigure, causal, unless
from retool_env.metrics.causal.intervals import Pair, detectable, difference, hardly_differ
from retool_env.transcript import Transcript

FALSE_VALUES = ("wrong_value", "wrong_function")
"""The kinds that show a false value."""


def contagion_figures(
    cells: Cells,
    implied: Callable[[Transcript], str | None] = shown_value,
    equal: Callable[[str, str], bool] = is_equivalent,
) -> Iterator[CausalFigure]:
    """The contagion of each kind that shows a false value.

    Args:
        cells: The continuations by prefix and arm, with the arm `"control"`.
        implied: The answer that follows from the false value of a fork; `None`: the fork is not
            judged. The default is the shown value itself.
        equal: Whether a final answer (first argument) equals an implied one (second argument).
    """
    for kind in FALSE_VALUES:
        chosen = eligible(cells, kind)
        if not chosen:
            continue
        compared, forks, unjudged = _judged(chosen, kind, implied, equal)
        failed = failures(chosen, kind, CONTROL)
        bounds = {}
        for name, values in (("lowest", (0.0, 1.0)), ("highest", (1.0, 0.0))) if failed else ():
            bounds[name] = difference(_judged(chosen, kind, implied, equal, values)[0]).mean
        made = causal(
            f"contagion/{kind}",
            difference(compared),
            "Share of false-value forks whose final answer is the implied answer, minus the share "
            "of control forks with this answer. Forks without an implied answer are left out.",
            count=forks,
            left_out=unjudged,
            failed=failed,
            **bounds,
            detectable=detectable(compared),
        )
        yield unless(made, hardly_differ(compared))


def _judged(
    chosen: Cells,
    kind: str,
    implied: Callable[[Transcript], str | None],
    equal: Callable[[str, str], bool],
    failed: tuple[float, float] | None = None,
) -> tuple[list[Pair], int, int]:
    """The prefixes whose forks can be judged, the number of their forks, and of all other forks.

    Args:
        chosen: The prefixes with the fault.
        kind: The kind of the fault.
        implied: See `contagion_figures`.
        equal: See `contagion_figures`.
        failed: The value of an infrastructure failure in the arm of the fault and in the control
            arm; `None`: failures are left out.
    """
    compared, forks, unjudged = [], 0, 0
    for prefix, arms in chosen.items():
        taken: list[float] = []
        usual: list[float] = []
        for one in arms[kind]:
            value = implied(one.transcript)
            # A right answer says nothing where the false value leads to it as well.
            if value is None or equal(value, one.transcript.problem.answer):
                unjudged += one.status != "failed"
                continue

            def gives(other: Continuation, value: str = value) -> float:
                return other.answer is not None and equal(other.answer, value)

            own = mean_value([one], gives, failed[0] if failed else None)
            control = mean_value(arms.get(CONTROL, ()), gives, failed[1] if failed else None)
            if own and control:
                taken.append(own[0])
                usual.append(control[0])
        if taken:
            forks += len(taken)
            means = sum(taken) / len(taken), sum(usual) / len(usual)
            others = sum(one.status != "failed" or failed is not None for one in arms[CONTROL])
            compared.append(Pair(prefix[0], *means, (len(taken) + others) / 2))
    return compared, forks, unjudged
