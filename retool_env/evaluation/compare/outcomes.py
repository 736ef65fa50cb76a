"""The episodes of a run, reduced to the facts that a comparison needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from retool_env.errors import DataError, SettingsError
from retool_env.evaluation.recover.protocols import PARENTS
from retool_env.evaluation.runs import Place, Run, open_run
from retool_env.metrics.accuracy import call_group
from retool_env.problem import Problem
from retool_env.transcript import Transcript

Key = tuple[str, str, str]
"""A problem: its id, its question and its reference answer."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One episode."""

    address: str
    """The name of the episode in its run."""
    sample: int
    """The number of the episode among the episodes of its problem, from 0."""
    right: bool | None
    """Whether the answer is right; `None` if the episode does not count, because it has not ended
    or the infrastructure failed."""
    group: str
    """The group of the episode by its calls, a name of `CALL_GROUPS`."""
    calls: int
    """Number of calls."""
    failed: int
    """Number of calls that did not run without error, as shown to the model."""


@dataclass(frozen=True)
class Outcomes:
    """The episodes of a run."""

    name: str
    """The letter of the run in the comparison."""
    run: Run
    """The run."""
    problems: Mapping[Key, Problem]
    """The problems, in the order of their ids and texts."""
    episodes: Mapping[Key, tuple[Outcome, ...]]
    """The episodes of each problem, in the order of their numbers."""
    facts: Mapping[str, tuple[object, ...]]
    """The protocol, the interpreter and the revision that the episodes themselves record."""

    @property
    def all(self) -> list[Outcome]:
        """All episodes."""
        return [one for some in self.episodes.values() for one in some]


def read_outcomes(path: str | Path, name: str) -> Outcomes:
    """Reads a run without its token ids.

    Of a benchmark of recovery, only the whole episodes without faults are read.

    Args:
        path: The folder or file of a run, or `RUN@STEP`.
        name: The letter of the run in the comparison.

    Raises:
        DataError: The run has no episode, or a line is damaged.
        SettingsError: A training run is named without a step.
    """
    run = open_run(path)
    if run.kind == "training":
        _check_step(run)
    return outcomes_of(run, name, run.episodes(tokens=False))


def outcomes_of(run: Run, name: str, episodes: Iterable[tuple[Place, Transcript]]) -> Outcomes:
    """Reduces the episodes of a run.

    Args:
        run: The run.
        name: The letter of the run in the comparison.
        episodes: The episodes with their places.

    Raises:
        DataError: No episode can be compared.
    """
    problems: dict[Key, Problem] = {}
    found: dict[Key, list[Outcome]] = {}
    facts: dict[str, set[object]] = {"rules.interpreter": set(), "rules.protocol": set()}
    facts["revision"] = set()
    for place, transcript in _comparable(run, episodes):
        problem = transcript.problem
        key = (problem.id, problem.question, problem.answer)
        problems.setdefault(key, problem)
        found.setdefault(key, []).append(_outcome(place, transcript))
        facts["rules.interpreter"].add(transcript.interpreter)
        facts["rules.protocol"].add(transcript.protocol)
        facts["revision"].add(transcript.revision)
    if not found:
        without = " without faults" if run.kind == "recover" else ""
        raise DataError(f"{run.path} has no episode{without}: nothing can be compared")
    return Outcomes(
        name,
        run,
        {key: problems[key] for key in sorted(problems)},
        {
            key: tuple(sorted(found[key], key=lambda one: (one.sample, one.address)))
            for key in sorted(found)
        },
        {fact: tuple(sorted(values, key=str)) for fact, values in facts.items()},
    )


def _comparable(
    run: Run, episodes: Iterable[tuple[Place, Transcript]]
) -> Iterator[tuple[Place, Transcript]]:
    """The episodes; of a benchmark of recovery the whole episodes without faults."""
    for place, transcript in episodes:
        if run.kind != "recover" or (place.protocol, place.arm) == PARENTS:
            yield place, transcript


def _outcome(where: Place, transcript: Transcript) -> Outcome:
    calls = transcript.calls
    counts = transcript.stop_reason is not None and transcript.scored
    return Outcome(
        where.address,
        where.sample,
        bool(transcript.correct) if counts else None,
        call_group(calls),
        len(calls),
        sum(not call.ok for call in calls),
    )


def _check_step(run: Run) -> None:
    if len(run.files) == 1 and run.files[0].step is not None:
        return
    steps = [file.step for file in run.files if file.step is not None]
    if not steps:
        raise SettingsError(
            f"{run.path} has no evaluation on held-out problems to compare: train with eval_every, "
            "or evaluate its checkpoints with `retool eval`"
        )
    raise SettingsError(
        f"{run.path} is a training run: name the evaluation after a step, as "
        f"{run.path}@{steps[-1]}; its steps: {', '.join(map(str, steps))}"
    )
