"""The worlds in which the intervals of recovery are measured, and the outcomes drawn from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from retool_env.metrics.causal.dose import trapezoid
from retool_env.metrics.causal.intervals import Pair

SAMPLES = 4
"""The number of samples of a prefix in an arm."""
EPISODES = 16
"""The number of episodes of a problem in an arm of the frequency protocol."""
RATES = (0.0, 0.1, 0.25, 0.5, 1.0)
"""The rates of faults of the dose protocol, with `SAMPLES` episodes each."""
USUAL = 0.02
"""The share of the implied answer without a false value."""
CALLED = 0.6
"""The share of episodes with a call."""


@dataclass(frozen=True)
class World:
    """The behaviour of a simulated model."""

    control: float
    """The mean accuracy without a fault."""
    left: float
    """The mean share of this accuracy that is left after a fault."""
    correlation: float
    """The intra-class correlation of the samples of a problem."""
    samples: int = SAMPLES
    """The number of samples of a prefix in an arm. With 1, a problem has one prefix."""
    rare: float = 0.0
    """The mean number of further calls that only the fault causes, from 0 to 1."""

    @property
    def decided(self) -> bool:
        """Whether almost all samples of a problem agree."""
        return self.correlation >= 0.9


WORLDS = tuple(
    World(control, left, correlation)
    for correlation in (0.3, 0.6)
    for control, left in (
        *((0.5, 1.0), (0.5, 0.6), (0.5, 0.05), (0.75, 0.8), (0.3, 0.7)),
        *((0.9, 1.0), (0.9, 0.8), (0.97, 1.0), (0.97, 0.95), (0.97, 0.5), (0.97, 0.03)),
        (0.03, 1.0),
    )
)
"""The worlds of the table."""
HELD_OUT = tuple(
    World(*behaviour)
    for behaviour in (
        *((0.6, 0.9, 0.45), (0.6, 0.3, 0.2), (0.4, 0.9, 0.7), (0.85, 0.6, 0.5)),
        *((0.2, 0.8, 0.4), (0.95, 0.9, 0.3), (0.93, 1.0, 0.7), (0.7, 0.02, 0.5)),
    )
)
"""Worlds that were chosen before, and not looked at, while the intervals were mended."""
DECIDED = (
    *(World(0.5, left, 1.0, samples=1) for left in (0.99, 0.97, 0.95, 0.9, 0.8, 0.05)),
    *(World(0.8, left, 1.0, samples=1) for left in (1.0, 0.97)),
    *(World(0.5, left, 0.97) for left in (0.99, 0.95, 0.8)),
    *(World(control, 0.97, 0.95) for control in (0.5, 0.8)),
    *(World(0.5, 0.9, 0.3, rare=rare) for rare in (0.01, 0.03, 0.1)),
    *(World(0.5, 0.9, 0.6, rare=rare) for rare in (0.05, 0.2)),
)
"""Worlds of models whose samples agree, and of rare further calls."""


@dataclass(frozen=True)
class DataSet:
    """The outcomes of one simulated evaluation."""

    pairs: list[Pair]
    """The prefixes: accuracy with the fault, and without."""
    calls: list[Pair]
    """The prefixes: mean number of calls after the fork, with the fault and without."""
    rare_calls: list[Pair]
    """The prefixes: mean number of calls that only the fault causes, and 0."""
    models: list[Pair]
    """The problems: fault effect of the model, and of a model of which a fault leaves more."""
    net: list[Pair]
    """The prefixes: accuracy with the fault, and after the text placebos."""
    contagion: list[Pair]
    """The prefixes: share of the implied answer after a false value, and without."""
    only_implied: list[Pair]
    """The same, of a model that never gives the implied answer without a false value."""
    gain: list[Pair]
    """The problems: accuracy with the tool, and in text only."""
    areas: list[Pair]
    """The problems: area under the dose curve, and accuracy without faults."""
    over_use: list[tuple[int, float, float]]
    """Halves of the samples of a problem whose other half shows no gain: share with a call."""
    under_use: list[tuple[int, float, float]]
    """Halves of the samples of a problem whose other half shows a gain: share without a call."""


def draw(world: World, problems: int, random: np.random.Generator) -> DataSet:
    """Draw one data set.

    Args:
        world: The behaviour.
        problems: The number of problems.
        random: The source of random numbers.
    """
    prefixes = random.integers(1, 5 if world.samples > 1 else 2, problems)
    spread = (world.correlation, world.correlation) if world.decided else (1 / 6, 1 / 21)
    control = _beta(world.control, world.correlation, problems, random)
    left = np.ones(problems) if world.left == 1 else _beta(world.left, spread[0], problems, random)
    busy = random.gamma(4.0, 0.25, problems)  # a problem's need of calls, mean 1
    index = np.repeat(np.arange(problems), prefixes)
    chance = _beta(control[index], spread[1], len(index), random)
    faulty, clean = random.binomial(world.samples, [chance * left[index], chance]) / world.samples
    placebo = random.binomial(2 * world.samples, chance) / (2 * world.samples)
    alike = world.correlation if world.decided else 0.3
    usually = _beta(USUAL, alike, problems, random)[index]
    implied = _beta(USUAL + contagion(world), world.correlation, problems, random)[index]
    taken, by_chance = random.binomial(world.samples, [implied, usually]) / world.samples
    # Whole episodes.
    levels = np.array([1 - rate * (1 - left) for rate in RATES]) * control
    accuracies = random.binomial(SAMPLES, levels) / SAMPLES
    areas = np.array(trapezoid(list(RATES))) @ accuracies
    tool, text, use = (
        random.binomial(EPISODES // 2, np.stack([share] * 2)) / (EPISODES // 2)
        for share in (control, control * left, _beta(CALLED, 0.3, problems, random))
    )  # two halves x problems
    gains = (tool - text)[::-1] > 0  # the other half selects
    halves = [(int(p), float(use[h, p])) for h in (0, 1) for p in range(problems)]
    selected = [bool(gains[h, p]) for h in (0, 1) for p in range(problems)]
    more, usual = random.poisson([SAMPLES * 2.5 * busy[index], SAMPLES * 2.0 * busy[index]])
    rare, effects, only = _more(world, prefixes, chance, left, random.spawn(1)[0])
    problem = index.tolist()
    counted = range(problems)
    return DataSet(
        _pairs(problem, faulty, clean, world.samples),
        _pairs(problem, more / SAMPLES, usual / SAMPLES, 1),
        _pairs(problem, rare, np.zeros(len(index)), 1),
        _pairs(counted, effects[0], effects[1], 1),
        _pairs(problem, faulty, placebo, 1.5 * world.samples),
        _pairs(problem, taken, by_chance, world.samples),
        _pairs(problem, only, np.zeros(len(index)), world.samples),
        _pairs(counted, tool.mean(0), text.mean(0), EPISODES),
        _pairs(counted, areas, accuracies[0], SAMPLES),
        [(p, u, EPISODES // 2) for (p, u), gain in zip(halves, selected, strict=True) if not gain],
        [(p, 1 - u, EPISODES // 2) for (p, u), gain in zip(halves, selected, strict=True) if gain],
    )


def _more(
    world: World,
    prefixes: np.ndarray[Any, Any],
    chance: np.ndarray[Any, Any],
    left: np.ndarray[Any, Any],
    random: np.random.Generator,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Further outcomes, whose random numbers are their own.

    Returns:
        The rare calls of each prefix; the fault effects of two models, 2 x problems; the share of
        the implied answer of each prefix, where the control arm never gives it.
    """
    problems, size = len(prefixes), world.samples
    index = np.repeat(np.arange(problems), prefixes)
    rare = _beta(world.rare, world.correlation, problems, random)
    calls = random.binomial(size, rare[index]) / size
    apart = world.correlation if world.decided else 1 / 6
    other = _beta(left_of_other(world), apart, problems, random)
    effects = []
    for some in (left, other):
        values = random.binomial(size, [chance * some[index], chance]) / size
        effects.append(np.bincount(index, values[0] - values[1]) / prefixes)
    implied = _beta(contagion(world), world.correlation, problems, random)[index]
    return calls, np.array(effects), random.binomial(size, implied) / size


def left_of_other(world: World) -> float:
    """The share of the accuracy that a fault leaves of the second model of a comparison."""
    return (1 + world.left) / 2


def _pairs(
    problems: Iterable[int],
    first: np.ndarray[Any, Any],
    second: np.ndarray[Any, Any],
    samples: float,
) -> list[Pair]:
    rows = zip(problems, first.tolist(), second.tolist(), strict=True)
    return [Pair(problem, a, b, samples) for problem, a, b in rows]


def contagion(world: World) -> float:
    """The share of false values that reach the answer: the more, the less accuracy is left."""
    return 0.96 * (1 - world.left)


def _beta(
    mean: float | np.ndarray[Any, Any],
    correlation: float,
    size: int,
    random: np.random.Generator,
) -> np.ndarray[Any, Any]:
    """Probabilities with a mean, and with this intra-class correlation of their outcomes."""
    weight = 1 / correlation - 1
    mean = np.clip(mean, 1e-9, 1 - 1e-9)
    if not weight:
        return (random.random(size) < mean).astype(float)
    return random.beta(mean * weight, (1 - mean) * weight, size)
