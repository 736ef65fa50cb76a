"""Measures the interval, the test and the detectable difference of `retool compare` by simulation.

    python -m benchmarks.compare
    python -m benchmarks.compare --sets 200 --problems 20 60
    python -m benchmarks.compare --out benchmarks/results/compare.json

A *world* states the accuracies of two models, how alike the samples of a problem are (the
intra-class correlation), and the share of problems that are equally hard for both models. In each
of `--sets` data sets, problems and samples are drawn from the world. The true difference is known.

For each world, number of samples and number of problems, the table shows:

- `covered`: the share of the 95 % intervals of `retool compare` that hold the true difference;
- `bootstrap`: the same of the percentile bootstrap over problems, for comparison;
- `found`: the share of data sets with a p-value below 0.05; without a true difference, this is the
  error rate of the test;
- `power`: the share of data sets of a second world with a p-value below 0.05, whose true difference
  is the mean detectable difference. It should be about 80 %. It is measured where the models are
  equal, and where accuracies can be so far apart;
- `bar`: whether 93.0 to 98.5 % are covered, and at most 6.5 % of the tests find a difference that
  does not exist. A row is marked `edge` if an accuracy is expected within five problems of 0 or 1.
  The bar is then: at least 93.0 % are covered.

With 1,000 data sets, the standard error of a coverage of 95 % is 0.7 points.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts.results import write_results
from retool_env.evaluation.compare.paired import detectable, interval_of
from retool_env.metrics.causal.intervals import Pair
from retool_env.metrics.estimators import NEAR_THE_EDGE
from retool_env.metrics.sign_flip import sign_flip_p

_POOL = 1 << 17
"""The number of problems that the problems of a data set are drawn from."""
_RESAMPLES = 400
"""The number of resamples of a bootstrap."""


@dataclass(frozen=True)
class World:
    """Two simulated models."""

    first: float
    """The accuracy of the first model."""
    second: float
    """The accuracy of the second model."""
    correlation: float
    """The intra-class correlation of the samples of a problem."""
    shared: float
    """The share of problems that are equally hard for both models, by rank."""


WORLDS = tuple(
    World(first, second, correlation, shared)
    for correlation, shared in ((0.3, 1.0), (0.6, 0.5))
    for first, second in (
        *((0.5, 0.5), (0.5, 0.6), (0.3, 0.35), (0.2, 0.5), (0.9, 0.9), (0.9, 0.95)),
        *((0.6, 0.97), (0.97, 0.97), (0.05, 0.05), (0.05, 0.2)),
    )
)
"""The worlds of the table."""


def draw(world: World, problems: int, samples: int, random: np.random.Generator) -> list[Pair]:
    """Draw one data set: the second model's accuracy of each problem, and the first model's.

    Args:
        world: The models.
        problems: The number of problems.
        samples: The number of samples of a problem for each model.
        random: The source of random numbers.
    """
    first, second = (_chances(mean, world.correlation) for mean in (world.first, world.second))
    rank = random.integers(0, _POOL, problems)
    other = np.where(
        random.random(problems) < world.shared, rank, random.integers(0, _POOL, problems)
    )
    right = random.binomial(samples, [second[other], first[rank]]) / samples
    return [Pair(i, float(b), float(a), samples) for i, (b, a) in enumerate(right.T)]


@functools.cache
def _chances(mean: float, correlation: float) -> np.ndarray[Any, Any]:
    """The accuracies of all problems of the pool, sorted."""
    weight = 1 / correlation - 1
    return np.sort(np.random.default_rng(0).beta(mean * weight, (1 - mean) * weight, _POOL))


def measure(
    world: World, problems: int, samples: int, sets: int, random: np.random.Generator
) -> dict[str, Any]:
    """The row of a world, a number of problems and a number of samples.

    Args:
        world: The models.
        problems: The number of problems.
        samples: The number of samples of a problem for each model.
        sets: The number of data sets.
        random: The source of random numbers.
    """
    truth = world.second - world.first
    covered, bootstrap, found, smallest = [], [], [], []
    for _ in range(sets):
        pairs = draw(world, problems, samples, random)
        interval = interval_of(pairs)
        covered.append(_holds(interval.low, interval.high, truth))
        bootstrap.append(_holds(*_bootstrap(pairs, random), truth))
        found.append(_p(pairs) < 0.05)
        smallest.append(detectable(interval) or 1.0)
    edges = [problems * min(p, 1 - p) for p in (world.first, world.second)]
    row = {**asdict(world), "problems": problems, "samples": samples}
    row |= {"edge": min(edges) < NEAR_THE_EDGE}
    for name, values in (("covered", covered), ("bootstrap", bootstrap), ("found", found)):
        row[name] = round(float(np.mean(values)), 4)
    row["detectable"] = round(float(np.mean(smallest)), 4)
    row["power"] = _power(world, row["detectable"], problems, samples, sets, random)
    row["holds"] = 0.93 <= row["covered"] <= (1.0 if row["edge"] else 0.985) and (
        bool(truth) or row["found"] <= 0.065
    )
    return row


def _holds(low: float | None, high: float | None, truth: float) -> bool:
    return low is not None and high is not None and low - 1e-12 <= truth <= high + 1e-12


def _p(pairs: Sequence[Pair]) -> float:
    return sign_flip_p([pair.first - pair.second for pair in pairs])


def _bootstrap(pairs: Sequence[Pair], random: np.random.Generator) -> tuple[float, float]:
    values = np.array([pair.first - pair.second for pair in pairs])
    means = values[random.integers(0, len(values), (_RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _power(
    world: World,
    difference: float,
    problems: int,
    samples: int,
    sets: int,
    random: np.random.Generator,
) -> float | None:
    """The share of found differences of a size around the accuracy of equal models."""
    low, high = world.first - difference / 2, world.first + difference / 2
    if world.first != world.second or low < 0.02 or high > 0.98:
        return None
    apart = World(low, high, world.correlation, world.shared)
    found = [_p(draw(apart, problems, samples, random)) < 0.05 for _ in range(sets)]
    return round(float(np.mean(found)), 4)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000, help="number of data sets (1000)")
    parser.add_argument(
        "--problems", type=int, nargs="+", default=[20, 60, 200], help="numbers of problems"
    )
    parser.add_argument(
        "--samples", type=int, nargs="+", default=[1, 4], help="numbers of samples of a problem"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (0)")
    parser.add_argument("--out", type=Path, help="the JSON file of the figures (none)")
    options = parser.parse_args(arguments)
    if options.sets < 10 or min(options.problems) < 2 or min(options.samples) < 1:
        parser.error("--sets must be at least 10, --problems at least 2, --samples at least 1")
    print(f"{'first':>6}{'second':>7}{'corr':>6}{'shared':>7}{'samples':>8}{'problems':>9}", end="")
    print(f"{'covered':>8}{'bootstrap':>10}{'found':>7}{'detectable':>11}{'power':>7}  bar")
    rows = []
    for number, world in enumerate(WORLDS):
        for samples in options.samples:
            for problems in options.problems:
                random = np.random.default_rng([options.seed, number, samples, problems])
                rows.append(measure(world, problems, samples, options.sets, random))
                print(_line(rows[-1]), flush=True)
    held = sum(row["holds"] for row in rows)
    print(f"the bar holds in {held} of {len(rows)} rows")
    if options.out:
        settings = {name: getattr(options, name) for name in ("sets", "problems", "samples")}
        settings["seed"] = options.seed
        write_results(options.out, {"settings": settings, "held": held, "rows": rows}, indent=1)
    return 0


def _line(row: dict[str, Any]) -> str:
    text = f"{row['first']:>6}{row['second']:>7}{row['correlation']:>6}{row['shared']:>7}"
    text += f"{row['samples']:>8}{row['problems']:>9}{100 * row['covered']:>8.1f}"
    text += f"{100 * row['bootstrap']:>10.1f}{100 * row['found']:>7.1f}"
    power = "–" if row["power"] is None else f"{100 * row['power']:.1f}"
    text += f"{100 * row['detectable']:>11.1f}{power:>7}"
    return f"{text}  {'holds' if row['holds'] else 'MISSED'}{' (edge)' * row['edge']}"


if __name__ == "__main__":
    sys.exit(main())
