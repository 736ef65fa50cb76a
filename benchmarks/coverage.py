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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts.results import write_results
from benchmarks.parts.worlds import (
    CALLED,
    DECIDED,
    HELD_OUT,
    USUAL,
    WORLDS,
    DataSet,
    World,
    contagion,
    draw,
    left_of_other,
)
from retool_env.metrics.causal.figure import SHOWN_FROM
from retool_env.metrics.causal.frequency import LEAST_SELECTED
from retool_env.metrics.causal.intervals import (
    Pair,
    difference,
    hardly_differ,
    hardly_vary,
    mean_difference,
    mean_difference_if_varied,
    mean_share,
    ratio,
    share,
)
from retool_env.metrics.estimators import NEAR_THE_EDGE, ClusterMean
from retool_env.metrics.intervals import wilson


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


def _control(pairs: list[Pair]) -> ClusterMean:
    return share((pair.problem, pair.second, pair.samples) for pair in pairs)


def _ratio_if_shown(pairs: list[Pair]) -> ClusterMean | None:
    low = _control(pairs).low
    hidden = low is None or low < SHOWN_FROM or hardly_differ(pairs)
    return None if hidden else ratio(pairs)


def _difference_if_shown(pairs: list[Pair]) -> ClusterMean | None:
    return None if hardly_differ(pairs) else difference(pairs)


def _use_if_shown(rows: list[tuple[int, float, float]]) -> ClusterMean | None:
    found = share(rows)
    return found if found.clusters >= LEAST_SELECTED else None


def _number_if_shown(pairs: list[Pair]) -> ClusterMean | None:
    return None if hardly_vary(pairs) else mean_difference(pairs)


def _comparison_if_shown(pairs: list[Pair]) -> ClusterMean | None:
    found = mean_difference_if_varied(pairs)
    return None if found.low is None else found


TARGETS = (
    Target(
        "control accuracy",
        lambda data: _control(data.pairs),
        lambda w: w.control,
        lambda w: (w.control,),
    ),
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
        lambda data: _ratio_if_shown(data.pairs),
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
        contagion,
        lambda w: (USUAL + contagion(w), USUAL),
    ),
    Target(
        "contagion from 0",
        lambda data: _difference_if_shown(data.only_implied),
        contagion,
        lambda w: (contagion(w), 0.0),
    ),
    Target(
        "tool gain",
        lambda data: _difference_if_shown(data.gain),
        lambda w: w.control * (1 - w.left),
        lambda w: (w.control, w.control * w.left),
    ),
    Target(
        "dose area",
        lambda data: mean_share((p.problem, p.first, p.samples) for p in data.areas),
        lambda w: w.control * (1 + w.left) / 2,
        lambda w: (w.control * (1 + w.left) / 2,),
    ),
    Target(
        "area ratio",
        lambda data: _ratio_if_shown(data.areas),
        lambda w: (1 + w.left) / 2,
        lambda w: (w.control, w.control * (1 + w.left) / 2),
    ),
    Target("over-use", lambda data: _use_if_shown(data.over_use), lambda w: CALLED, lambda w: ()),
    Target(
        "under-use", lambda data: _use_if_shown(data.under_use), lambda w: 1 - CALLED, lambda w: ()
    ),
    Target("calls more", lambda data: _number_if_shown(data.calls), lambda w: 0.5, lambda w: ()),
    Target(
        "two models",
        lambda data: _comparison_if_shown(data.models),
        lambda w: w.control * (w.left - left_of_other(w)),
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
    # Where all data sets agree, only the coverage can be judged.
    width = float(np.mean(highs - lows)) / exact if exact else None
    bar = (0.93, 1.0, 1.6) if edge else (0.93, 0.985, 1.25)
    if world.decided or world.rare:
        bar = (0.93, 1.0, math.inf)
    if width is None:
        return {**row, "covered": covered, "width": None, "holds": covered >= bar[0]}
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
    width = "–" if row["width"] is None else f"{row['width']:.2f}"
    text += f"{100 * row['covered']:>9.1f}{width:>7}"
    return f"{text}  {'holds' if row['holds'] else 'MISSED'}{' (edge)' * row['edge']}"


if __name__ == "__main__":
    sys.exit(main())
