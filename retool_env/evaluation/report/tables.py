"""The tables of a report: a row for each figure, and a column for each run."""

from __future__ import annotations

import builtins
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from retool_env.evaluation.report.subject import Figures, Subject
from retool_env.metrics.failed_calls import FATES, Fate
from retool_env.metrics.figure import Figure
from retool_env.metrics.intervals import FEW_CASES, Estimate
from retool_env.metrics.tables import markdown
from retool_env.printable import printable
from retool_env.transcript import Transcript

_EXCEPTIONS = {name.lower(): name for name in dir(builtins)}
"""Python's own names by their lower case, which the keys of figures have."""

Table = list[list[str]]
"""Rows of texts, the headings first."""

NOTE = (
    f"Brackets hold 95 % intervals over problems; n is the number of cases. † fewer than "
    f"{FEW_CASES} cases."
)
"""The note below tables of figures."""

FATE_NAMES: dict[Fate, str] = {
    "same_error": "same error",
    "other_error": "other error",
    "ok": "ran",
    "answered_right": "answered right",
    "answered_wrong": "answered wrong",
    "gave_up": "gave up",
    "cut": "cut",
}
"""The name of each fate of a failed call."""

FUNNEL = (
    ("use/attempted", "attempted a call"),
    ("use/well_formed", "call well formed"),
    ("use/ran", "call ran"),
    ("use/right", "call ran, and right"),
)
"""The stages of the use of the interpreter, after all episodes with an interpreter."""

USE = (
    ("use/calls", "calls in an episode"),
    ("use/first_call/turns", "turns before the first call"),
    ("use/first_call/characters", "characters before the first call"),
    ("use/first_call/tokens", "tokens before the first call"),
    ("use/silent", "calls that ran and printed nothing"),
    ("use/self_caught", "calls that ran and caught an error of their own"),
    ("use/tool_seconds", "seconds an episode waits for results"),
)
"""When and how often the interpreter is used."""

RECOVERY = (
    ("error/calls", "calls that failed"),
    ("recovery/mended", "errors that a later call mends"),
    *((f"recovery/ran@{k}/had_turn", f"a call ran within {k}, given a turn") for k in (1, 2, 3)),
    *((f"recovery/ran@{k}/called", f"a call ran within {k}, given a call") for k in (1, 2, 3)),
)
"""The steps after a failed call."""

BILL = (
    ("cost/prompt_tokens", "tokens that the API read, an episode"),
    ("cost/completion_tokens", "tokens that the API wrote, an episode"),
    ("cost/tokens_per_right", "tokens, a right answer"),
    ("cost/dollars", "dollars, an episode"),
    ("cost/dollars_per_right", "dollars, a right answer"),
)
"""The tokens and dollars that an API counts."""

BY_CALLS = (
    ("accuracy/calls/none", "right, without a call"),
    ("accuracy/calls/without_error", "right, all calls ran"),
    ("accuracy/calls/error_mended", "right, a call failed and the last call ran"),
    ("accuracy/calls/error_not_mended", "right, the last call failed"),
)
"""The accuracy of episodes by their calls."""

_MAIN = (("accuracy/avg", "right"), *FUNNEL, *USE[:1], *RECOVERY[:2])
_NUMBER = re.compile(r"use/(calls|tool_seconds|first_call/\w+)$|cost/")
_GROUP = re.compile(r"accuracy/(data_set|difficulty|level|subject)/(.+)")
_ERROR = re.compile(r"error/(.+)/next/(\w+)")


