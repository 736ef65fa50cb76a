"""Selection: the problems of a run, their order, and the rollouts that are trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.base.records import read_episodes
from agents.base.settings import SettingsError, prefixed
from retool_env.files import file_fault
from retool_env.integrations.trl import EngineRollouts, problem_dataset
from retool_env.problem import Problem, ProblemList, ProblemSource
from retool_env.rollout.engine import Group
from retool_env.training.rollouts import Rollouts, Sampled
from retool_env.training.rows import is_trainable
from retool_env.transcript import Transcript


class CleanRollouts(Rollouts):
    """Samples spare rollouts, and keeps the right ones with the fewest failed calls.

    `resample_on_correct` chooses the rollouts.

    Args:
        spare: The number of sampled rollouts for each rollout that is kept, at least 1.
        *args: The arguments of `Rollouts`.
        **kwargs: The keyword arguments of `Rollouts`.
    """

    def __init__(self, spare: float, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._spare = spare

    async def sample(self, problems: Sequence[Problem], n: int, seed: Sequence[int]) -> Sampled:
        """Sample spare rollouts, and keep `n` of each group.

        Args:
            problems: The problems.
            n: The number of rollouts of each problem that are kept.
            seed: The seed of sampling and of the choice.
        """
        sampled = await super().sample(problems, math.ceil(n * self._spare - 1e-9), seed)
        chance = np.random.default_rng((*seed, len(problems)))
        for index, group in enumerate(sampled.groups):
            chosen = resample_on_correct(group, n, chance)
            kept = {id(t) for t in chosen}
            sampled.others += [t for t in group if t.scored and id(t) not in kept]
            sampled.groups[index] = chosen
        return sampled


class CleanEngineRollouts(CleanRollouts, EngineRollouts):
    """`CleanRollouts` as a `rollout_func` of TRL."""


def resample_on_correct(group: Group, n: int, chance: np.random.Generator) -> Group:
    """Choose `n` episodes of a group as GRPO-RoC does (arXiv 2508.20722, section 3.2).

    The shares of right and wrong episodes stay, with at least one of each. Wrong episodes are drawn
    at random, so that all kinds of failures stay. Of the right episodes the cleanest stay; the
    paper instead draws clean episodes with a higher probability, and also rates their format.
    Episodes that failed or were cut by a deadline stay only if there are fewer than `n` other
    episodes.

    Args:
        group: The episodes of a problem.
        n: The number of episodes to keep.
        chance: The random generator.

    Returns:
        The chosen episodes, in the order of the group.
    """
    order = chance.permutation(len(group)).tolist()
    right = sorted(
        (i for i in order if is_trainable(group[i]) and group[i].correct),
        key=lambda i: uncleanness(group[i]),
    )
    wrong = [i for i in order if is_trainable(group[i]) and not group[i].correct]
    failed = [i for i in order if not is_trainable(group[i])]
    if len(right) + len(wrong) <= n:
        return [group[i] for i in sorted([*right, *wrong, *failed][:n])]
    share = round(n * len(right) / (len(right) + len(wrong)))
    share = min(max(share, min(len(right), 1)), n - min(len(wrong), 1))
    return [group[i] for i in sorted(right[:share] + wrong[: n - share])]


def uncleanness(transcript: Transcript) -> float:
    """The share of failed calls in an episode, GRPO-RoC's p_err; 0.5 without a call."""
    calls = transcript.calls
    return sum(not call.ok for call in calls) / len(calls) if calls else 0.5


def chosen_ids(
    problems: ProblemSource, size: int, seed: int, curriculum: str = "", earlier: Sequence[int] = ()
) -> list[str]:
    """Draw the problems of a run.

    They are drawn at random, and no problem is drawn again before all have been drawn. With a
    curriculum only its undecided problems are drawn, and sorted by their pass rate, from easy to
    hard over the whole run. A run that is made longer keeps its order; the added problems go from
    easy to hard again.

    Args:
        problems: The environment's problems.
        size: The number of draws.
        seed: The seed of the order.
        curriculum: A file of transcripts that shows the pass rates; empty: no curriculum.
        earlier: For each earlier length of the run, its number of draws.

    Returns:
        The ids of the problems, in the order in which the run trains on them.

    Raises:
        SettingsError: If there are no problems, or the curriculum's file can't be read or has no
            undecided problem.
    """
    if not curriculum:
        with prefixed("env"):
            return problem_dataset(problems, size, seed)["prompt"][:]
    rates = pass_rates(curriculum)
    known = {problem.id for problem in (problems[i] for i in range(len(problems)))} & rates.keys()
    undecided = sorted(name for name in known if 0 < rates[name] < 1)
    if not undecided:
        raise SettingsError(
            f"curriculum: {curriculum} has {len(rates)} problems, {len(known)} of them from this "
            "environment, and none with both right and wrong transcripts: use several transcripts "
            "of each training problem"
        )
    chance = np.random.default_rng(seed)
    drawn: list[str] = []
    while len(drawn) < max([size, *earlier]):
        drawn += chance.permutation(undecided).tolist()
    order: list[str] = []
    for end in (*earlier, size):
        order += sorted(drawn[len(order) : end], key=lambda name: -rates[name])
    return order[:size]


def subset(problems: ProblemSource, ids: Iterable[str]) -> ProblemList:
    """The problems with these ids; a repeated id counts once."""
    return ProblemList(problems.get(name) for name in dict.fromkeys(ids))


def pass_rates(path: str) -> dict[str, float]:
    """For each problem's id in a file, the share of its scored transcripts that are right.

    Args:
        path: A file of transcripts.

    Raises:
        SettingsError: If the file is missing or not a regular file, or a line can't be read.
    """
    counts: dict[str, list[bool]] = {}
    if fault := file_fault(Path(path)):
        raise SettingsError(f"curriculum: {fault}")
    with prefixed("curriculum"):
        for transcript in read_episodes(Path(path), "delete that line", appended=True):
            if transcript.scored and transcript.correct is not None:
                counts.setdefault(transcript.problem.id, []).append(transcript.correct)
    return {name: sum(right) / len(right) for name, right in counts.items()}
