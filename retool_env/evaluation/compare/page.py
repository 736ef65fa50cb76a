"""The files of a comparison: `compare.json`, `compare.html` and `view.html`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retool_env.evaluation.compare.comparison import Comparison, Report
from retool_env.evaluation.compare.flips import Flip
from retool_env.evaluation.compare.picture import draw
from retool_env.evaluation.compare.text import (
    addresses,
    bands_table,
    family,
    flips_text,
    notes,
    runs_table,
    sets_table,
    title_of,
    uses_table,
    verdict,
)
from retool_env.evaluation.document import Document, check_place
from retool_env.evaluation.folder import replace_json

JSON, PAGE, VIEW = "compare.json", "compare.html", "view.html"

_MOST_LINKS = 500
"""The most flipped episodes of a comparison that the page lists; `compare.json` has all."""


def write_files(report: Report, folder: Path) -> list[Path]:
    """Writes the files of a comparison.

    Args:
        report: The report.
        folder: The folder of the files. Files of an earlier comparison are replaced.

    Returns:
        The files. `view.html` is left out if no episode flipped.

    Raises:
        SettingsError: A file of this name is not of an earlier comparison.
        MissingPackage: matplotlib is not installed.
    """
    names = [f"differences-{one.first}-{one.second}.png" for one in report.comparisons]
    check_place(folder / PAGE, [JSON, *names])  # `write_view` checks its own file
    pictures = {
        f"differences-{one.first}-{one.second}": draw(one)
        for one in report.comparisons
        if one.overall is not None
    }
    folder.mkdir(parents=True, exist_ok=True)
    views = write_view(report, folder / VIEW)
    page = _page(report, pictures).write(folder / PAGE)
    replace_json(folder / JSON, report.to_json())
    return [page, *views, folder / JSON]


def write_view(report: Report, path: Path) -> list[Path]:
    """Writes the viewer's page with the flipped episodes of all runs.

    Args:
        report: The report.
        path: The file.

    Returns:
        The files; empty if no episode flipped.
    """
    from retool_env.evaluation.view.static import write_static

    flipped: dict[str, set[str]] = {one.name: set() for one in report.runs}
    for one in report.comparisons:
        flipped[one.first] |= {flip.first for flip in one.flips}
        flipped[one.second] |= {flip.second for flip in one.flips}
    if not any(flipped.values()):
        return []
    return write_static([one.run for one in report.runs], path, list(flipped.values()))


def _page(report: Report, pictures: dict[str, bytes]) -> Document:
    page = Document(f"Comparison of {', '.join(map(title_of, report.runs))}")
    page.paragraph(
        "Runs on the same problems, paired by problem. A positive difference means that the "
        "second run is better. The interval covers the true difference with a probability of 95 %. "
        + family(report)
    )
    page.table(runs_table(report))
    if len(report.comparisons) > 1:
        page.listing(map(verdict, report.comparisons))
    for one in report.comparisons:
        page.heading(f"{title_of(report.of(one.second))} against {title_of(report.of(one.first))}")
        _part(page, report, one, pictures)
    return page


def _part(page: Document, report: Report, one: Comparison, pictures: dict[str, bytes]) -> None:
    page.paragraph(verdict(one))
    if some := notes(one):
        page.listing(some)
    name = f"differences-{one.first}-{one.second}"
    if name in pictures:
        caption = (
            f"The difference of each problem, {one.second} − {one.first}, sorted. The line is the "
            "mean, the band its 95 % interval."
        )
        page.picture(name, pictures[name], caption, f"{caption} {verdict(one)}")
    page.table(sets_table(one), "By set of problems")
    page.table(bands_table(one), "By pooled accuracy of both runs")
    page.paragraph(
        "Descriptive only: the runs themselves decide the band of a problem, so that differences "
        "are small in the outer bands.",
        small=True,
    )
    if cells := uses_table(one):
        page.table(cells, "By use of the interpreter")
        page.paragraph(
            "Descriptive only: the model itself chooses when it calls, so that these figures do "
            "not show whether calls help.",
            small=True,
        )
    page.heading("Flipped episodes", 3)
    page.paragraph(f"{flips_text(one)} Episodes are paired by their number alone.")
    for gained, run in ((True, one.second), (False, one.first)):
        flips = [flip for flip in one.flips if flip.gained is gained]
        if flips:
            with page.details(f"Right in {run} only: {len(flips)}"):
                page.links(_links(report, one, flips[:_MOST_LINKS]))
                if len(flips) > _MOST_LINKS:
                    page.paragraph(f"{JSON} lists all {len(flips)} episodes.", small=True)


def _links(report: Report, one: Comparison, flips: Sequence[Flip]) -> list[tuple[str, str]]:
    """The flipped episodes, each with a link to both episodes side by side."""
    from retool_env.evaluation.view.static import link

    first, second = (
        next(i for i, run in enumerate(report.runs) if run.name == name)
        for name in (one.first, one.second)
    )
    return [
        (
            addresses(flip),
            f"{VIEW}{link(first, flip.first, (second, flip.second))}",
        )
        for flip in flips
    ]
