"""The figures of the benchmark in the order of a reader's questions, as tables of texts.

The terminal and the page show the same cells. A figure that is not shown is a dash; the page marks
the dash with a letter, and names the reason below the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retool_env.evaluation.recover.pictures import Results
from retool_env.faults import KINDS

Table = list[list[str]]
"""Rows of texts, the headings first."""

Figures = Mapping[str, Mapping[str, Any]]
"""The figures of one model by key, also the figures that are not shown."""


@dataclass(frozen=True)
class Section:
    """One question of a reader."""

    title: str
    """The question."""
    words: str
    """The meaning of the figures, in a few sentences."""
    rows: tuple[tuple[str, str], ...] = ()
    """Key and name of figures: a table with a column for each model."""
    columns: tuple[tuple[str, str], ...] = ()
    """Beginning of the key and heading of figures of each kind of fault: a table for each model
    with a row for each kind."""
    pictures: tuple[str, ...] = ()
    """The pictures, by the beginning of their names."""


SECTIONS = (
    Section(
        "How often is the tool used, and does it pay?",
        "Episodes without faults, and three arms on the same problems: the tool is not offered; it "
        "is offered and works; it is offered, but every call is answered with the text that it is "
        "gone. The gain is the second arm minus the first. The price of the offer is the first arm "
        "minus the third.",
        rows=(
            ("dose/0/accuracy", "right, without faults"),
            ("dose/0/calls", "calls in an episode"),
            ("frequency/text_only", "right, tool not offered"),
            ("frequency/offered", "right, tool offered"),
            ("frequency/gone", "right, tool offered but gone"),
            ("frequency/gain", "gain by the tool"),
            ("frequency/price", "price of the offer"),
            ("frequency/over_use", "over-use: calls where the tool does not gain"),
            ("frequency/under_use", "under-use: no call where the tool gains"),
        ),
    ),
    Section(
        "What happens at a fault?",
        "Whole episodes in which faults are ordered for a share of the calls. The area is the mean "
        "accuracy over all rates of faults, and its ratio to the accuracy without faults is 1 if "
        "faults cost nothing. The bars show forked episodes: their state after 0, 1, 2, … further "
        "calls.",
        rows=(
            ("dose/area", "right, mean over all rates of faults"),
            ("dose/area_ratio", "the same, divided by accuracy without faults"),
            ("fallback/accuracy", "right, once the tool is gone for good"),
        ),
        pictures=("dose", "outcomes"),
    ),
    Section(
        "Which faults hurt?",
        "From the same tokens, episodes go on with the true result (control) and with a fault. The "
        "effect is the difference of their accuracy in points, and the recovery ratio is their "
        "quotient. Net of placebos, the control has an empty line or a harmless warning more. "
        "Net says more than the effect only if the placebos cost little. An asterisk marks results "
        "with an invented text. "
        "Detectable is the effect that a test at 5 % finds with 80 % power: a smaller effect may "
        "stay unseen.",
        rows=(("format_sensitivity", "effect of the text placebos: sensitivity to form alone"),),
        columns=(
            ("effect", "effect"),
            ("ratio", "recovery ratio"),
            ("control", "right: control"),
            ("fault", "right: fault"),
            ("net", "net of placebos"),
            ("detectable", "detectable"),
            ("prefixes", "prefixes (problems)"),
        ),
        pictures=("heat-map", "recovery"),
    ),
    Section(
        "Does it notice a false result?",
        "Detection is the share of episodes that doubt, check or repeat a silently false result. "
        "Stated rules read English text, and miss much, so it is a lower bound. The net share "
        "subtracts the share after a true result. Contagion is the share of final answers that "
        "follow from the false value, minus the share of such answers after the true result.",
        columns=(
            ("detection", "notices"),
            ("detection/net", "notices, net of control"),
            ("contagion", "contagion"),
        ),
    ),
    Section(
        "What do its own errors cost?",
        "At the first failed call of the model's own, four arms go on: the error is kept; call and "
        'error are dropped; the error is the bare word "Error"; the result is mended.',
        rows=(
            ("natural/keep", "right: error kept"),
            ("natural/drop", "right: call and error dropped"),
            ("natural/bare", "right: bare word"),
            ("natural/mended", "right: result mended"),
            ("natural/message", "value of the message: kept minus bare"),
            ("natural/error", "cost of an error: mended minus kept, an upper bound"),
            ("natural/mend", "gain of a mend: mended minus dropped, an upper bound"),
            ("natural/memory", "gain of forgetting: dropped minus kept"),
        ),
    ),
    Section(
        "What does a fault cost in calls and tokens?",
        "Calls and tokens after the fork, minus their number after the true result. A retry is the "
        "same program again. A futile call can't succeed, because the fault persists.",
        columns=(
            ("calls_more", "calls more"),
            ("tokens_more", "tokens more"),
            ("characters_more", "characters more"),
            ("retries", "retries"),
            ("futile", "futile calls"),
        ),
    ),
)
"""The questions, in their order."""

NO_CASE = "it has no case"
"""The reason of a figure that no prefix is eligible for."""

_COUNTED = re.compile(r"dose/[\d.]+/calls|(calls|tokens|characters)_more/|futile/")
_RATIO = re.compile(r"ratio/|dose/area_ratio")
_POINTS = re.compile(
    r"(effect|net|contagion)/|format_sensitivity|detection/\w+/net"
    r"|frequency/(gain|price|\w+/gain)|natural/(message|error|mend|memory)$"
)


def value_text(figure: Mapping[str, Any]) -> str:
    """A figure with its 95 % interval: a share in percent, a difference in points, or a number.

    Args:
        figure: A figure that is shown.
    """
    key = figure["key"]
    if _COUNTED.match(key) or _RATIO.match(key):
        form: Callable[[float], str] = "{:.2f}".format
    elif _POINTS.match(key):
        form = points
    else:
        form = percent
    bounds = [None if (b := figure[name]) is None else form(b) for name in ("low", "high")]
    if bounds == [None, None]:
        return form(figure["mean"]) + " (1 problem)" * (figure["problems"] == 1)
    low, high = ("∞" if bound is None else bound.removesuffix(" %") for bound in bounds)
    return f"{form(figure['mean'])} [{low}, {high}]"


def points(value: float) -> str:
    """A difference of shares in points of percent, with its sign."""
    return f"{round(100 * value) + 0:+d}".replace("+0", "0").replace("-", "−")


def percent(value: float) -> str:
    """A share in percent."""
    return f"{round(100 * value)} %"


class Notes:
    """The reasons for dashes, each with a letter."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        """The letter of each reason."""

    def dash(self, reason: str) -> str:
        """A dash with the letter of a reason."""
        letter = self.reasons.setdefault(reason, chr(ord("a") + len(self.reasons) % 26))
        return f"– ({letter})"


def by_key(results: Results) -> dict[str, Mapping[str, Any]]:
    """All figures of a model by key."""
    return {figure["key"]: figure for figure in results["figures"]}


def _cell(figure: Mapping[str, Any] | None, notes: Notes) -> str:
    if figure is None:
        return "–"
    if not figure.get("shown", True) or figure["mean"] is None:
        return notes.dash(figure.get("reason") or NO_CASE)
    return value_text(figure)


def rows_table(
    section: Section, figures: Sequence[Figures], titles: Sequence[str], notes: Notes
) -> Table:
    """The rows of a section, with a column for each model; empty without a figure.

    Args:
        section: The section.
        figures: The figures of each model.
        titles: The titles of the models.
        notes: The reasons for dashes.
    """
    rows = [
        [name, *(_cell(some.get(key), notes) for some in figures)]
        for key, name in section.rows
        if any(key in some for some in figures)
    ]
    return [["", *titles], *rows] if rows else []


def kinds_table(
    columns: Iterable[tuple[str, str]], figures: Figures, notes: Notes
) -> tuple[Table, list[str]]:
    """The figures of each kind of fault of one model.

    Args:
        columns: Beginning of the key, and heading.
        figures: The figures of the model.
        notes: The reasons for dashes.

    Returns:
        The table, empty without a figure; and the kinds that no prefix is eligible for.
    """
    rows, absent = [], []
    present = [
        (name, heading)
        for name, heading in columns
        if any(_of_kind(figures, name, kind) is not None for kind in KINDS)
    ]
    for kind in KINDS:
        some = [_of_kind(figures, name, kind) for name, _ in present]
        known = [figure for figure in some if figure is not None]
        if known and all(figure.get("reason") == NO_CASE for figure in known):
            absent.append(kind)
        elif known:
            cells = [
                _special(name, figure) or _cell(figure, notes)
                for (name, _), figure in zip(present, some, strict=True)
            ]
            rows.append([f"{kind}{'*' * KINDS[kind].invented} ({KINDS[kind].sort})", *cells])
    headings = ["fault", *(heading for _, heading in present)]
    return ([headings, *rows] if rows else []), absent


def _of_kind(figures: Figures, name: str, kind: str) -> Mapping[str, Any] | None:
    """The figure of a column; `prefixes` and `detectable` are fields of the effect."""
    if name in ("prefixes", "detectable"):
        return figures.get(f"effect/{kind}")
    first, _, rest = name.partition("/")
    return figures.get(f"{first}/{kind}/{rest}" if rest else f"{first}/{kind}")


def _special(name: str, figure: Mapping[str, Any] | None) -> str:
    if figure is None or name not in ("prefixes", "detectable"):
        return ""
    if name == "prefixes":
        return f"{figure.get('prefixes', figure['count'])} ({figure['problems']})"
    return _detectable(figure.get("detectable"))


def _detectable(points: float | None) -> str:
    """The smallest difference that a test detects; differences end at 100 points."""
    if points is None:
        return "–"
    return "> 100" if points > 1 else f"±{round(100 * points)}"


def comparison_table(tests: Iterable[Mapping[str, Any]]) -> Table:
    """The paired tests of two models, a row for each kind of fault.

    Args:
        tests: The tests, as `retool_env.evaluation.recover.figures.comparisons` gives them.
    """
    rows = [
        [
            test["kind"],
            str(test["problems"]),
            value_text({**test, "key": "effect/", "mean": test["difference"]})
            + " (interval unknown)" * (test["low"] is None),
            _detectable(test["detectable"]),
            _p(test["p"]),
            _p(test["adjusted"]),
        ]
        for test in tests
    ]
    headings = ["fault", "problems", "difference of effects", "detectable", "p", "p, by Holm"]
    return [headings, *rows]


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def failures_table(figures: Figures) -> Table:
    """The figures with infrastructure failures, and their bounds; empty without a failure."""
    rows = []
    for figure in figures.values():
        shown = figure.get("shown", True) and figure["mean"] is not None
        if shown and figure.get("lowest") is not None and figure.get("highest") is not None:
            ends = [
                value_text(
                    {**figure, "mean": figure[end], "low": None, "high": None, "problems": 0}
                )
                for end in ("lowest", "highest")
            ]
            if not figure["key"].startswith("outcome/"):
                rows.append([figure["key"], str(figure["failed"]), value_text(figure), *ends])
    headings = ["figure", "failures", "without the failures", "at least", "at most"]
    return [headings, *rows] if rows else []


def usage_table(usage: Mapping[str, Any]) -> Table:
    """The tokens of each protocol, in thousands, and the dollars.

    Args:
        usage: The field `usage` of `results.json`.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for name, arm in usage["arms"].items():
        rows.setdefault(name.partition("/")[0], []).append(arm)
    table = [["protocol", "episodes", "tokens written", "tokens read by an API", "dollars"]]
    for name, arms in rows.items():
        table.append(
            [
                name,
                f"{sum(arm['episodes'] for arm in arms):,}",
                _sum(_tokens(arm) for arm in arms),
                _sum((arm["usage"] or {}).get("prompt_tokens") for arm in arms),
                _sum((arm["dollars"] for arm in arms), "${:,.2f}"),
            ]
        )
    return table


