"""Folders of small evaluations with given verdicts, to compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.episodes import CODE, NAME, OK, episode
from helpers.run_folders import write_record
from retool_env.evaluation.compare.outcomes import Outcome, Outcomes
from retool_env.evaluation.identity import ModelIdentity
from retool_env.evaluation.records import EpisodeRecord, EvalRecord, rules_to_json
from retool_env.evaluation.runs import Run, RunFile
from retool_env.problem import Problem
from retool_env.rules import Rules
from retool_env.transcript import StopReason, Transcript

Verdicts = Mapping[str, Sequence[bool | None]]
"""The verdicts of the samples of each problem; `None`: an infrastructure failure."""


def problem_of(name: str, **metadata: Any) -> Problem:
    """The problem with an id."""
    return Problem(name, f"Question {name}?", "42", metadata)


def ended(problem: Problem, right: bool | None, calls: str = "") -> Transcript:
    """An episode with a verdict.

    Args:
        problem: The problem.
        right: The verdict; `None`: an infrastructure failure.
        calls: A letter for each call: `o` for a call that ran, `x` for a failed one.
    """
    reason = StopReason.INFRASTRUCTURE if right is None else StopReason.ANSWERED
    turns = [(CODE, OK if call == "o" else NAME) for call in calls]
    made = episode(problem.id, reason, *turns, "<answer>42</answer>", correct=bool(right))
    return dataclasses.replace(made, problem=problem)


def a_record(name: str = "run", **changes: Any) -> EvalRecord:
    """The record of an evaluation."""
    rules = {**rules_to_json(Rules()), **changes.pop("rules", {})}
    settings: dict[str, Any] = {
        **{"env": "ReTool-Arithmetic-v0", "settings": {}, "rules": rules, "prompt": "{query}"},
        **{"problems": 1, "fingerprint": "", "sampling": {"temperature": 1.0}, "k": 1, "seed": 0},
    }
    model = ModelIdentity(f"models/{name}", "hub")
    return EvalRecord(name, model, **{**settings, **changes})


def write_run(
    folder: Path, episodes: Sequence[tuple[int, Transcript]], record: EvalRecord | None = None
) -> Path:
    """Writes the folder of an evaluation.

    Args:
        folder: The folder.
        episodes: The number and the transcript of each episode.
        record: The record; by default of a model with the folder's name.
    """
    records = [EpisodeRecord("m", made.problem.id, sample, 0, made) for sample, made in episodes]
    return write_record(folder, record or a_record(folder.name), records)


def write_verdicts(folder: Path, verdicts: Verdicts, record: EvalRecord | None = None) -> Path:
    """Writes the folder of an evaluation with these verdicts, without calls."""
    episodes = [
        (sample, ended(problem_of(name), right))
        for name, some in verdicts.items()
        for sample, right in enumerate(some)
    ]
    return write_run(folder, episodes, record)


def outcomes(name: str, verdicts: Verdicts, **metadata: Mapping[str, Any]) -> Outcomes:
    """A run in memory with these verdicts.

    Args:
        name: The letter of the run.
        verdicts: The verdicts.
        metadata: The values of a field of the metadata by the problem's id.
    """
    problems = {
        key: Problem(key, "?", "1", {field: values[key] for field, values in metadata.items()})
        for key in sorted(verdicts)
    }
    return Outcomes(
        name,
        Run(Path(name), "file", name, (RunFile(Path(name)),)),
        {(key, "?", "1"): problem for key, problem in problems.items()},
        {
            (key, "?", "1"): tuple(
                Outcome(f"{key}/{n}", n, right, "none", 0, 0)
                for n, right in enumerate(verdicts[key])
            )
            for key in problems
        },
        {},
    )
