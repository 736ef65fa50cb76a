"""The pictures of a report, as PNG bytes: funnel, histograms, flow of errors, figures by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retool_env.evaluation.report.subject import Figures, Subject
from retool_env.evaluation.report.tables import (
    FATE_NAMES,
    FUNNEL,
    flow_of,
    kind_name,
    number_text,
)
from retool_env.metrics.failed_calls import Fate
from retool_env.metrics.tool_use import MOST_CALLS
from retool_env.pictures import (
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILION,
    curve,
    picture,
    share_axis,
    whole_numbers,
)
from retool_env.transcript import Transcript

ALONG = {
    "accuracy/avg": "right",
    "use/attempted": "attempted a call",
    "use/ran": "call ran",
    "use/calls": "calls in an episode",
    "error/calls": "calls that failed",
    "recovery/mended": "errors that a later call mends",
}
"""The figures that are drawn along the steps of a training, each with the title of its panel."""

_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++", "oo")
_FATES: dict[Fate, str] = {
    **{"same_error": VERMILION, "other_error": ORANGE, "ok": BLUE},
    **{"answered_right": GREEN, "answered_wrong": PURPLE, "gave_up": GREY, "cut": BLACK},
}
"""The colour of each fate. The picture also names each fate beside its bar."""

_MOST_KINDS = 8
"""The most kinds of errors in the flow; the others are one bar."""

_BINS = 10
"""The bins of the position of the first call."""


def funnel(subjects: Sequence[Subject]) -> bytes:
    """The share of episodes that reach each stage, with intervals; empty without an interpreter.

    Args:
        subjects: The runs.
    """
    known = [s for s in subjects if (f := s.figures.get("use/attempted")) and f.count]
    if not known:
        return b""
    stages = ["episodes", *(name for _, name in FUNNEL)]
    width = 0.8 / len(known)
    with picture(size=(7.2, 3.4)) as made:
        axis = made.axes[0, 0]
        for number, subject in enumerate(known):
            figures = [subject.figures[key] for key, _ in FUNNEL]
            shares = [1.0, *(figure.mean or 0.0 for figure in figures)]
            xs = [stage + (number - (len(known) - 1) / 2) * width for stage in range(len(stages))]
            style = {"color": COLOURS[number % len(COLOURS)], "edgecolor": "white"}
            hatch = _HATCHES[number % len(_HATCHES)]
            axis.bar(xs, shares, 0.92 * width, label=subject.title, hatch=hatch, **style)
            for x, figure in zip(xs[1:], figures, strict=True):
                if figure.low is not None and figure.high is not None:
                    axis.vlines(x, figure.low, figure.high, color=BLACK, linewidth=1.2)
            if len(known) <= 2:  # the numbers of more runs would touch
                for x, share in zip(xs, shares, strict=True):
                    axis.text(x, 1.04, f"{share:.0%}", ha="center", va="bottom", fontsize=8)
        axis.set_xticks(range(len(stages)), stages)
        axis.grid(axis="x", visible=False)
        share_axis(axis.yaxis)
        axis.set_ylim(0, 1.12)
        axis.set_ylabel("share of episodes")
        if len(known) > 1:
            made.legend()
    return made.png


def histograms(subject: Subject) -> bytes:
    """The number of calls and the position of the first call, of right and of other episodes.

    Args:
        subject: The run.

    Returns:
        The PNG file; empty if no episode has a call.
    """
    scored = [t for _, t in subject.episodes if t.scored and t.interpreter]
    calls = [(bool(t.correct), min(len(t.calls), MOST_CALLS)) for t in scored]
    starts = [(bool(t.correct), _first_call(t)) for t in scored if t.calls]
    if not starts:
        return b""
    with picture(1, 2, (7.2, 3.0)) as made:
        left, right = made.axes[0]
        most = max(number for _, number in calls)
        _stacked(left, calls, most + 1)
        names = [f"{n}+" if n == MOST_CALLS else str(n) for n in range(most + 1)]
        left.set_xticks(range(most + 1), names)
        left.set(title="calls in an episode", ylabel="episodes")
        _stacked(right, starts, _BINS)
        right.set_xticks([-0.5, 4.5, 9.5], ["0 %", "50 %", "100 %"])
        right.set(title="start of the first call in the response", ylabel="episodes with a call")
        whole_numbers(left.yaxis, right.yaxis)
        made.legend()
    return made.png


def _first_call(transcript: Transcript) -> int:
    """The bin of the start of the first call, as a share of the characters of the response."""
    share = transcript.calls[0].position / max(len(transcript.response_text), 1)
    return min(int(share * _BINS), _BINS - 1)


def _stacked(axis: Any, cases: Sequence[tuple[bool, int]], bins: int) -> None:
    bottom = [0] * bins
    for right, (name, colour, hatch) in {
        True: ("right", GREEN, ""),
        False: ("not right", VERMILION, "///"),
    }.items():
        heights = [cases.count((right, number)) for number in range(bins)]
        style = {"color": colour, "edgecolor": "white", "hatch": hatch}
        axis.bar(range(bins), heights, 0.9, bottom=bottom, label=name, **style)
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    axis.grid(axis="x", visible=False)


def flow(subject: Subject) -> bytes:
    """The errors and what came next, as bands whose width is the number of failed calls.

    Args:
        subject: The run.

    Returns:
        The PNG file; empty if no call failed.
    """
    numbers = _few_kinds(flow_of(subject.figures))
    total = sum(sum(fates.values()) for fates in numbers.values())
    if not total:
        return b""
    left = {kind: sum(fates.values()) for kind, fates in numbers.items()}
    right = {fate: sum(fates.get(fate, 0) for fates in numbers.values()) for fate in _FATES}
    right = {fate: number for fate, number in right.items() if number}
    gap, bands = 0.26, 2.4  # inches, so that the names of thin bars do not touch
    height = bands + gap * (max(len(left), len(right)) - 1)
    with picture(size=(7.2, height + 0.3)) as made:
        axis = made.axes[0, 0]
        axis.set_axis_off()
        axis.set(xlim=(0, 7.2), ylim=(height, 0))
        lefts = _places(left, total, bands, gap, height)
        rights = _places(right, total, bands, gap, height)
        for kind, number in left.items():
            text = kind_name(kind)
            _bar(axis, 2.5, lefts[kind], number / total * bands, BLACK, text, number, total)
        for fate, number in right.items():
            text, colour = FATE_NAMES[fate], _FATES[fate]
            _bar(axis, 5.3, rights[fate], number / total * bands, colour, text, number, total)
        for kind, fates in numbers.items():
            for fate in right:
                if size := fates.get(fate, 0) / total * bands:
                    _band(axis, lefts[kind], rights[fate], size, _FATES[fate])
                    lefts[kind] += size
                    rights[fate] += size
    return made.png


def _few_kinds(numbers: dict[str, dict[Fate, int]]) -> dict[str, dict[Fate, int]]:
    """The most frequent kinds of errors; the others are joined."""
    if len(numbers) <= _MOST_KINDS:
        return numbers
    kinds = list(numbers)
    others: dict[Fate, int] = {}
    for kind in kinds[_MOST_KINDS - 1 :]:
        for fate, number in numbers[kind].items():
            others[fate] = others.get(fate, 0) + number
    first = {kind: numbers[kind] for kind in kinds[: _MOST_KINDS - 1]}
    return {**first, f"{len(kinds) - len(first)} other kinds": others}


def _places[K](
    sizes: Mapping[K, int], total: int, bands: float, gap: float, height: float
) -> dict[K, float]:
    """The upper end of each bar of a column, which is centred."""
    at = (height - bands - gap * (len(sizes) - 1)) / 2
    places = {}
    for name, size in sizes.items():
        places[name] = at
        at += size / total * bands + gap
    return places


def _bar(
    axis: Any, x: float, y: float, size: float, colour: str, name: str, number: int, total: int
) -> None:
    """A bar of the flow, with its name and number on the outer side."""
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((x - 0.05, y), 0.1, size, color=colour))
    side, at = ("right", x - 0.12) if x < 3.6 else ("left", x + 0.12)
    text = f"{name}: {number:,} ({number / total:.0%})"
    axis.text(at, y + size / 2, text, ha=side, va="center", fontsize=8.5)


def _band(axis: Any, start: float, end: float, size: float, colour: str) -> None:
    """A band from the left column to the right one."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    a, b, middle = 2.55, 5.25, 3.9
    upper = [(a, start), (middle, start), (middle, end), (b, end)]
    lower = [(b, end + size), (middle, end + size), (middle, start + size), (a, start + size)]
    bends = [Curve.CURVE4] * 3
    codes = [Curve.MOVETO, *bends, Curve.LINETO, *bends, Curve.CLOSEPOLY]
    path = Curve([*upper, *lower, (a, start)], codes)
    axis.add_patch(PathPatch(path, facecolor=colour, alpha=0.45, edgecolor="white", linewidth=0.5))


