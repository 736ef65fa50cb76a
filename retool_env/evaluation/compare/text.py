"""The words and tables of a comparison, for the terminal and for the page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from retool_env.evaluation.compare.comparison import Comparison, Report
from retool_env.evaluation.compare.flips import Flip
from retool_env.evaluation.compare.outcomes import Outcomes
from retool_env.evaluation.compare.paired import PairedDifference
from retool_env.evaluation.compare.tool_use import GroupUse, Use
from retool_env.metrics.tables import markdown
from retool_env.printable import one_line, printable

Cells = list[list[str]]
"""The rows of a table; the first row and the first column are headings."""

SIGNIFICANT = 0.05
"""A difference is found if its p-value, adjusted by Holm's method, is below this."""

_MOST_CHARACTERS = 120
"""The most characters of a name."""
_MOST_NAMES = 5
"""The most ids that a sentence names."""
_MOST_FLIPS = 10
"""The most flipped episodes that the terminal names."""

_GROUPS = {
    "all": "all",
    "called": "with a call",
    "none": "without a call",
    "without_error": "all calls ran",
    "error_mended": "a call failed, the last call ran",
    "error_not_mended": "the last call failed",
}


def _name(text: str) -> str:
    """An id, an address, a path or a title, as a terminal shows it."""
    return one_line(text, _MOST_CHARACTERS)


def verdict(comparison: Comparison) -> str:
    """The result of a comparison in one sentence.

    Args:
        comparison: The comparison.
    """
    first, second, found = comparison.first, comparison.second, comparison.overall
    if found is None:
        return f"{second} and {first} can't be compared: no common problem has episodes that count."
    p = _p(found.adjusted)
    rest = f"{f'p {p}' if p.startswith('<') else f'p = {p}'}, {_counted(found.problems)}."
    if found.detectable is not None:
        least = _size(found.detectable)
        rest += f" Smallest detectable difference (80 % power): {least} points."
    if found.adjusted is None or found.adjusted >= SIGNIFICANT:
        text = f"No difference between {second} and {first} was found: {second} − {first} = "
        size = f"{_points(found.difference)} points {_bounds(found.low, found.high)}"
        return f"{text}{size}, {rest}"
    better, worse = (second, first) if found.difference > 0 else (first, second)
    low, high = found.low, found.high
    if found.difference < 0:
        low, high = (None if high is None else -high), (None if low is None else -low)
    size = f"{100 * abs(found.difference):.1f} points {_bounds(low, high)}"
    return f"{better} is better than {worse} by {size}, {rest}"


def _counted(problems: int) -> str:
    return f"{problems} problem{'s' * (problems != 1)}"


def family(report: Report) -> str:
    """The sentence on Holm's method; empty with one comparison.

    Args:
        report: The report.
    """
    count = len(report.comparisons)
    if count == 1:
        return ""
    return f"The p-values are adjusted by Holm's method over {count} comparisons."


def _size(detectable: float | None) -> str:
    if detectable is None:
        return "–"
    return "> 100" if detectable > 1 else f"{100 * detectable:.1f}"


def _points(value: float) -> str:
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def _bounds(low: float | None, high: float | None) -> str:
    ends = ["–" if b is None else f"{100 * b:.1f}".replace("-", "−") for b in (low, high)]
    return f"[{', '.join('0.0' if end == '−0.0' else end for end in ends)}]"


def _points_of(estimate: PairedDifference) -> str:
    return f"{_points(estimate.difference)} {_bounds(estimate.low, estimate.high)}"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def runs_table(report: Report) -> Cells:
    """The runs, a row each.

    Args:
        report: The report.
    """
    rows = [["run", "model", "path", "problems", "episodes"]]
    for one in report.runs:
        failed = sum(outcome.right is None for outcome in one.all)
        episodes = f"{len(one.all)}" + (f" ({failed} do not count)" if failed else "")
        name, path = _name(one.run.title), _name(path_of(one))
        rows.append([one.name, name, path, str(len(one.problems)), episodes])
    return rows


def path_of(one: Outcomes) -> str:
    """The path of a run as the command line takes it.

    Args:
        one: The run.
    """
    run, step = one.run, one.run.step
    return str(run.path) if step is None else f"{run.path}@{step}"


def sets_table(comparison: Comparison) -> Cells:
    """The difference on all problems and on each set.

    Args:
        comparison: The comparison.
    """
    first, second = comparison.first, comparison.second
    headings = ["problems", first, second, f"{second} − {first} [95 %]", "p", "p, by Holm"]
    rows = [["", *headings, "detectable"]]
    found = [("all", comparison.overall)]
    found += [
        (_name(f"{row.kind.replace('_', ' ')} {row.value}"), row.difference)
        for row in comparison.sets
    ]
    for name, one in found:
        if one is not None:
            ends = [_p(one.p), _p(one.adjusted), _size(one.detectable)]
            shares = [_percent(one.first), _percent(one.second)]
            rows.append([name, str(one.problems), *shares, _points_of(one), *ends])
    return rows


def bands_table(comparison: Comparison) -> Cells:
    """The accuracies by pooled accuracy.

    Args:
        comparison: The comparison.
    """
    first, second = comparison.first, comparison.second
    rows = [["pooled accuracy", "problems", first, second, f"{second} − {first}"]]
    words = {"hard": "hard: up to 1/3", "medium": "medium", "easy": "easy: above 2/3"}
    for band in comparison.bands:
        shares = [_percent(band.first), _percent(band.second)]
        change = _points(band.second - band.first)
        rows.append([words[band.name], str(band.problems), *shares, change])
    return rows


