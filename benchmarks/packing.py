"""Measures the balance of the passes that `retool_env.training.balance.plan` plans.

    python -m benchmarks.packing
    python -m benchmarks.packing --train

The lengths follow `benchmarks.parts.step.Load`, the distribution of a 32B model. The cost of a plan
is the sum, over its passes, of the slowest rank's cost, relative to the mean of the ranks' totals:
1 means that no rank ever waits. Beside it stands the cost of one episode per rank and pass, in the
order of the batch. `--train` measures the speed of two sharded processes of this machine's CPU
instead, see `benchmarks.parts.two_ranks`. The figures go to `benchmarks/results/packing.json` and
`packing_train.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.parts import two_ranks
from benchmarks.parts.results import RESULTS, ratios, write_results
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


def train(rounds: int) -> dict[str, Any]:
    """Measure the speed of two sharded processes, each with one thread.

    Args:
        rounds: The number of turns of each way.

    Returns:
        The seconds of each step by way, how much faster the budget of tokens is, and whether both
        ways had the same loss and norm of the gradient in their first step.

    Raises:
        subprocess.CalledProcessError: If a process failed.
    """
    root = Path(__file__).parents[1]
    before = [round(load, 1) for load in os.getloadavg()]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
        command += ["--config_file", str(root / "agents" / "launch" / "cpu2_fsdp2.yaml")]
        command += ["-m", two_ranks.__name__, str(rounds), str(out)]
        quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environment = {**os.environ, **quiet, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, cwd=root, check=True, stdout=subprocess.DEVNULL)
        found = json.loads(out.read_text())
    seconds = {
        kind: [second for turn in turns for second in turn["seconds"]]
        for kind, turns in found.items()
    }
    one, other = (found[kind][0] for kind in two_ranks.KINDS)
    return {
        "load": before,
        "seconds": {kind: [round(s, 3) for s in values] for kind, values in seconds.items()},
        "speed": ratios(*seconds.values()),
        "same": all(math.isclose(one[k], other[k], rel_tol=1e-3) for k in ("loss", "grad_norm")),
        "loss": [one["loss"], other["loss"]],
    }


def training_table(report: dict[str, Any]) -> str:
    """The figures of `train` as text."""
    each, tokens = two_ranks.EACH, max(two_ranks.KINDS.values())
    lines = [
        f"two processes, {each} episodes each, a quarter of them 8 times as long, passes of at "
        f"most {tokens} tokens: median seconds a step"
    ]
    lines += [f"{kind:<20}{statistics.median(s):>7.3f}" for kind, s in report["seconds"].items()]
    speed, same = report["speed"], "the same" if report["same"] else "NOT THE SAME"
    lines.append(
        f"tokens are {speed['median']:.2f} times as fast ({speed['min']:.2f} to "
        f"{speed['max']:.2f}); loss and gradient are {same}; load before: {report['load'][0]}"
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100, help="draws of the lengths (100)")
    parser.add_argument("--train", action="store_true", help="train on two processes")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way of --train (5)")
    parser.add_argument("--out", type=Path, help="the JSON file of the figures")
    options = parser.parse_args(arguments)
    if min(options.seeds, options.rounds) < 1:
        parser.error("--seeds and --rounds must be at least 1")
    if options.train:
        report = train(options.rounds)
        write_results(options.out or RESULTS / "packing_train.json", report)
        print(training_table(report))
        return int(not report["same"])
    print(
        f"{RANKS} ranks, packs of {BUDGET:,} tokens, {options.seeds} seeds: slowest ranks' cost "
        "over the mean rank's (1: no rank waits)\n"
        f"{'episodes':>8}{'median':>9}{'worst':>9}{'one a pass':>12}{'extra passes':>14}{'ms':>7}"
    )
    report = {"ranks": RANKS, "budget": BUDGET, "seeds": options.seeds}
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
    write_results(options.out or RESULTS / "packing.json", report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
