"""Measures the intervals of the figures of recovery on simulated outcomes.

    python -m benchmarks.coverage
    python -m benchmarks.coverage --sets 200 --problems 20 60
    python -m benchmarks.coverage --held-out
    python -m benchmarks.coverage --decided --problems 20 30 60 200
    python -m benchmarks.coverage --out benchmarks/results/coverage.json

A *world* states how a model behaves: its accuracy without a fault, the share of that accuracy which
is left after a fault, and how alike the episodes of a problem are (the intra-class correlation). In
each of `--sets` data sets, problems are drawn from the world, with one to four prefixes and four
samples of an arm. The figures are computed by the library's functions. The true value is known.

For each figure, world and number of problems, the table shows among the data sets in which the
figure is *shown*:

- `covered`: the share of the 95 % intervals that hold the true value.
- `width`: their mean width, divided by the width of the exact interval. The exact interval knows
  the standard deviation of the figure over all data sets: it is 1.96 standard deviations to both
  sides. Near 0 and 1 the exact interval of a share is Wilson's, with the true number of independent
  samples, since the distribution is skewed there.
- `bar`: whether 93.0 to 98.5 % are covered and the width is at most 1.25. A row is marked `edge` if
  a share of the figure is expected within five cases of 0 or 1, where the cases of a problem count
  once. The bar is then: at least 93.0 % are covered, and the width is at most 1.6.

The worlds of `--decided` are models whose samples of a problem agree, as with greedy sampling or
with one sample, and models that rarely call once more. Their figures rest on a few cases, whose
distribution is discrete, so no exact interval is known. The bar is that at least 93.0 % are
covered, whatever the width.

With 1,000 data sets, the standard error of a coverage of 95 % is 0.7 points.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts.results import write_results
from retool_env.metrics.causal.comparison import paired_mean
from retool_env.metrics.causal.dose import trapezoid
from retool_env.metrics.causal.figure import SHOWN_FROM
from retool_env.metrics.causal.frequency import LEAST_SELECTED
from retool_env.metrics.causal.intervals import (
    Pair,
    difference,
    hardly_differ,
    hardly_vary,
    mean_difference,
    mean_share,
    ratio,
    share,
)
from retool_env.metrics.estimators import NEAR_THE_EDGE, ClusterMean
from retool_env.metrics.intervals import wilson

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
    gain: list[Pair]
    """The problems: accuracy with the tool, and in text only."""
    areas: list[tuple[int, float, float]]
    """The problems: area under the dose curve."""
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
    implied = _beta(USUAL + _contagion(world), world.correlation, problems, random)[index]
    taken, by_chance = random.binomial(world.samples, [implied, usually]) / world.samples
    # Whole episodes.
    levels = np.array([1 - rate * (1 - left) for rate in RATES]) * control
    areas = np.array(trapezoid(list(RATES))) @ (random.binomial(SAMPLES, levels) / SAMPLES)
    tool, text, use = (
        random.binomial(EPISODES // 2, np.stack([share] * 2)) / (EPISODES // 2)
        for share in (control, control * left, _beta(CALLED, 0.3, problems, random))
    )  # two halves x problems
    gains = (tool - text)[::-1] > 0  # the other half selects
    halves = [(int(p), float(use[h, p])) for h in (0, 1) for p in range(problems)]
    selected = [bool(gains[h, p]) for h in (0, 1) for p in range(problems)]
    more, usual = random.poisson([SAMPLES * 2.5 * busy[index], SAMPLES * 2.0 * busy[index]])
    rare, effects = _more(world, prefixes, chance, left, random.spawn(1)[0])
    problem = index.tolist()
    counted = range(problems)
    return DataSet(
        _pairs(problem, faulty, clean, world.samples),
        _pairs(problem, more / SAMPLES, usual / SAMPLES, 1),
        _pairs(problem, rare, np.zeros(len(index)), 1),
        _pairs(counted, effects[0], effects[1], 1),
        _pairs(problem, faulty, placebo, 1.5 * world.samples),
        _pairs(problem, taken, by_chance, world.samples),
        _pairs(counted, tool.mean(0), text.mean(0), EPISODES),
        [(p, float(area), SAMPLES) for p, area in enumerate(areas)],
        [(p, u, EPISODES // 2) for (p, u), gain in zip(halves, selected, strict=True) if not gain],
        [(p, 1 - u, EPISODES // 2) for (p, u), gain in zip(halves, selected, strict=True) if gain],
    )


def _more(
    world: World,
    prefixes: np.ndarray[Any, Any],
    chance: np.ndarray[Any, Any],
    left: np.ndarray[Any, Any],
    random: np.random.Generator,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The rare calls of each prefix, and the fault effects of two models, 2 x problems."""
    problems, size = len(prefixes), world.samples
    index = np.repeat(np.arange(problems), prefixes)
    rare = _beta(world.rare, world.correlation, problems, random)
    calls = random.binomial(size, rare[index]) / size
    apart = world.correlation if world.decided else 1 / 6
    other = _beta(_left_of_other(world), apart, problems, random)
    effects = []
    for some in (left, other):
        values = random.binomial(size, [chance * some[index], chance]) / size
        effects.append(np.bincount(index, values[0] - values[1]) / prefixes)
    return calls, np.array(effects)