def _tokens(arm: Mapping[str, Any]) -> int | None:
    if arm["written"] is not None:
        return int(arm["written"])
    return None if arm["usage"] is None else int(arm["usage"]["completion_tokens"])


def _sum(values: Iterable[float | None], form: str = "{:,}") -> str:
    known = [value for value in values if value is not None]
    return form.format(sum(known)) if known else "–"


def hidden(figures: Figures) -> dict[str, list[str]]:
    """The keys of the figures that are not shown, by reason.

    Args:
        figures: The figures of a model.
    """
    reasons: dict[str, list[str]] = {}
    for key, figure in figures.items():
        if not figure.get("shown", True) or figure["mean"] is None:
            reasons.setdefault(figure.get("reason") or NO_CASE, []).append(key)
    return reasons


def counted(counts: Mapping[str, Any]) -> list[str]:
    """The numbers of prefixes, and of the prefixes that are left out, as sentences.

    Args:
        counts: The field `counts` of `results.json`.
    """
    prefixes = counts["prefixes"]
    failed = sum(counts["infrastructure_failures"].values())
    lines = [
        f"{counts['parents']} parents ended; {prefixes['fork']} were forked, and "
        f"{prefixes['natural']} have an error of their own.",
        f"{counts['without_call']} parents have fewer calls than the fork needs.",
        f"{sum(counts['not_eligible'].values())} pairs of prefix and fault are not eligible: the "
        "fault can't take place at that call.",
    ]
    if counts["not_reproducible"]:
        lines.append(f"{counts['not_reproducible']} prefixes are not reproducible.")
    if failed:
        lines.append(f"{failed} episodes failed by the infrastructure, and do not count.")
    if counts["visible"]:
        lines.append(
            f"{counts['visible']} prefixes are visible messages only: the API does not take the "
            "model's reasoning back."
        )
    return lines
