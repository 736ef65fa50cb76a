"""Frequency of calls, causally: what the offer of the tool is worth, and its over-use.

Three arms answer the same problems: a text-only prompt; the tool offered and working; and the tool
offered, but gone at every call. A transcript of the third arm without a call does not show its arm,
so the arms are given.

Over-use and under-use select problems by the tool gain of one half of the samples, and are measured
on the other half. Then the halves change places. So a problem is not selected by the luck of the
samples that judge it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from retool_env.metrics.causal.episodes import (
    Episodes,
    calls,
    compared,
    failure_bounds,
    mean,
    right,
)
from retool_env.metrics.causal.figure import CausalFigure, causal, unless
from retool_env.metrics.causal.intervals import Pair, detectable, difference, hardly_differ, share
from retool_env.transcript import Transcript

LEAST_SAMPLES = 16
"""Over-use and under-use leave out problems with fewer samples in an arm."""
LEAST_SHARE = 0.95
"""They are shown if at least this share of the problems has enough samples."""
LEAST_SELECTED = 10
"""They are shown with at least this number of selected problems."""


def frequency_figures(
    text_only: Iterable[Transcript],
    offered: Iterable[Transcript],
    gone: Iterable[Transcript],
) -> Iterator[CausalFigure]:
    """The figures of the three arms.

    Args:
        text_only: The episodes without the offer of the tool.
        offered: The episodes in which the tool is offered and works.
        gone: The episodes in which the tool is offered, and every call says that it is gone.
    """
    arms = {
        "text_only": Episodes.of(text_only),
        "offered": Episodes.of(offered),
        "gone": Episodes.of(gone),
    }
    for name, arm in arms.items():
        yield causal(
            f"frequency/{name}",
            share((p, mean(some, right), len(some)) for p, some in arm.by_problem.items()),
            f"Mean over problems of the share of right episodes of the arm {name}.",
            count=arm.count,
            failed=arm.failed,
            **failure_bounds(arm),
        )
    yield _difference(
        "frequency/gain",
        arms["offered"],
        arms["text_only"],
        "Tool gain: mean over problems of the accuracy with the tool minus the accuracy in text "
        "only.",
    )
    price = _difference(
        "frequency/price",
        arms["text_only"],
        arms["gone"],
        "Price of the offer: accuracy in text only minus the accuracy with an offered tool that is "
        "gone. It is not shown if both arms have the same prompt.",
    )
    same = _prompts(arms["text_only"]) & _prompts(arms["gone"])
    yield unless(price, "both arms have the same prompt, which offers no tool" if same else "")
    yield from _use(arms["offered"], arms["text_only"])


def _prompts(arm: Episodes) -> set[str]:
    return {some[0].spans[0].text for some in arm.by_problem.values()}


def _difference(key: str, first: Episodes, second: Episodes, definition: str) -> CausalFigure:
    rows = compared(first, second)
    made = causal(
        key,
        difference(rows),
        definition,
        count=first.count + second.count,
        left_out=len(first.by_problem.keys() ^ second.by_problem.keys()),
        failed=first.failed + second.failed,
        **failure_bounds(first, second),
        detectable=detectable(rows),
    )
    return unless(made, hardly_differ(rows))


@dataclass(frozen=True)
class Half:
    """A problem, judged by one half of its samples and selected by the other half."""

    gains: bool
    """Whether the tool gains in the half that selects."""
    judged: Pair
    """The shares of right episodes in the half that judges: with the tool, and in text only."""
    called: float
    """The share of episodes with a call in the half that judges, with the tool."""


def halves(offered: Episodes, text_only: Episodes, least: int = LEAST_SAMPLES) -> list[Half]:
    """The problems of two arms, each of them selected by one half of its samples.

    Args:
        offered: The episodes in which the tool is offered and works.
        text_only: The episodes without the offer of the tool.
        least: Problems with fewer samples in an arm are left out.
    """
    made = []
    for problem, size in _sizes(offered, text_only).items():
        if size < least:
            continue
        episodes, others = offered.by_problem[problem], text_only.by_problem[problem]
        for half in (0, 1):
            chosen, judging = episodes[half::2], episodes[1 - half :: 2]
            gains = mean(chosen, right) - mean(others[half::2], right)
            judged = mean(judging, right), mean(others[1 - half :: 2], right)
            pair = Pair(problem, *judged, len(judging))
            made.append(Half(gains > 0, pair, mean(judging, _called)))
    return made


def _sizes(offered: Episodes, text_only: Episodes) -> dict[str, int]:
    """The number of samples of each problem in the smaller arm."""
    return {
        problem: min(len(arm.by_problem.get(problem, ())) for arm in (offered, text_only))
        for problem in dict.fromkeys((*offered.by_problem, *text_only.by_problem))
    }


def _use(offered: Episodes, text_only: Episodes) -> Iterator[CausalFigure]:
    """Over-use and under-use, and the gain of their problems on the judging half."""
    sizes = _sizes(offered, text_only)
    enough = sum(size >= LEAST_SAMPLES for size in sizes.values()) >= LEAST_SHARE * len(sizes)
    least = LEAST_SAMPLES if enough else 2  # a hidden figure counts what there is
    selected = halves(offered, text_only, least)
    left_out = sum(size < least for size in sizes.values())
    for name, gains, text in (
        ("over_use", False, "does not gain: share of episodes with a call"),
        ("under_use", True, "gains: share of episodes without a call"),
    ):
        rows = [half for half in selected if half.gains == gains]
        uses = [
            (half.judged.problem, 1 - half.called if gains else half.called, half.judged.samples)
            for half in rows
        ]
        made = (
            causal(
                f"frequency/{name}",
                share(uses),
                f"Among problems at which the tool {text}. Half of the samples selects the "
                "problems, and the other half is counted. Problems with fewer than "
                f"{LEAST_SAMPLES} samples in an arm are left out.",
                count=round(sum(half.judged.samples for half in rows)),
                left_out=left_out,
            ),
            causal(
                f"frequency/{name}/gain",
                difference([half.judged for half in rows]),
                "Tool gain of the same problems, on the half that is counted.",
                count=round(sum(2 * half.judged.samples for half in rows)),
                left_out=left_out,
            ),
        )
        for figure in made:
            reason = (
                f"fewer than {LEAST_SHARE:.0%} of the problems have {LEAST_SAMPLES} samples in "
                "both arms"
            )
            few = f"fewer than {LEAST_SELECTED} problems are selected"
            many = figure.problems >= LEAST_SELECTED
            yield unless(unless(figure, "" if enough else reason), "" if many else few)


def _called(one: Transcript) -> float:
    return float(calls(one) > 0)
