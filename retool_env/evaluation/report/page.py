"""The page of a report: the sections in the order of a reader's questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retool_env.evaluation.document import Document, check_place
from retool_env.evaluation.progress import Say
from retool_env.evaluation.recover.figures import comparisons, results
from retool_env.evaluation.recover.page import add_sections, comparable, read_results
from retool_env.evaluation.recover.records import RESULTS
from retool_env.evaluation.report import drawings
from retool_env.evaluation.report.examples import examples, facts, text_of
from retool_env.evaluation.report.subject import Figures, Subject, notes, read_subjects
from retool_env.evaluation.report.tables import (
    BILL,
    BY_CALLS,
    FUNNEL,
    NOTE,
    RECOVERY,
    USE,
    Table,
    columns_of,
    cost_table,
    figure_table,
    flow_table,
    group_rows,
    main_table,
    missed_rows,
    recovery_rows,
    sampled_rows,
    stops_table,
    value_text,
)
from retool_env.printable import printable
from retool_env.training.curves import PANELS, draw_curves

PAGE = "report.html"
"""The name of the page."""

LOGGED = {
    **{"reward": "reward", "loss": "loss", "kl": "KL", "entropy": "entropy"},
    **{"grad_norm": "norm of the gradient", "offpolicy/kl": "off-policy KL"},
}
"""The logged figures of a training that are drawn beside `PANELS`."""


def write_report(paths: Sequence[str | Path], folder: Path, say: Say) -> tuple[Path, str]:
    """Writes the report of one or several runs: `report.html`, and its pictures as PNG files.

    Args:
        paths: The folders or files of the runs, or `RUN@STEP`.
        folder: The folder of the report.
        say: Receives lines of progress.

    Returns:
        The page; and its main table as Markdown, with the notes that stand at its top.

    Raises:
        MissingFile: There is no such folder or file.
        DataError: The folder holds no run, or a record is damaged.
        SettingsError: A file of the report's name is not of an earlier report.
        MissingPackage: matplotlib is not installed.
    """
    check_place(folder / PAGE)
    subjects = read_subjects(paths, say)
    page = Document(f"Report: {', '.join(subject.title for subject in subjects)}")
    for add in (
        *(_add_runs, _add_along, _add_accuracy, _add_funnel, _add_use, _add_flow, _add_recovery),
        *(_add_costs, _add_stops, _add_examples, _add_figures),
    ):
        add(page, subjects)
    _add_recover(page, subjects, say)
    check_place(folder / PAGE, [f"{name}.png" for name in page.pictures])
    lines = [printable(note) for note in notes(subjects)]
    return page.write(folder / PAGE), "\n\n".join(filter(None, [main_table(subjects), *lines]))


def _add_runs(page: Document, subjects: Sequence[Subject]) -> None:
    for note in notes(subjects):
        page.warning(note)
    page.heading("Which runs are these?")
    rows = [["run", "kind", "path", "environment", "problems", "episodes", "figures rest on"]]
    for subject in subjects:
        run = subject.run
        env = run.record.env if run.record else run.config.get("settings", {}).get("env", {})
        rows.append(
            [
                *(subject.title, run.kind, str(run.path)),
                str(env.get("id", "–")) if isinstance(env, dict) else str(env),
                f"{len({place.problem for place, _ in subject.episodes}):,}",
                f"{len(subject.episodes):,}",
                subject.basis,
            ]
        )
    page.table(rows)


def _add_along(page: Document, subjects: Sequence[Subject]) -> None:
    trainings = [subject for subject in subjects if subject.along is not None]
    if not trainings:
        return
    page.heading("How do the figures change along the training?")
    page.paragraph(
        "Rollouts are grouped in bins of steps, and a mark stands at the middle of its bin. "
        "Evaluations on held-out problems stand at their step. Bands are 95 % intervals over "
        "problems."
    )
    if data := drawings.along(trainings):
        page.picture("along", data, "Figures along the training, with 95 % intervals.")
    for subject in trainings:
        assert subject.along is not None
        held_out = {f"step {step}": f for step, f in subject.along.held_out.items()}
        bins = {f"steps {a}–{b}": f for (a, b), f in subject.along.rollouts.items()}
        for name, columns in {"rollouts": bins, "held-out problems": held_out}.items():
            caption = f"{subject.title}: {name}" if len(trainings) > 1 else name.capitalize()
            if rows := figure_table(columns, drawings.ALONG.items(), cases=False):
                page.table([list(row) for row in zip(*rows, strict=True)], caption)
    records = {s.title: s.along.records for s in trainings if s.along}
    panels = PANELS | LOGGED
    if data := draw_curves(records, panels):
        words = "The figures that the trainer logs: single steps, and their moving mean."
        page.picture("curves", data, words)


def _add_accuracy(page: Document, subjects: Sequence[Subject]) -> None:
    columns = columns_of(subjects)
    table = figure_table(columns, [("accuracy/avg", "right (avg@k)"), *sampled_rows(subjects)])
    if not table:
        return
    page.heading("How often is the answer right?")
    page.table(table)
    _add_table(page, figure_table(columns, group_rows(subjects)), "By group of problems")
    page.paragraph(NOTE, small=True)


def _add_table(page: Document, table: Table, caption: str) -> None:
    if table:
        page.table(table, caption)


def _add_funnel(page: Document, subjects: Sequence[Subject]) -> None:
    if not any(subject.episodes for subject in subjects):
        return
    page.heading("How far does the use of the interpreter get?")
    data = drawings.funnel(subjects)
    if not data:
        page.paragraph("No scored episode has an interpreter.")
        return
    columns = columns_of(subjects)
    words = "Share of episodes that reach each stage; the lines are 95 % intervals."
    page.picture("funnel", data, words, f"{words} The table below has the same numbers.")
    page.table(figure_table(columns, FUNNEL))
    missed = dict.fromkeys(row for subject in subjects for row in missed_rows(subject))
    _add_table(page, figure_table(columns, missed), "Attempts that miss the form of a call")
    page.paragraph(NOTE, small=True)


def _add_use(page: Document, subjects: Sequence[Subject]) -> None:
    if not (table := figure_table(columns_of(subjects), USE)):
        return
    page.heading("When and how often is it used?")
    page.table(table)
    for number, subject in enumerate(subjects, 1):
        if data := drawings.histograms(subject):
            words = f"{subject.title}: calls in an episode, and the start of the first call."
            page.picture(f"use-{number}", data, words)
    page.paragraph(NOTE, small=True)


def _add_flow(page: Document, subjects: Sequence[Subject]) -> None:
    known = [s for s in subjects if (f := s.figures.get("error/calls")) and f.count]
    if not known:
        return
    page.heading("What happens after an error?")
    page.paragraph(
        "Each failed call by the kind of its error, and what came next: the next call, or the end "
        "of the episode."
    )
    for number, subject in enumerate(subjects, 1):
        if data := drawings.flow(subject):
            words = f"{subject.title}: errors (left), and what came next (right)."
            alt = f"{words} The table below has the same numbers."
            page.picture(f"flow-{number}", data, words, alt)
            page.table(flow_table(subject.figures), subject.title)
            page.paragraph(NOTE, small=True)
        elif subject in known:
            page.paragraph(f"{subject.title}: no call failed.")


def _add_recovery(page: Document, subjects: Sequence[Subject]) -> None:
    columns = columns_of(subjects)
    if not (table := figure_table(columns, RECOVERY)):
        return
    page.heading("Does it recover?")
    page.table([*table, *recovery_rows(subjects)])
    _add_table(page, figure_table(columns, BY_CALLS), "Right answers by the calls of an episode")
    page.paragraph(NOTE, small=True)


def _add_costs(page: Document, subjects: Sequence[Subject]) -> None:
    if not (table := cost_table(subjects)):
        return
    page.heading("What does it cost?")
    page.table(table, "All episodes, also failed ones; the cost of wrong answers is paid as well")
    _add_table(page, figure_table(columns_of(subjects), BILL), "Counted by the API")
    page.paragraph(
        "Seconds are summed over episodes that ran side by side, so they exceed the clock's.",
        small=True,
    )


def _add_stops(page: Document, subjects: Sequence[Subject]) -> None:
    if table := stops_table(subjects):
        page.heading("Why do episodes end?")
        page.table(table)


def _add_examples(page: Document, subjects: Sequence[Subject]) -> None:
    chosen = {subject.title: examples(subject) for subject in subjects}
    if not any(chosen.values()):
        return
    page.heading("Examples")
    page.paragraph("The first episodes of their kind, in the order of the run.")
    for title, some in chosen.items():
        for kind, (place, transcript) in some.items():
            name = f"{title}: {kind.lower()}" if len(subjects) > 1 else kind
            with page.details(f"{name}: {place.address}"):
                page.paragraph(facts(transcript))
                page.verbatim(text_of(transcript), f"{name}: {place.address}")


def _add_figures(page: Document, subjects: Sequence[Subject]) -> None:
    if not any(subject.episodes for subject in subjects):
        return
    page.heading("All figures")
    for subject in subjects:
        with page.details(f"All figures of {subject.title}, with their definitions"):
            page.table(_all_rows(subject.figures))


def _all_rows(figures: Figures) -> Table:
    head = ["figure", "mean [95 %]", "n", "problems", "meaning"]
    return [
        head,
        *(
            [key, value_text(f), f"{f.count:,}", f"{f.problems:,}", f.definition]
            for key, f in figures.items()
        ),
    ]


def _add_recover(page: Document, subjects: Sequence[Subject], say: Say) -> None:
    """Adds the sections of the page of `retool recover`."""
    folders = [subject.run.path for subject in subjects if subject.run.kind == "recover"]
    if not folders:
        return
    say("the figures of recovery from faults")
    # An unfinished benchmark has no results yet.
    found = [
        read_results(folder) if (folder / RESULTS).exists() else results(folder)
        for folder in folders
    ]
    page.heading("How does it recover from injected faults?")
    add_sections(page, found, [] if comparable(found) else comparisons(folders))