def along(subjects: Sequence[Subject]) -> bytes:
    """The figures of trainings along their steps, with intervals; empty without an episode.

    Args:
        subjects: The runs. Runs of other kinds are left out.
    """
    series: dict[str, dict[float, Figures]] = {}
    for subject in subjects:
        if subject.along is not None:
            name = "" if len(subjects) == 1 else f"{subject.title}: "
            middles = {(a + b) / 2: some for (a, b), some in subject.along.rollouts.items()}
            series[f"{name}rollouts"] = middles
            series[f"{name}held-out problems"] = dict(subject.along.held_out)  # type: ignore[arg-type]  # whole steps
    keys = [key for key in ALONG if any(_points(by, key) for by in series.values())]
    if not keys:
        return b""
    rows = -(-len(keys) // 2)
    with picture(rows, 2, (7.2, 2.3 * rows + 0.5)) as made:
        for axis in made.axes.flat[len(keys) :]:
            axis.set_axis_off()
        for axis, key in zip(made.axes.flat, keys, strict=False):
            for number, (name, by_step) in enumerate(series.items()):
                if points := _points(by_step, key):
                    curve(axis, points, number, name)
            axis.set(title=ALONG[key], xlabel="optimizer step")
            whole_numbers(axis.xaxis)
            if key == "use/calls":
                axis.set_ylim(bottom=0)
                axis.yaxis.set_major_formatter(lambda value, _: number_text(value))
            else:
                share_axis(axis.yaxis)
        made.legend()
    return made.png


def _points(
    by_step: Mapping[float, Figures], key: str
) -> list[tuple[float, float, float | None, float | None]]:
    found = [(step, figures.get(key)) for step, figures in sorted(by_step.items())]
    return [(s, f.mean, f.low, f.high) for s, f in found if f is not None and f.mean is not None]
