"""The use of the tool in `benchmarks.recovery`, and its change: causal, and along a training.

A change between two models is paired by problem, with an interval by the jackknife over problems;
over several seeds it is the mean of their changes.
Over-use and under-use select problems. Their change rests on the problems, and halves of samples,
that are selected with both models.

The change between two thirds of a training has an interval made from their two intervals, as if the
thirds were independent (Newcombe, 1998). With GRPO and DAPO they have other problems. With PPO they
share problems, and the interval is rather too wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from benchmarks.parts.study_changes import Change, Statistic, over_seeds
from retool_env.metrics.causal.episodes import Episodes, calls, mean, right
from retool_env.metrics.causal.frequency import halves
from retool_env.transcript import Transcript

Evaluation = Mapping[str, Any]
"""The record of an evaluation, as JSON values."""
Values = dict[tuple[str, int], float]
"""A figure of each problem, and of each half of its samples that counts."""


def read_use(arms: Mapping[tuple[str, str], Sequence[Transcript]]) -> dict[str, Any]:
    """The use of the tool by problem: what `use_change` needs, as JSON values.

    Args:
        arms: The transcripts of an evaluation by protocol and arm.

    Returns:
        By problem: `calls`, the mean number of calls without faults; and for problems in the arms
        of frequency `gain`, the tool gain, and `halves`, whether the tool gains in one half of the
        samples, with the share of episodes with a call in the other half.
    """
    parents = Episodes.of(arms.get(("dose", "0"), ())).by_problem
    offered, text_only = (Episodes.of(arms.get(("frequency", arm), ())) for arm in ("tool", "text"))
    made: dict[str, Any] = {name: {"calls": mean(some, calls)} for name, some in parents.items()}
    for problem, some in offered.by_problem.items():
        if others := text_only.by_problem.get(problem):
            made.setdefault(problem, {})["gain"] = mean(some, right) - mean(others, right)
    for half in halves(offered, text_only):
        own = made[str(half.judged.problem)]
        own.setdefault("halves", []).append([half.gains, half.called])
    return made


def _by_problem(name: str) -> Callable[[Evaluation], Values]:
    return lambda evaluation: {
        (problem, 0): own[name] for problem, own in evaluation["use"].items() if name in own
    }


def _by_half(gains: bool) -> Callable[[Evaluation], Values]:
    return lambda evaluation: {
        (problem, number): 1 - called if gains else called
        for problem, own in evaluation["use"].items()
        for number, (gained, called) in enumerate(own.get("halves", ()))
        if gained == gains
    }


USES: Mapping[str, Callable[[Evaluation], Values]] = {
    "calls": _by_problem("calls"),
    "tool gain": _by_problem("gain"),
    "over-use": _by_half(gains=False),
    "under-use": _by_half(gains=True),
}
"""The figures of the use of the tool, by name: each maps an evaluation to its values."""


def calls_of(evaluation: Evaluation) -> float:
    """The mean number of calls without faults.

    Args:
        evaluation: The evaluation.
    """
    return fmean(_by_problem("calls")(evaluation).values())


def use_change(before: Sequence[Evaluation], after: Sequence[Evaluation], name: str) -> Change:
    """The change of a figure of the use, over the problems and halves that count with both models.

    Args:
        before: The evaluations of the first models, one a seed.
        after: The evaluations of the other models, in the same order.
        name: The figure, a key of `USES`.
    """
    seeds = list[tuple[Iterable[str], Statistic]]()
    for both in zip(before, after, strict=True):
        first, second = (USES[name](evaluation) for evaluation in both)
        differences: dict[str, list[float]] = {}
        for key in sorted(first.keys() & second.keys()):
            differences.setdefault(key[0], []).append(second[key] - first[key])
        if len(differences) > 1:
            seeds.append((differences, partial(_mean, differences)))
    return over_seeds(seeds) if seeds else Change(None, None, None, 0)


def _mean(values: Mapping[str, Sequence[float]], without: str | None) -> float:
    some = [value for problem, own in values.items() if problem != without for value in own]
    return math.fsum(some) / len(some)


def observed_change(training: Mapping[str, Any], name: str) -> Change:
    """The change of an observed figure from the first to the last third of a training.

    Args:
        training: The summaries of the thirds, by their last steps, in order.
        name: The figure of recovery: `next_call_ok` or `accuracy`.

    Returns:
        The change. Its number of problems is the smaller number of cases of the two thirds.
    """
    thirds = [summary["recovery"][name] for summary in training.values()]
    first, last = thirds[0], thirds[-1]
    count = min(first["count"], last["count"])
    if first["interval"] is None or last["interval"] is None:
        return Change(None, None, None, count)
    a, b = first["interval"], last["interval"]
    change = b["mean"] - a["mean"]
    low = change - math.hypot(b["mean"] - b["low"], a["high"] - a["mean"])
    high = change + math.hypot(b["high"] - b["mean"], a["mean"] - a["low"])
    return Change(change, low, high, count)
