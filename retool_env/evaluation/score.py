"""Scores: the answers of a recorded run, graded anew by another grader. No model is asked.

The record itself never changes. An episode that was graded gets the verdict of the grader; an
episode without an answer stays wrong, and an episode that is not scored stays without a verdict.
A grader's error on an episode is kept with the episode, which then has no new verdict and is left
out of the figures after.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retool_env.errors import GraderUnavailable, SettingsError
from retool_env.evaluation.rows import clean
from retool_env.evaluation.runs import Run
from retool_env.files import file_fault
from retool_env.grading import extract_boxed, is_equivalent
from retool_env.metrics.figures import Figure, measure
from retool_env.provenance import REVISION
from retool_env.transcript import StopReason, Transcript

SCHEMA = 1
"""The version of the format of `scores-NAME.json`."""

Grade = Callable[[str, str], bool]
"""A grader: whether an answer is right, given the answer and the reference answer."""


def exact(answer: str, gold: str) -> bool:
    """Whether two texts are equal, apart from the spaces around them."""
    return answer.strip() == gold.strip()


def unboxed(grade: Grade) -> Grade:
    r"""A grader that gets the content of an answer's last `\boxed{...}`.

    An answer without a box reaches the grader as it is.

    Args:
        grade: The grader.

    Example:
        >>> exact(r"\boxed{42}", "42"), unboxed(exact)(r"\boxed{42}", "42")
        (False, True)
    """

    def graded(answer: str, gold: str) -> bool:
        content = extract_boxed(answer)
        return grade(answer if content is None else content, gold)

    return graded


GRADERS: dict[str, Grade] = {"math": is_equivalent, "exact": unboxed(exact)}
"""The graders with a name: the environment's own grader as it is today, and equal texts."""


def load_grader(name: str) -> tuple[str, Grade]:
    """The grader of a name.

    Args:
        name: A name of `GRADERS`, or `file.py:function`, a function of an answer, without its box,
            and a reference answer.

    Returns:
        A short name for files and tables, and the grader.

    Raises:
        SettingsError: The grader is unknown, or its file can't be loaded.
    """
    if name in GRADERS:
        return name, GRADERS[name]
    source, colon, function = name.rpartition(":")
    if not colon or not source.endswith(".py"):
        known = ", ".join(GRADERS)
        raise SettingsError(f"unknown grader {name!r:.200}: take {known}, or name file.py:function")
    if fault := file_fault(source):
        raise SettingsError(f"--grader {name}: {fault}")
    grade = getattr(_module(Path(source)), function, None)
    if not callable(grade):
        raise SettingsError(f"--grader {name}: {source} defines no function {function!r}")
    return function, unboxed(grade)


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"_grader_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # because the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their types there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise SettingsError(f"{path} can't be loaded: {error!r:.200}") from error
    return module


@dataclass(frozen=True)
class Rescored:
    """An episode that was graded anew."""

    address: str
    """The address of the episode."""
    group: str
    """The part of the run whose figures the episode belongs to; empty: the whole run."""
    transcript: Transcript
    """The episode as recorded."""
    verdict: bool | None
    """The new verdict; `None` for an episode that is not scored, and after an error."""
    error: str = ""
    """The error of the grader on this episode."""

    @property
    def changed(self) -> bool:
        """Whether the new verdict differs from the recorded one."""
        return not self.error and self.verdict != self.transcript.correct

    def to_json(self) -> dict[str, Any]:
        """The verdicts as plain JSON values."""
        transcript = self.transcript
        return clean(
            {
                "address": self.address,
                "problem": transcript.problem.id,
                "answer": transcript.answer,
                "gold": transcript.problem.answer,
                "before": transcript.correct,
                "after": self.verdict,
                "error": self.error or None,
            }
        )


def rescored(run: Run, grade: Grade, name: str) -> Iterator[Rescored]:
    """Grades the finished episodes of a run anew.

    Args:
        run: The run.
        grade: The grader.
        name: The grader's name, for errors.

    Raises:
        SettingsError: The grader returned something else than `True` or `False`.
        GraderUnavailable: The environment's own grader can't start.
        DataError: A record is damaged.
    """
    for place, transcript in run.episodes(tokens=False):
        if transcript.stop_reason is None:
            continue
        answer, error = transcript.answer, ""
        verdict: bool | None = False if transcript.scored else None
        if answer is not None and transcript.stop_reason is StopReason.ANSWERED:
            verdict, error = _graded(place.address, answer, transcript.problem.answer, grade, name)
        group = _group(place.protocol, place.arm, place.step)
        yield Rescored(place.address, group, transcript, verdict, error)


def _group(protocol: str, arm: str, step: int | None) -> str:
    if arm:
        return f"{protocol}/{arm}"
    return "" if step is None else f"step-{step}"


def _graded(
    address: str, answer: str, gold: str, grade: Grade, name: str
) -> tuple[bool | None, str]:
    """The verdict of a grader, and its error."""
    try:
        verdict = grade(answer, gold)
    except GraderUnavailable:
        raise
    except (Exception, SystemExit) as error:  # `sys.exit()` would end the command without a word
        return None, f"{error!r:.200}"
    if not isinstance(verdict, bool):
        raise SettingsError(
            f"the grader {name} returned {verdict!r:.60} on {address}: it must return True or False"
        )
    return verdict, ""


@dataclass(frozen=True)
class Scores:
    """The figures of one part of a run before and after."""

    group: str
    """The part of the run: `PROTOCOL/ARM`, `step-STEP`, or empty for the whole run."""
    episodes: int
    """Number of finished episodes."""
    changed: int
    """Number of episodes whose verdict changed."""
    errors: int
    """Number of episodes on which the grader failed."""
    before: list[Figure]
    """The figures of the recorded verdicts."""
    after: list[Figure]
    """The figures of the new verdicts, without the episodes on which the grader failed."""


def scores(episodes: Iterable[Rescored]) -> list[Scores]:
    """Computes the figures before and after, for each part of a run.

    Args:
        episodes: The episodes of a run, graded anew.
    """
    groups: dict[str, list[Rescored]] = {}
    for episode in episodes:
        groups.setdefault(episode.group, []).append(episode)
    return [
        Scores(
            group,
            len(members),
            sum(member.changed for member in members),
            sum(bool(member.error) for member in members),
            measure([member.transcript for member in members]),
            measure([_with_verdict(member) for member in members if not member.error]),
        )
        for group, members in groups.items()
    ]


def _with_verdict(episode: Rescored) -> Transcript:
    return dataclasses.replace(episode.transcript, correct=episode.verdict)


def to_json(run: Run, grader: str, episodes: list[Rescored], parts: list[Scores]) -> dict[str, Any]:
    """The content of `scores-NAME.json`.

    Args:
        run: The run.
        grader: The grader as named by the caller.
        episodes: The episodes, graded anew.
        parts: The figures of `scores`.
    """
    return {
        "schema": SCHEMA,
        "run": str(run.path),
        "grader": grader,
        "revision": REVISION,
        "figures": [
            {
                "group": part.group,
                "before": [figure.to_json() for figure in part.before],
                "after": [figure.to_json() for figure in part.after],
            }
            for part in parts
        ],
        "episodes": [episode.to_json() for episode in episodes],
    }


def default_path(run: Run, name: str) -> Path:
    """The path of the scores: in the folder of a run, and beside a file.

    Args:
        run: The run.
        name: The short name of the grader.
    """
    if run.kind == "file":
        return run.path.with_name(f"{run.path.name}.scores-{name}.json")
    at = "" if run.step is None else f"@{run.step}"
    return run.path / f"scores-{name}{at}.json"