def _left_of_other(world: World) -> float:
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


def _contagion(world: World) -> float:
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


@dataclass(frozen=True)
class Target:
    """A figure of the table."""

    name: str
    """The figure's name."""
    estimate: Callable[[DataSet], ClusterMean | None]
    """The figure of a data set; `None` if it is not shown."""
    truth: Callable[[World], float]
    """The true value."""
    shares: Callable[[World], tuple[float, ...]]
    """The shares that the figure rests on."""


def _control(data: DataSet) -> ClusterMean:
    return share((pair.problem, pair.second, pair.samples) for pair in data.pairs)


def _ratio_if_shown(data: DataSet) -> ClusterMean | None:
    low = _control(data).low
    hidden = low is None or low < SHOWN_FROM or hardly_differ(data.pairs)
    return None if hidden else ratio(data.pairs)


def _difference_if_shown(pairs: list[Pair]) -> ClusterMean | None:
    return None if hardly_differ(pairs) else difference(pairs)


def _use_if_shown(rows: list[tuple[int, float, float]]) -> ClusterMean | None:
    found = share(rows)
    return found if found.clusters >= LEAST_SELECTED else None


def _number_if_shown(pairs: list[Pair]) -> ClusterMean | None:
    return None if hardly_vary(pairs) else mean_difference(pairs)


def _comparison_if_shown(pairs: list[Pair]) -> ClusterMean | None:
    found = paired_mean(pairs)
    return None if found.low is None else found


TARGETS = (
    Target("control accuracy", _control, lambda w: w.control, lambda w: (w.control,)),
    Target(
        "fault accuracy",
        lambda data: share((pair.problem, pair.first, pair.samples) for pair in data.pairs),
        lambda w: w.control * w.left,
        lambda w: (w.control * w.left,),
    ),
    Target(
        "fault effect",
        lambda data: _difference_if_shown(data.pairs),
        lambda w: w.control * (w.left - 1),
        lambda w: (w.control, w.control * w.left),
    ),
    Target(
        "recovery ratio",
        _ratio_if_shown,
        lambda w: w.left,
        lambda w: (w.control, w.control * w.left),
    ),
    Target(
        "net of placebos",
        lambda data: _difference_if_shown(data.net),
        lambda w: w.control * (w.left - 1),
        lambda w: (w.control, w.control * w.left),
    ),
    Target(
        "contagion",
        lambda data: _difference_if_shown(data.contagion),
        _contagion,
        lambda w: (USUAL + _contagion(w), USUAL),
    ),
    Target(
        "tool gain",
        lambda data: _difference_if_shown(data.gain),
        lambda w: w.control * (1 - w.left),
        lambda w: (w.control, w.control * w.left),
    ),
    Target(
        "dose area",
        lambda data: mean_share(data.areas),
        lambda w: w.control * (1 + w.left) / 2,
        lambda w: (w.control * (1 + w.left) / 2,),
    ),
    Target("over-use", lambda data: _use_if_shown(data.over_use), lambda w: CALLED, lambda w: ()),
    Target(
        "under-use", lambda data: _use_if_shown(data.under_use), lambda w: 1 - CALLED, lambda w: ()
    ),
    Target("calls more", lambda data: _number_if_shown(data.calls), lambda w: 0.5, lambda w: ()),
    Target(
        "two models",
        lambda data: _comparison_if_shown(data.models),
        lambda w: w.control * (w.left - _left_of_other(w)),
        lambda w: (w.control, w.control * w.left),
    ),
)
"""The figures of the table."""
RARE_CALLS = Target(
    "rare calls", lambda data: _number_if_shown(data.rare_calls), lambda w: w.rare, lambda w: ()
)
"""The figure of worlds with rare calls; it takes the place of the others."""


