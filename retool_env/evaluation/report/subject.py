"""The subjects of a report: each run, read once, with its figures.

| kind       | the episodes that the figures rest on                                             |
|------------|-----------------------------------------------------------------------------------|
| `eval`     | all                                                                               |
| `recover`  | the parents: whole episodes without faults                                        |
| `training` | the last evaluation on held-out problems; without one, the rollouts of the last   |
|            | bin of steps                                                                      |
| `file`     | all                                                                               |

A run may still be going on, or be empty: it is reported as far as it is.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retool_env.errors import DataError
from retool_env.evaluation.progress import Say, counted
from retool_env.evaluation.records import all_rules
from retool_env.evaluation.recover.protocols import PARENTS
from retool_env.evaluation.results import cost_of
from retool_env.evaluation.rows import price_of
from retool_env.evaluation.runs import DONE, METRICS, Place, Run, open_run
from retool_env.files import read_lines
from retool_env.metrics.figures import Figure, measure
from retool_env.metrics.summary import Summary, bins_along, summarise
from retool_env.transcript import Transcript

Episode = tuple[Place, Transcript]
"""An episode, with its place in its run."""

Figures = dict[str, Figure]
"""Figures by key."""

BINS = 10
"""The most bins of training steps."""


@dataclass(frozen=True)
class Along:
    """The figures of a training run along its steps."""

    records: list[dict[str, Any]]
    """The lines of `metrics.jsonl`."""
    rollouts: dict[tuple[int, int], Figures]
    """The figures of rollouts by the first and the last step of their bin."""
    held_out: dict[int, Figures]
    """The figures of the evaluations on held-out problems by step."""


@dataclass(frozen=True)
class Subject:
    """A run in a report."""

    run: Run
    """The run."""
    title: str
    """The name of the run in tables; it is unique in the report."""
    basis: str
    """The episodes that the figures rest on, in words."""
    episodes: list[Episode]
    """The finished episodes that the figures rest on."""
    figures: Figures
    """Their figures."""
    summary: Summary
    """Their summary."""
    warnings: list[str] = field(default_factory=list)
    """Sentences on parts that the run lacks: it is unfinished, or empty."""
    along: Along | None = None
    """The figures along the steps; `None` for other runs than trainings."""


def read_subjects(paths: Sequence[str | Path], say: Say) -> list[Subject]:
    """Reads the runs of a report.

    Args:
        paths: The folders or files of the runs, or `RUN@STEP`.
        say: Receives lines of progress.

    Raises:
        MissingFile: There is no such folder or file.
        DataError: The folder holds no run, or a record is damaged.
    """
    runs = [open_run(path) for path in paths]  # before any is read: a wrong name shows at once
    subjects = []
    for number, run in enumerate(runs, 1):
        title = f"{number}. {run.title}" if len(runs) > 1 else run.title
        read = _read_training if run.kind == "training" else _read_evaluation
        subjects.append(read(run, title, say))
    return subjects


def _read_evaluation(run: Run, title: str, say: Say) -> Subject:
    """Reads an evaluation, the parents of a benchmark of recovery, or a file."""
    episodes = _read(run, title, say)
    basis = "all episodes"
    if run.kind == "recover":
        episodes = (e for e in episodes if (e[0].protocol, e[0].arm) == PARENTS)
        basis = "the parents: whole episodes without faults"
    subject = _subject(run, title, basis, list(episodes))
    record = run.record
    if record is not None and record.status != "finished":
        total = record.problems * record.k
        done = f"{len(subject.episodes):,} of {total:,} episodes are on record"
        subject.warnings.insert(0, f"The run is unfinished ({record.status}): {done}.")
    return subject


def _read_training(run: Run, title: str, say: Say) -> Subject:
    """Reads a training run, or one of its evaluations on held-out problems."""
    rollouts: list[Episode] = []
    held_out: dict[int, list[Episode]] = {}
    for place, transcript in _read(run, title, say):
        if place.step is None:
            rollouts.append((place, transcript))
        else:
            held_out.setdefault(place.step, []).append((place, transcript))
    if run.step is not None:  # an evaluation alone
        basis = f"the evaluation on held-out problems after step {run.step}"
        return _subject(run, title, basis, [e for some in held_out.values() for e in some])
    say(f"{title}: the figures along the steps")
    records = read_metrics(run.path)
    trained = [t for _, t in rollouts if t.trained_version is not None and t.stop_reason]
    bins = _bins(trained)
    along = Along(
        records,
        {steps: figures_of(some) for steps, some in bins.items()},
        {step: figures_of([t for _, t in some]) for step, some in sorted(held_out.items())},
    )
    if held_out:
        basis = f"the evaluation on held-out problems after step {max(held_out)}"
        episodes = held_out[max(held_out)]
    elif bins:
        first, last = max(bins)
        basis = f"the rollouts of steps {first} to {last}"
        wanted = {id(transcript) for transcript in bins[first, last]}
        episodes = [episode for episode in rollouts if id(episode[1]) in wanted]
    else:
        basis, episodes = "all rollouts", rollouts
    subject = dataclasses.replace(_subject(run, title, basis, episodes), along=along)
    if not (run.path / DONE).exists():
        steps = run.config["settings"].get("steps")
        of = f" of {steps}" if isinstance(steps, int) else ""
        last = max((record["step"] for record in records), default=0)
        subject.warnings.insert(0, f"The training is unfinished: step {last}{of} is on record.")
    return subject


def _subject(run: Run, title: str, basis: str, episodes: list[Episode]) -> Subject:
    finished = [episode for episode in episodes if episode[1].stop_reason is not None]
    transcripts = [transcript for _, transcript in finished]
    warnings = []
    if len(finished) < len(episodes):
        number = len(episodes) - len(finished)
        warnings.append(f"Episodes that have not ended are left out: {number:,}.")
    if not finished:
        warnings.append("The run has no episodes: the figures of episodes are missing.")
    elif not any(transcript.scored for transcript in transcripts):
        warnings.append("No episode is scored: all failed, or were cut before their start.")
    price = None if run.record is None else price_of(run.record)
    usage = [cost_of(place.usage, price) for place, _ in finished]
    figures = {figure.key: figure for figure in measure(transcripts, usage=usage)}
    return Subject(run, title, basis, finished, figures, summarise(transcripts), warnings)


def figures_of(transcripts: Iterable[Transcript]) -> Figures:
    """The figures of the finished ones among transcripts, by key.

    Args:
        transcripts: The transcripts.
    """
    finished = [transcript for transcript in transcripts if transcript.stop_reason is not None]
    return {figure.key: figure for figure in measure(finished)}


def _bins(trained: Sequence[Transcript]) -> dict[tuple[int, int], list[Transcript]]:
    """The rollouts in bins of equal numbers of steps, by the first and the last step."""
    if not trained:
        return {}
    last = max(t.trained_version or 0 for t in trained) + 1
    width = math.ceil(last / BINS)
    ends = [*range(width, last, width), last]
    bins = zip([1, *(end + 1 for end in ends)], bins_along(trained, ends).items(), strict=False)
    return {(first, end): some for first, (end, some) in bins if some}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`; empty without the file.

    A last line without a line break is left out: its writer was killed, or still writes.

    Args:
        folder: The folder of a training run.

    Raises:
        DataError: A line is damaged; the message names it.
    """
    path, records = folder / METRICS, []
    for number, line in enumerate(read_lines(path) if path.exists() else (), 1):
        if not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
            if type(record["step"]) is not int:
                raise ValueError(f"step is {record['step']!r:.40}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number} is damaged ({error!r:.100}): remove the line, or restore it"
            ) from None
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float)}
        records.append(numbers)
    return records


