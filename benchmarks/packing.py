"""Measures the balance of the passes that `retool_env.training.balance.plan` plans.

    python -m benchmarks.packing

The lengths follow `benchmarks.parts.step.Load`, the distribution of a 32B model. The cost of a plan
is the sum, over its passes, of the slowest rank's cost, relative to the mean of the ranks' totals:
1 means that no rank ever waits. Beside it stands the cost of one episode per rank and pass, in the
order of the batch. The figures go to `benchmarks/results/packing.json`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.parts.results import RESULTS, write_results
from benchmarks.parts.step import Load, draw_chains
from retool_env.training.balance import episode_cost, plan, slowest

RANKS, BUDGET = 16, 18_432
"""The ranks and the token budget of the preset for 32B."""
EPISODES = (64, 128, 256, 1024)


@dataclass(frozen=True)
class Quality:
    """The quality of a plan."""

    ratio: float
    """The sum of the slowest ranks' costs over the mean of the ranks' totals."""
    extra: int
    """The passes beyond tokens / (ranks * budget)."""
    by_one: float
    """The ratio with one episode per rank and pass."""
    seconds: float
    """The processor time of planning."""


def draw_lengths(episodes: int, seed: int) -> list[int]:
    """The numbers of tokens of episodes of a long-tailed mix, prompts included.

    Args:
        episodes: The number of episodes, a multiple of 16.
        seed: The seed of the lengths.
    """
    load = Load(problems=episodes // 16, rollouts=16, seed=seed)
    return [
        load.prompt_tokens + min(load.max_tokens, sampled + load.result_tokens * (len(chain) - 1))
        for chain in draw_chains(load, 0.0)
        for sampled in [sum(turn.tokens for turn in chain)]
    ]


def quality(lengths: Sequence[int], ranks: int = RANKS, budget: int = BUDGET) -> Quality:
    """Plan episodes, and compute the plan's quality.

    Args:
        lengths: The number of tokens of each episode.
        ranks: The number of ranks.
        budget: The token budget of a pack.
    """
    costs = [episode_cost(length) for length in lengths]
    began = time.process_time()
    made = plan(lengths, ranks, budget)
    seconds = time.process_time() - began
    mean = sum(costs) / ranks
    ones = [[[i] for i in range(n, n + ranks)] for n in range(0, len(lengths), ranks)]
    return Quality(
        slowest(list(zip(*made, strict=True)), costs) / mean,
        len(made[0]) - math.ceil(sum(lengths) / (ranks * budget)),
        slowest(ones, costs) / mean,
        seconds,
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100, help="draws of the lengths (100)")
    parser.add_argument("--out", type=Path, default=RESULTS / "packing.json", help="the JSON file")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    print(
        f"{RANKS} ranks, packs of {BUDGET:,} tokens, {options.seeds} seeds: slowest ranks' cost "
        "over the mean rank's (1: no rank waits)\n"
        f"{'episodes':>8}{'median':>9}{'worst':>9}{'one a pass':>12}{'extra passes':>14}{'ms':>7}"
    )
    report: dict[str, Any] = {"ranks": RANKS, "budget": BUDGET, "seeds": options.seeds}
    for episodes in EPISODES:
        found = [quality(draw_lengths(episodes, seed)) for seed in range(options.seeds)]
        ratios = [each.ratio for each in found]
        row = {
            "median": round(statistics.median(ratios), 4),
            "worst": round(max(ratios), 4),
            "one_episode_a_pass": round(statistics.median(each.by_one for each in found), 4),
            "extra_passes": max(each.extra for each in found),
            "ms": round(1e3 * statistics.median(each.seconds for each in found), 1),
        }
        report[str(episodes)] = row
        print(
            f"{episodes:>8}{row['median']:>9.4f}{row['worst']:>9.4f}"
            f"{row['one_episode_a_pass']:>12.4f}{row['extra_passes']:>14}{row['ms']:>7.1f}",
            flush=True,
        )
    write_results(options.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
