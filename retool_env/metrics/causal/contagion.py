"""Contagion: does a false value in a result reach the final answer?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from retool_env.grading import is_equivalent
from retool_env.metrics.causal.continuation import CONTROL, Cells, eligible, shown_value
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
        compared, forks, unjudged = [], 0, 0
        failed = sum(one.status == "failed" for arms in chosen.values() for one in arms[kind])
        for prefix, arms in chosen.items():
            control = [one.answer for one in arms.get(CONTROL, ()) if one.status != "failed"]
            taken: list[float] = []
            usual: list[float] = []
            for one in arms[kind]:
                if one.status == "failed" or not control:
                    continue
                value = implied(one.transcript)
                # A right answer says nothing where the false value leads to it as well.
                if value is None or equal(value, one.transcript.problem.answer):
                    unjudged += 1
                    continue
                taken.append(float(one.answer is not None and equal(one.answer, value)))
                usual.append(sum(a is not None and equal(a, value) for a in control) / len(control))
            if taken:
                forks += len(taken)
                means = sum(taken) / len(taken), sum(usual) / len(usual)
                compared.append(Pair(prefix[0], *means, (len(taken) + len(control)) / 2))
        made = causal(
            f"contagion/{kind}",
            difference(compared),
            "Share of false-value forks whose final answer is the implied answer, minus the share "
            "of control forks with this answer. Forks without an implied answer are left out.",
            count=forks,
            left_out=unjudged,
            failed=failed,
            detectable=detectable(compared),
        )
        yield unless(made, hardly_differ(compared))