def measure(target: Target, world: World, problems: int, data: list[DataSet]) -> dict[str, Any]:
    """The row of a figure, a world and a number of problems.

    Args:
        target: The figure.
        world: The world.
        problems: The number of problems.
        data: The data sets.
    """
    truth = target.truth(world)
    estimates = [estimate for one in data if (estimate := target.estimate(one)) is not None]
    means = np.array([_number(e.mean) for e in estimates])
    lows = np.array([_number(e.low) for e in estimates])
    highs = np.array([_number(e.high) for e in estimates])
    # 1 to 4 prefixes a problem: a problem counts sum(k)^2 / (C * sum(k^2)) = 6.25 / 7.5.
    worth = problems * 6.25 / 7.5
    edge = any(worth * min(p, 1 - p) < NEAR_THE_EDGE for p in target.shares(world))
    row = {"figure": target.name, **asdict(world), "problems": problems, "edge": edge}
    row["shown"] = len(estimates)
    if len(estimates) < len(data) / 10:  # too few to judge
        return {**row, "covered": None, "width": None, "holds": None}
    covered = float(np.mean((lows <= truth + 1e-12) & (truth <= highs + 1e-12)))
    deviation = float(means.std())
    exact = 2 * 1.96 * deviation
    if edge and target.name.endswith("accuracy"):
        independent = truth * (1 - truth) / deviation**2
        intervals = [wilson(mean, max(1.0, independent)) for mean in means]
        exact = float(np.mean([i.high - i.low for i in intervals]))
    width = float(np.mean(highs - lows)) / exact if exact else math.inf
    bar = (0.93, 1.0, 1.6) if edge else (0.93, 0.985, 1.25)
    if world.decided or world.rare:
        bar = (0.93, 1.0, math.inf)
    holds = bar[0] <= covered <= bar[1] and width <= bar[2]
    return {**row, "covered": round(covered, 4), "width": round(width, 3), "holds": holds}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000, help="number of data sets (1000)")
    parser.add_argument(
        "--problems", type=int, nargs="+", default=[20, 60, 200], help="numbers of problems"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (0)")
    parser.add_argument(
        "--held-out", action="store_true", help="the worlds that the intervals were not tuned on"
    )
    parser.add_argument(
        "--decided", action="store_true", help="the worlds whose samples agree, and of rare calls"
    )
    parser.add_argument("--out", type=Path, help="the JSON file of the figures (none)")
    options = parser.parse_args(arguments)
    if options.sets < 10 or min(options.problems) < 2:
        parser.error("--sets must be at least 10 and --problems at least 2")
    rows = []
    print(f"{'figure':<17}{'control':>8}{'left':>6}{'corr':>6}{'problems':>9}{'shown':>7}", end="")
    print(f"{'covered':>9}{'width':>7}  bar")
    worlds = DECIDED if options.decided else HELD_OUT if options.held_out else WORLDS
    for number, world in enumerate(worlds):
        for problems in options.problems:
            random = np.random.default_rng([options.seed, number, problems])
            data = [draw(world, problems, random) for _ in range(options.sets)]
            for target in (RARE_CALLS,) if world.rare else TARGETS:
                row = measure(target, world, problems, data)
                rows.append(row)
                print(_line(row), flush=True)
    judged = [row for row in rows if row["holds"] is not None]
    held = sum(row["holds"] for row in judged)
    print(f"the bar holds in {held} of {len(judged)} rows")
    if options.out:
        settings = {name: value for name, value in vars(options).items() if name != "out"}
        write_results(options.out, {"settings": settings, "held": held, "rows": rows}, indent=1)
    return 0


def _line(row: dict[str, Any]) -> str:
    text = f"{row['figure']:<17}{row['control']:>8}{row['left']:>6}{row['correlation']:>6}"
    text += f"{row['problems']:>9}{row['shown']:>7}"
    if row["covered"] is None:
        return f"{text}{'–':>9}{'–':>7}  too few shown"
    text += f"{100 * row['covered']:>9.1f}{row['width']:>7.2f}"
    return f"{text}  {'holds' if row['holds'] else 'MISSED'}{' (edge)' * row['edge']}"


if __name__ == "__main__":
    sys.exit(main())