def uses_table(comparison: Comparison) -> Cells:
    """Both runs by use of the tool; empty if neither run has a call.

    Args:
        comparison: The comparison.
    """
    if not any(use.calls for row in comparison.uses for use in (row.first, row.second)):
        return []
    names = (comparison.first, comparison.second)
    rows = [["episodes", *(f"{n}: {h}" for n in names for h in ("number", "right", "calls"))]]
    return rows + [
        [_GROUPS[row.group], *_use(row.first), *_use(row.second)]
        for row in comparison.uses
        if _known(row)
    ]


def _known(row: GroupUse) -> bool:
    return bool(row.first.episodes or row.second.episodes)


def _use(use: Use) -> list[str]:
    right = _percent(use.right / use.episodes) if use.episodes else "–"
    failed = f" ({use.failed} failed)" if use.failed else ""
    return [str(use.episodes), right, f"{use.calls}{failed}"]


def notes(comparison: Comparison) -> list[str]:
    """The sentences that a reader needs to judge a comparison.

    Args:
        comparison: The comparison.
    """
    return [*_found_notes(comparison), *_problem_notes(comparison), *_setting_notes(comparison)]


def _found_notes(comparison: Comparison) -> Iterator[str]:
    found = comparison.overall
    if found is None:
        return
    if found.caution:
        yield f"Caution: {found.caution}. The interval may be too narrow."
    if found.lowest is not None and found.highest is not None:
        yield (
            f"{found.failed} episodes do not count: they failed by the infrastructure, or have not "
            "ended. If all of them had lowered the difference, it would be "
            f"{_points(found.lowest)} points; if all had raised it, {_points(found.highest)}."
        )


def _problem_notes(comparison: Comparison) -> Iterator[str]:
    matching = comparison.matching
    for name, ids in (
        (comparison.first, matching.only_first),
        (comparison.second, matching.only_second),
    ):
        if ids:
            yield f"Only {name} has {len(ids)} problems: {_named(ids)}. They are left out."
    if matching.changed:
        yield (
            f"{len(matching.changed)} problems have one id and another text: "
            f"{_named(matching.changed)}. They are not paired."
        )
    lost = len(matching.common) - (comparison.overall.problems if comparison.overall else 0)
    if lost:
        yield f"{lost} common problems have no episode that counts in one of the runs."


def _setting_notes(comparison: Comparison) -> Iterator[str]:
    if comparison.note:
        yield comparison.note
    if comparison.settings:
        names = (comparison.first, comparison.second)
        differing = "; ".join(one.text(*names) for one in comparison.settings)
        yield f"Different settings: {differing}."


def _named(ids: Sequence[str]) -> str:
    more = len(ids) - _MOST_NAMES
    return ", ".join(map(_name, ids[:_MOST_NAMES])) + (f" and {more} more" if more > 0 else "")


def flips_text(comparison: Comparison) -> str:
    """The numbers of flipped episodes in one sentence.

    Args:
        comparison: The comparison.
    """
    table, first, second = comparison.table, comparison.first, comparison.second
    return (
        f"Episodes of one problem and number: {table.second} are right in {second} only, "
        f"{table.first} in {first} only, {table.both} in both, {table.neither} in neither."
    )


def terminal(report: Report) -> str:
    """The report for the terminal: the verdicts, then the tables.

    Args:
        report: The report.
    """
    verdicts = [*map(verdict, report.comparisons), family(report)]
    parts = [markdown(runs_table(report)), "\n".join(filter(None, verdicts))]
    for one in report.comparisons:
        if len(report.comparisons) > 1:
            parts.append(f"{one.second} − {one.first}")
        tables = [sets_table(one), bands_table(one), uses_table(one)]
        parts += [markdown(cells) for cells in tables if len(cells) > 1]
        parts.append("\n".join([*notes(one), flips_text(one), *_listed(report, one)]))
    return "\n\n".join(parts)


def _listed(report: Report, comparison: Comparison) -> list[str]:
    """The first flipped episodes, and the command that shows all of them side by side."""
    lines = []
    for flip in comparison.flips[:_MOST_FLIPS]:
        right, wrong = (
            (comparison.second, comparison.first)
            if flip.gained
            else (comparison.first, comparison.second)
        )
        lines.append(f"  {addresses(flip)}: right in {right}, wrong in {wrong}")
    more = len(comparison.flips) - _MOST_FLIPS
    lines += [f"  and {more} more"] if more > 0 else []
    runs = (report.of(comparison.first), report.of(comparison.second))
    command = shlex.join(["retool", "view", *(printable(path_of(run)) for run in runs)])
    if len({run.run.kind == "recover" for run in runs}) == 1:
        command += " --query flipped:yes"  # the viewer pairs episodes of one protocol and arm
    return [*lines, f"Side by side: {command}"] if lines else []


def addresses(flip: Flip) -> str:
    """The addresses of a flipped episode in both runs; one address if they are equal.

    Args:
        flip: The flipped episode.
    """
    return " and ".join(map(_name, dict.fromkeys([flip.first, flip.second])))


def title_of(run: Outcomes) -> str:
    """The letter and the title of a run.

    Args:
        run: The run.
    """
    return f"{run.name} ({_name(run.run.title)})"