def value_text(figure: Figure | None) -> str:
    """A figure with its 95 % interval: a share in percent, or a number.

    Args:
        figure: The figure; `None`: it is unknown.
    """
    if figure is None or figure.mean is None:
        return "–"
    form = number_text if _NUMBER.match(figure.key) else _percent
    text = form(figure.mean)
    if figure.low is not None and figure.high is not None:
        low, high = (form(bound).removesuffix(" %") for bound in (figure.low, figure.high))
        text = f"{text} [{low}, {high}]"
    elif figure.problems == 1:
        text += " (1 problem)"
    return text + " †" * figure.marked


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def number_text(value: float | None) -> str:
    """A number with three figures, and all figures of its whole part; a dash for `None`.

    Example:
        >>> [number_text(value) for value in (None, 0.01234, 2.5, 12345.6)]
        ['–', '0.0123', '2.5', '12,346']
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def figure_table(
    columns: Mapping[str, Figures], rows: Iterable[tuple[str, str]], cases: bool = True
) -> Table:
    """A row for each figure that has a case in a column; empty without such a figure.

    Args:
        columns: The figures by the title of the column.
        rows: The key and the name of each row.
        cases: Whether each column is followed by its numbers of cases.
    """
    table = []
    for key, name in rows:
        found = [figures.get(key) for figures in columns.values()]
        if any(figure is not None and figure.count for figure in found):
            cells = [
                (value_text(figure), "–" if figure is None else f"{figure.count:,}")[: 1 + cases]
                for figure in found
            ]
            table.append([name, *(cell for pair in cells for cell in pair)])
    heads = [head for title in columns for head in ([title, "n"] if cases else [title])]
    return [["", *heads], *table] if table else []


def columns_of(subjects: Sequence[Subject]) -> dict[str, Figures]:
    """The figures of each run by its title.

    Args:
        subjects: The runs.
    """
    return {subject.title: subject.figures for subject in subjects}


def main_table(subjects: Sequence[Subject]) -> str:
    """The main figures of each run as a Markdown table, for a terminal; empty without a figure.

    Args:
        subjects: The runs.
    """
    rows = figure_table(columns_of(subjects), [*_MAIN, *sampled_rows(subjects)], cases=False)
    if not rows:
        return ""
    sizes = [(subject.title, len(subject.episodes)) for subject in subjects]
    head = ["", *(f"{title}: {n:,} episode{'s' * (n != 1)}" for title, n in sizes)]
    text = markdown([[printable(cell) for cell in row] for row in [head, *rows[1:]]])
    return text + f"\n\n† fewer than {FEW_CASES} cases" * ("†" in text)


def sampled_rows(subjects: Sequence[Subject]) -> list[tuple[str, str]]:
    """The rows of `pass@k`, `pass^k` and `maj@k`, for the numbers of samples above 1.

    Args:
        subjects: The runs.
    """
    names = (key.removeprefix("accuracy/") for s in subjects for key in s.figures)
    found = dict.fromkeys(n for n in names if re.fullmatch(r"(pass@|pass\^|maj@)\d+", n))
    chosen = [name for name in found if not name.endswith(("@1", "^1"))]
    size = {name: int(re.split(r"[@^]", name)[1]) for name in chosen}
    return [(f"accuracy/{name}", name) for name in sorted(chosen, key=size.__getitem__)]


def group_rows(subjects: Sequence[Subject]) -> list[tuple[str, str]]:
    """The rows of accuracy by data set, difficulty, level and subject, where there are several.

    Args:
        subjects: The runs.
    """
    groups: dict[str, dict[str, str]] = {}
    for key in dict.fromkeys(key for subject in subjects for key in subject.figures):
        if match := _GROUP.fullmatch(key):
            kind, value = match[1].replace("_", " "), match[2]
            groups.setdefault(kind, {})[key] = f"{kind} {value}"
    return [row for rows in groups.values() if len(rows) > 1 for row in rows.items()]


def missed_rows(subject: Subject) -> list[tuple[str, str]]:
    """The rows of attempts that miss the form of a call, where there are any.

    Args:
        subject: The run.
    """
    return [
        (key, key.rpartition("/")[2].replace("_", " "))
        for key, figure in subject.figures.items()
        if key.startswith("use/missed/") and figure.mean
    ]


def flow_of(figures: Figures) -> dict[str, dict[Fate, int]]:
    """The number of failed calls by the kind of their error and by their fate.

    Args:
        figures: The figures of a run. The most frequent kind comes first.
    """
    flow: dict[str, dict[Fate, int]] = {}
    for key, figure in figures.items():
        match = _ERROR.fullmatch(key)
        if match and match[1] != "all" and figure.count:
            fate: Fate = match[2]  # type: ignore[assignment]  # the keys are made of the fates
            flow.setdefault(match[1], {})[fate] = round((figure.mean or 0.0) * figure.count)
    return flow


def kind_name(kind: str) -> str:
    """The name of a kind of error: the class of the exception, or else the outcome.

    Example:
        >>> kind_name("runtime_error/nameerror"), kind_name("memory_limit")
        ('NameError', 'memory limit')
        >>> kind_name("runtime_error/own.fault")
        'own.fault'
    """
    outcome, _, name = kind.partition("/")
    return _EXCEPTIONS.get(name, name) or outcome.replace("_", " ")


def flow_table(figures: Figures) -> Table:
    """The errors and what came next: a row for each kind; empty without a failed call.

    Args:
        figures: The figures of a run.
    """
    rows = []
    flow = flow_of(figures)
    for kind in (["all"] if len(flow) > 1 else []) + list(flow):
        shares = [figures[f"error/{kind}/next/{fate}"] for fate in FATES]
        name = "all errors" if kind == "all" else kind_name(kind)
        rows.append([name, f"{shares[0].count:,}", *map(value_text, shares)])
    return [["error", "failed calls", *FATE_NAMES.values()], *rows] if rows else []


def recovery_rows(subjects: Sequence[Subject]) -> Table:
    """The rows of recovery that a summary has: turns to mend an error, and accuracy after one.

    Args:
        subjects: The runs.
    """
    rows = []
    for name, words in (
        ("turns", "turns to mend an error"),
        ("accuracy", "right, of episodes with an error"),
    ):
        found = [subject.summary.recovery for subject in subjects]
        estimates: list[Estimate | None] = [getattr(r, name, None) for r in found]
        if any(estimate and estimate.count for estimate in estimates):
            cells = [_estimate(estimate, name == "accuracy") for estimate in estimates]
            rows.append([words, *(cell for pair in cells for cell in pair)])
    return rows


def _estimate(estimate: Estimate | None, share: bool) -> tuple[str, str]:
    """The text of an estimate, and its number of cases."""
    if estimate is None or estimate.interval is None:
        return "–", "0"
    form: Callable[[float], str] = _percent if share else number_text
    low, high = (form(getattr(estimate.interval, n)).removesuffix(" %") for n in ("low", "high"))
    text = f"{form(estimate.interval.mean)} [{low}, {high}]" + " †" * (estimate.count < FEW_CASES)
    return text, f"{estimate.count:,}"


def cost_table(subjects: Sequence[Subject]) -> Table:
    """Tokens by author and seconds, for an episode and for a right answer.

    Args:
        subjects: The runs. All their episodes count, also failed ones.
    """
    rows = []
    for name, total in _COSTS.items():
        cells = []
        for subject in subjects:
            values = [total(transcript) for _, transcript in subject.episodes]
            known = [value for value in values if value is not None]
            cells += _per(math.fsum(known) if len(known) == len(values) else None, subject)
        if any(cell != "–" for cell in cells):
            rows.append([name, *cells])
    heads = [h for s in subjects for h in (f"{s.title}, an episode", "a right answer")]
    return [["", *heads], *rows] if rows else []


def _per(total: float | None, subject: Subject) -> list[str]:
    """A total for an episode, and for a right answer."""
    right = sum(bool(transcript.correct) for _, transcript in subject.episodes)
    return [
        number_text(None if total is None or not number else total / number)
        for number in (len(subject.episodes), right)
    ]


def _tokens(author: str) -> Callable[[Transcript], float | None]:
    def total(transcript: Transcript) -> float | None:
        ids = [span.token_ids for span in transcript.response if span.author == author]
        if transcript.spans[0].token_ids is None:
            return None
        return sum(len(some or ()) for some in ids)

    return total


def _seconds(author: str) -> Callable[[Transcript], float | None]:
    return lambda t: math.fsum(span.seconds for span in t.response if span.author == author)


def _characters(author: str) -> Callable[[Transcript], float | None]:
    return lambda t: sum(len(span.text) for span in t.response if span.author == author)


_COSTS: dict[str, Callable[[Transcript], float | None]] = {
    "tokens that the model wrote": _tokens("model"),
    "tokens of results": _tokens("env"),
    "characters that the model wrote": _characters("model"),
    "characters of results": _characters("env"),
    "seconds of the model": _seconds("model"),
    "seconds of the interpreter": _seconds("env"),
}
"""The cost of one episode by name; `None`: it is unknown."""


def stops_table(subjects: Sequence[Subject]) -> Table:
    """The number and the share of episodes by stop reason.

    Args:
        subjects: The runs.
    """
    reasons = dict.fromkeys(r for s in subjects for r in s.summary.stop_reasons)
    order = sorted(reasons, key=lambda r: -sum(s.summary.stop_reasons.get(r, 0) for s in subjects))
    rows = []
    for reason in order:
        numbers = [s.summary.stop_reasons.get(reason, 0) for s in subjects]
        shares = [
            f"{number:,} ({_percent(number / max(len(s.episodes), 1))})"
            for number, s in zip(numbers, subjects, strict=True)
        ]
        rows.append([reason.replace("_", " "), *shares])
    return [["", *(subject.title for subject in subjects)], *rows] if rows else []
