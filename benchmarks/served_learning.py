"""Does training learn as well from turns that were cut and from older weights as from fresh ones?

    python -m agents sft --preset tiny
    python -m benchmarks.served_learning --servers http://127.0.0.1:8000,http://127.0.0.1:8001 \
        --weights-folder /tmp/weights --staleness 0 2 4

Two processes (FSDP2) train with GRPO and share the vLLM servers, once for each staleness and seed.
Turns that are under way when new weights come are cut. The servers serve the model of the cold
start, and take new weights (docs/rollouts/weights.md). The exported models of each run are
evaluated on the same held-out problems, in this process.

The runs are in `runs/served_learning/`; the same command resumes a stopped benchmark. The figures
go to `benchmarks/results/served_learning.json`.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.base.records import read_records
from agents.base.settings import SettingsError
from benchmarks.along import evaluate_along
from benchmarks.parts.results import RESULTS, write_results
from benchmarks.replication import read_curve
from retool_env.metrics.causal.intervals import Pair, difference
from retool_env.transcript import Transcript

CHECKPOINT = Path("runs/sft/checkpoint")
LAUNCH = Path(__file__).parents[1] / "agents" / "launch" / "cpu2_fsdp2.yaml"
Scores = Mapping[str, tuple[int, int]]
"""The number of right episodes and of episodes, by problem."""


def command(options: argparse.Namespace, staleness: int, seed: int) -> list[str]:
    """The command of a training run.

    Args:
        options: The options of the command line.
        staleness: The number of batches that are sampled ahead.
        seed: The training seed.
    """
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH)),
        *("-m", "agents", "grpo", "--preset", "tiny", "--resume", "--runs", str(options.runs)),
        *(f"name={name_of(staleness, seed)}", f"seed={seed}", f"model={options.checkpoint}"),
        *(f"steps={options.steps}", f"export_steps={options.steps // 2}", "micro_batch=64"),
        *(f"staleness={staleness}", f"engine.name={options.servers}"),
        *(f"engine.weights_folder={options.weights_folder}", "engine.weights_dtype=float32"),
        *options.set,
    ]


def name_of(staleness: int, seed: int) -> str:
    """The name of a run.

    Args:
        staleness: The number of batches that are sampled ahead.
        seed: The training seed.
    """
    return f"staleness-{staleness}-{seed}"


def scores_of(episodes: Sequence[Transcript]) -> Scores:
    """The number of right episodes and of scored episodes, by problem.

    Args:
        episodes: The episodes of an evaluation.
    """
    scores: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for one in episodes:
        if one.scored:
            right, count = scores[str(one.problem.id)]
            scores[str(one.problem.id)] = (right + bool(one.correct), count + 1)
    return scores


def run_figures(folder: Path, problems: int, k: int) -> tuple[dict[str, Any], Scores]:
    """The figures of a finished run, and the scores of its last model.

    Args:
        folder: The folder of the run.
        problems: The number of held-out problems.
        k: Episodes per problem.
    """
    along = list(evaluate_along(folder, problems, k))
    curve = read_curve(folder, along)
    logged = [r for r in read_records(folder / "metrics.jsonl") if "rollout/tokens" in r]

    def mean(name: str) -> float:
        return round(float(np.mean([record[name] for record in logged])), 4)

    figures = {
        "accuracy": dict(zip(map(str, curve.steps), curve.accuracy, strict=True)),
        "seconds": round(curve.seconds[-1], 1),
        "cut_turns": round(sum(record["rollout/cut_turns"] for record in logged), 1),
        "lag": mean("rollout/weight_lag"),
        "lag_max": max(record["rollout/weight_lag_max"] for record in logged),
        "effective_tokens": mean("offpolicy/effective_tokens"),
        "rollout_accuracy": [round(record["env/accuracy"], 4) for record in logged],
    }
    return figures, scores_of(along[-1][1])


def change(fresh: Sequence[Scores], stale: Sequence[Scores]) -> dict[str, Any]:
    """The change of the accuracy by staleness, paired by seed and problem.

    Args:
        fresh: The scores of the runs with staleness 0, one per seed.
        stale: The scores of the runs with the other staleness, of the same seeds.

    Returns:
        The mean change, its 95 % interval over problems, and the numbers of problems and seeds.
    """
    pairs = [
        Pair(problem, after[problem][0] / after[problem][1], right / count, count)
        for before, after in zip(fresh, stale, strict=True)
        for problem, (right, count) in before.items()
        if problem in after
    ]
    found = difference(pairs)
    return {
        **{"mean": found.mean, "low": found.low, "high": found.high},
        **{"problems": found.clusters, "seeds": len(fresh)},
    }


def report(figures: Mapping[str, Mapping[str, Any]], changes: Mapping[str, Any]) -> str:
    """The figures as a Markdown table.

    Args:
        figures: The figures of each run, by staleness and seed.
        changes: The change of each staleness against staleness 0.
    """
    lines = [
        "| batches ahead | seed | accuracy | seconds | lag | cut turns | effective | change |",
        "|" + "---|" * 8,
    ]
    for staleness, runs in figures.items():
        for seed, row in runs.items():
            accuracy = " → ".join(f"{value:.1%}" for value in row["accuracy"].values())
            lines.append(
                f"| {staleness} | {seed} | {accuracy} | {row['seconds']:.0f} | {row['lag']:.2f} | "
                f"{row['cut_turns']:.0f} | {row['effective_tokens']:.1%} | |"
            )
        if found := changes.get(staleness):
            low, high = (100 * found[end] for end in ("low", "high"))
            lines[-1] = f"{lines[-1][:-1]}{100 * found['mean']:+.1f} [{low:+.1f}, {high:+.1f}] |"
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the trainings that are not finished, report, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", required=True, help="URLs of vLLM servers, with commas")
    parser.add_argument("--weights-folder", type=Path, required=True, help="folder of new weights")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help=f"model ({CHECKPOINT})")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 2, 4], help="(0 2 4)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds (0)")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of a run (40)")
    parser.add_argument("--problems", type=int, default=100, help="held-out problems (100)")
    parser.add_argument("--k", type=int, default=4, help="episodes per problem (4)")
    parser.add_argument("--runs", type=Path, default=Path("runs/served_learning"), help="folder")
    parser.add_argument("--out", type=Path, default=RESULTS / "served_learning.json")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="key=value", help="more settings of all runs"
    )
    options = parser.parse_args(arguments)
    if options.staleness[0] != 0 or options.steps % 2:
        parser.error("--staleness must begin with 0, the reference, and --steps must be even")
    figures: dict[str, dict[str, Any]] = {}
    scores: dict[str, list[Scores]] = {}
    try:
        for seed, staleness in itertools.product(options.seeds, options.staleness):
            train = command(options, staleness, seed)
            print(f"$ {shlex.join(['python', *train[1:]])}", file=sys.stderr, flush=True)
            subprocess.run(train, check=True)
            folder = options.runs / name_of(staleness, seed)
            row, found = run_figures(folder, options.problems, options.k)
            figures.setdefault(str(staleness), {})[str(seed)] = row
            scores.setdefault(str(staleness), []).append(found)
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return 130
    except (subprocess.CalledProcessError, SettingsError) as error:
        print(f"python -m benchmarks.served_learning: {error}", file=sys.stderr)
        return 2
    changes = {key: change(scores["0"], some) for key, some in scores.items() if key != "0"}
    settings = {name: getattr(options, name) for name in ("steps", "problems", "k", "set")}
    write_results(options.out, {"settings": settings, "runs": figures, "changes": changes})
    print(report(figures, changes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
