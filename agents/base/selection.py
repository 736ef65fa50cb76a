"""Selection: which problems are trained on and in what order, which of their rollouts, and what of these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.base.records import read_episodes
from agents.base.settings import SettingsError
from retool_env.files import file_fault
from retool_env.integrations.trl import EngineRollouts, problem_dataset
from retool_env.problem import Problem, ProblemList, ProblemSource
from retool_env.rollout.engine import Group
from retool_env.training.rollouts import Sampled
from retool_env.training.rows import is_trainable
from retool_env.transcript import Transcript


class CleanRollouts(EngineRollouts):
    """Samples more rollouts than are trained on, and keeps the cleaner of the right ones; see `resample_on_correct`.

    Args:
        spare: Rollouts sampled for each that is kept.
        *args: See `EngineRollouts`.
        **kwargs: The same.
    """

    def __init__(self, spare: float, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._spare = spare

    async def sample(self, problems: Sequence[Problem], n: int, seed: Sequence[int]) -> Sampled:
        """Run more, and keep `n` of each group."""
        sampled = await super().sample(problems, math.ceil(n * self._spare - 1e-9), seed)
        chance = np.random.default_rng((*seed, len(problems)))
        for index, group in enumerate(sampled.groups):
            chosen = resample_on_correct(group, n, chance)
            kept = {id(each) for each in chosen}
            sampled.others += [t for t in group if t.scored and id(t) not in kept]
            sampled.groups[index] = chosen
        return sampled


def resample_on_correct(group: Group, n: int, chance: np.random.Generator) -> Group:
    """The `n` of a group that GRPO-RoC trains on (arXiv 2508.20722, section 3.2), in their order.

    Right and wrong ones stay in proportion, at least one of each. Wrong ones are drawn evenly, so that all ways to fail stay;
    of the right ones those stay that are cleanest, where the paper draws these the likelier and looks at their format too.
    Failed episodes, and those that a deadline cut, stay only where there are not so many others.
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
    """The share of an episode's calls that failed; 0.5 without any call (GRPO-RoC's p_err)."""
    calls = transcript.calls
    return sum(not call.ok for call in calls) / len(calls) if calls else 0.5


def chosen_ids(
    problems: ProblemSource,
    size: int,
    seed: int,
    curriculum: str = "",
    earlier: Sequence[int] = (),
) -> list[str]:
    """Ids of the problems that a run of so many draws trains on, in order.

    They are drawn at random, none again before all have been drawn. With a curriculum they are put into the order of the
    pass rates that its transcripts show, from easy to hard over the whole run; equal ones stay in random order. A run that was
    given more keeps the order that it had, and what is added goes from easy to hard again.

    Args:
        problems: The problems.
        size: Number of draws.
        seed: Of the order.
        curriculum: A file of transcripts.
        earlier: The numbers of draws that earlier starts of the run were to have.

    Raises:
        SettingsError: If there are no problems, or the curriculum's file is none, or leaves none.
    """
    if not curriculum:
        try:
            return problem_dataset(problems, size, seed)["prompt"][:]
        except ValueError as error:
            raise SettingsError(f"env: {error}") from error
    rates = pass_rates(curriculum)
    known = {problem.id for problem in (problems[i] for i in range(len(problems)))} & rates.keys()
    undecided = sorted(name for name in known if 0 < rates[name] < 1)
    if not undecided:
        raise SettingsError(
            f"curriculum: of {len(rates)} problems in {curriculum}, {len(known)} are the environment's, and none of these was "
            "got right sometimes and sometimes not: take transcripts of its training problems, several of each"
        )
    chance = np.random.default_rng(seed)
    drawn: list[str] = []
    while len(drawn) < max([size, *earlier]):
        drawn += chance.permutation(undecided).tolist()
    order: list[str] = []
    for end in (*earlier, size):
        order += sorted(drawn[len(order) : end], key=lambda name: -rates[name])
    return order[:size]


def only(problems: ProblemSource, ids: Iterable[str]) -> ProblemList:
    """Some of the problems."""
    return ProblemList(problems.get(name) for name in dict.fromkeys(ids))


def pass_rates(path: str) -> dict[str, float]:
    """The share of right ones among a file's scored transcripts of each problem, by its id.

    Raises:
        SettingsError: If there is no such file, it is not a regular one, or it holds no transcripts.
    """
    counts: dict[str, list[bool]] = {}
    if fault := file_fault(Path(path)):
        raise SettingsError(f"curriculum: {fault}")
    try:
        for transcript in read_episodes(Path(path), "delete that line", appended=True):
            if transcript.scored and transcript.correct is not None:
                counts.setdefault(transcript.problem.id, []).append(transcript.correct)
    except SettingsError as error:
        raise SettingsError(f"curriculum: {error}") from None
    return {name: sum(right) / len(right) for name, right in counts.items()}
