"""All figures of forked transcripts, of faults and of the model's own errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from retool_env.grading import is_equivalent
from retool_env.metrics.causal.contagion import contagion_figures
from retool_env.metrics.causal.continuation import (
    CONTROL,
    arms_of,
    by_prefix,
    eligible,
    read_continuations,
    shown_value,
)
from retool_env.metrics.causal.curves import outcome_curve
from retool_env.metrics.causal.detection import detection_figures
from retool_env.metrics.causal.effects import fault_figures
from retool_env.metrics.causal.figure import CausalFigure
from retool_env.metrics.causal.natural import ARMS, natural_figures
from retool_env.transcript import Transcript


def fork_figures(
    transcripts: Iterable[Transcript],
    implied: Callable[[Transcript], str | None] = shown_value,
    equal: Callable[[str, str], bool] = is_equivalent,
) -> list[CausalFigure]:
    """Compute the figures of forked transcripts. Transcripts without a parent do not count.

    Args:
        transcripts: The transcripts of one model, in any order.
        implied: The answer that follows from the false value of a fork; `None`: the fork is not
            judged. The default is the shown value itself.
        equal: Whether a final answer (first argument) equals an implied one (second argument).
    """
    cells = by_prefix(read_continuations(transcripts))
    present = {arm for arms in cells.values() for arm in arms}
    figures: list[CausalFigure] = []
    if kinds := arms_of(cells):
        figures += fault_figures(cells)
        figures += contagion_figures(cells, implied, equal)
        figures += detection_figures(cells)
    if present & set(ARMS):
        figures += natural_figures(cells)
    for arm in (CONTROL, *kinds, *ARMS):
        figures += outcome_curve(eligible(cells, arm), arm)
    return figures
