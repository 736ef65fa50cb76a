"""The effects of faults: accuracy with and without a fault, on the same prefixes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from retool_env.faults import KINDS
from retool_env.metrics.causal.continuation import (
    CONTROL,
    Cells,
    Continuation,
    arms_of,
    eligible,
    pairs,
)
from retool_env.metrics.causal.figure import (
    CausalFigure,
    arm_difference,
    arm_ratio,
    arm_share,
    more_of,
)
from retool_env.metrics.causal.intervals import difference

TEXT_PLACEBOS = ("blank_line", "warning")
"""The placebos that change the text of a result, and nothing of its meaning."""
WITHOUT_TOOL = ("always_timeout", "gone")
"""The persistent kinds after which no call can succeed."""
EQUIVALENT_WITHIN = 0.05
"""The bound of the equivalence test of the placebos."""

_PLACEBO = "text placebos"
_FALLBACK = "without the tool"


def _right(one: Continuation) -> float:
    return one.right


def fault_figures(cells: Cells) -> Iterator[CausalFigure]:
    """The figures of each kind of fault, and of the placebos.

    Args:
        cells: The continuations by prefix and arm, with the arm `"control"`.
    """
    cells = joined(joined(cells, _PLACEBO, TEXT_PLACEBOS), _FALLBACK, WITHOUT_TOOL)
    for kind in arms_of(cells):
        yield from _of_kind(cells, kind)
    yield _format_sensitivity(cells)
    if any(kind in arms for arms in cells.values() for kind in WITHOUT_TOOL):
        yield arm_share(
            "fallback/accuracy",
            eligible(cells, _FALLBACK),
            _FALLBACK,
            _right,
            "Share of right continuations after a fault that takes the tool away for good "
            f"({', '.join(WITHOUT_TOOL)}).",
        )


def _of_kind(cells: Cells, kind: str) -> Iterator[CausalFigure]:
    """The figures of one kind, over the prefixes that are eligible for it."""
    chosen = eligible(cells, kind)
    omitted = sum(kind in arms for arms in cells.values()) - len(chosen)
    both = {prefix: arms for prefix, arms in chosen.items() if CONTROL in arms}
    arms = (kind, CONTROL)
    yield arm_share(
        f"control/{kind}",
        both,
        CONTROL,
        _right,
        f"Control accuracy: mean over the prefixes eligible for {kind} of the share of right "
        "continuations from the true result.",
        omitted,
    )
    yield arm_share(
        f"fault/{kind}",
        both,
        kind,
        _right,
        f"Fault accuracy: the same share of continuations from the fault {kind}.",
        omitted,
    )
    yield arm_difference(
        f"effect/{kind}",
        both,
        arms,
        _right,
        "Fault effect: fault accuracy minus control accuracy, on the same prefixes.",
        omitted,
    )
    yield arm_ratio(
        f"ratio/{kind}",
        both,
        arms,
        _right,
        "Recovery ratio: the sum of fault accuracy over the sum of control accuracy, over all "
        "prefixes, without selection.",
        omitted,
    )
    if kind not in TEXT_PLACEBOS:
        yield _net(both, kind)
    yield arm_share(
        f"retries/{kind}",
        both,
        kind,
        lambda one: one.repeats,
        "Share of continuations whose next call is the same program as the call at the fork.",
    )
    if KINDS[kind].persistent and KINDS[kind].sort == "explicit":
        yield more_of(
            f"futile/{kind}",
            both,
            kind,
            lambda one: one.futile,
            "Mean number of calls after the fork that can't succeed, because the fault persists.",
        )
    yield more_of(
        f"calls_more/{kind}",
        both,
        kind,
        lambda one: one.calls,
        "Mean number of calls after the fork, minus the mean number from the true result.",
    )
    yield _length(both, kind)


def _net(cells: Cells, kind: str) -> CausalFigure:
    placebo = eligible(cells, _PLACEBO)
    return arm_difference(
        f"net/{kind}",
        placebo,
        (kind, _PLACEBO),
        _right,
        "Effect net of the text placebos: fault accuracy minus the accuracy after an empty line or "
        "a harmless warning, on the same prefixes.",
        len(cells) - len(placebo),
    )


def _length(cells: Cells, kind: str) -> CausalFigure:
    """The tokens more; in characters, if a continuation has no tokens."""
    rows = [one for arms in cells.values() for arm in (kind, CONTROL) for one in arms[arm]]
    if all(one.tokens is not None for one in rows):
        return more_of(
            f"tokens_more/{kind}",
            cells,
            kind,
            lambda one: one.tokens or 0,
            "Mean number of the model's tokens after the fork, minus the mean from the true "
            "result.",
        )
    return more_of(
        f"characters_more/{kind}",
        cells,
        kind,
        lambda one: one.characters,
        "Mean number of the model's characters after the fork, minus the mean from the true "
        "result.",
    )


def _format_sensitivity(cells: Cells) -> CausalFigure:
    chosen = eligible(cells, _PLACEBO)
    made = arm_difference(
        "format_sensitivity",
        chosen,
        (_PLACEBO, CONTROL),
        _right,
        "Accuracy after an empty line or a harmless warning, minus control accuracy. It is "
        "equivalent to 0 if its 90 % interval lies within 5 points.",
    )
    narrow = difference(pairs(chosen, _PLACEBO, CONTROL, _right), 0.9)
    if narrow.low is None or narrow.high is None:
        return made
    within = narrow.low > -EQUIVALENT_WITHIN and narrow.high < EQUIVALENT_WITHIN
    return dataclasses.replace(made, equivalent=within)


def joined(cells: Cells, name: str, arms: tuple[str, ...]) -> Cells:
    """The cells with one arm more, which holds the eligible continuations of several arms.

    Args:
        cells: The continuations.
        name: The name of the new arm.
        arms: The arms to join.
    """
    made: Cells = {}
    for prefix, present in cells.items():
        rows = [one for arm in arms for one in present.get(arm, ()) if one.eligible]
        made[prefix] = {**present, name: rows} if rows else present
    return made