def _read(run: Run, title: str, say: Say) -> Iterator[Episode]:
    """Yields the episodes without token ids, and says their number from time to time."""
    return counted(run.episodes(tokens=False), f"episodes of {title} are read", say)


def notes(subjects: Sequence[Subject]) -> list[str]:
    """The sentences that a reader of a report must not overlook.

    Args:
        subjects: The runs.
    """
    several = len(subjects) > 1
    found = [f"{s.title}: {note}" if several else note for s in subjects for note in s.warnings]
    if several and (reasons := differences(subjects)):
        found.append(f"These runs are not comparable: {'; '.join(reasons)}.")
    return found


def differences(subjects: Sequence[Subject]) -> list[str]:
    """The reasons why the runs of a report can't be compared; empty if they can.

    Args:
        subjects: The runs.
    """
    found = []
    problems = [_problems(subject) for subject in subjects]
    if any(some != problems[0] for some in problems):
        numbers = ", ".join(f"{len(some):,}" for some in problems)
        common = len(set.intersection(*problems))
        found.append(f"the problems differ: {numbers}, and {common:,} in common")
    for name, values in (
        ("revision", [{t.revision for _, t in s.episodes} for s in subjects]),
        ("protocol", [{t.protocol for _, t in s.episodes} for s in subjects]),
        ("interpreter", [{t.interpreter for _, t in s.episodes} for s in subjects]),
    ):
        known = sorted(set().union(*values))
        if len(known) > 1:
            found.append(f"the {name} differs: {', '.join(map(str, known))}")
    return found + _rules_apart(subjects)


def _problems(subject: Subject) -> set[Hashable]:
    problems = (transcript.problem for _, transcript in subject.episodes)
    return {(problem.id, problem.question, problem.answer) for problem in problems}


def _rules_apart(subjects: Sequence[Subject]) -> list[str]:
    """The settings of episodes in which records of evaluations differ.

    The episodes show the interpreter and the protocol. The prompt is compared by its text, and the
    report shows no reward.
    """
    records = [s.run.record for s in subjects if s.run.record is not None and s.run.record.rules]
    rules = [{**all_rules(record.rules), "prompt": record.prompt} for record in records]
    apart = [
        name
        for name in sorted({name for values in rules for name in values})
        if name not in ("interpreter", "protocol", "prompt_template", "reward")
        and any(values.get(name) != rules[0].get(name) for values in rules)
    ]
    return [f"the rules differ: {', '.join(apart)}"] if apart else []
