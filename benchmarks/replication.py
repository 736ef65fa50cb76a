"""The paper's claim at small scale: learning with the interpreter against learning in text only.

    python -m benchmarks.replication
    python -m benchmarks.replication --seeds 0 --algorithms grpo
    python -m benchmarks.replication --draw

There are two arms: one with the interpreter, one without. For each seed and arm, the benchmark
trains a cold start from the same number of traces. It then trains each algorithm with the same
budget, and evaluates the exported models on the same held-out problems.

The commands are printed. Each run has a folder below `runs/replication/`; the same command resumes
a stopped benchmark and repeats nothing. Several commands run side by side, each on its share of the
processors; `--jobs 1` runs them one after the other.

A comparison is valid if the text-only arm gains 15 points over its cold start, and its accuracy
still rises in the last third. Figures and pictures go to
`benchmarks/results/replication_<preset>.json` and `.png`.
"""

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agents.base.presets import load_settings
from agents.base.records import damaged, read_episodes, read_records
from agents.base.registry import load_algorithm
from agents.base.run import seconds_of
from agents.base.settings import SettingsError
from benchmarks.along import evaluate_along, held_out, models
from benchmarks.parts.learning import Curve, calibrate, claim_holds, compare, cost_ratio
from benchmarks.parts.replication_figures import draw, draw_tools, table
from benchmarks.parts.results import RESULTS, write_results
from retool_env.metrics.summary import Summary, summarise, summarise_along
from retool_env.metrics.tables import tool_table
from retool_env.rotation import open_names
from retool_env.transcript import Transcript

ARMS = {"interpreter": [], "text only": ["env.interpreter=false"]}
"""The settings of each arm, by the name of the arm."""
WARM_UP = [
    "trl.lr_scheduler_type=constant_with_warmup",
    "trl.warmup_steps=20",
    "trl.adam_beta2=0.98",
]
"""Warm-up settings of GRPO and DAPO.

With the full learning rate from the first step on, text-only GRPO falls below its cold start on
some seeds and does not recover.
"""
OVERRIDES: dict[str, dict[str, list[str]]] = {
    "tiny": {
        # Only sums: a text-only model of this size does not learn nested products.
        "all": ["env.difficulty=1"],
        "sft": [
            "mix={tool: 1, stepwise: 1.5, mended: 0.5, mended_stepwise: 1, worked: 3, direct: 3}",
            # With more traces, some text-only cold starts add so well that RL has little to gain.
            "traces=900",
        ],
        # With half the episodes per step and twice the learning rate, text-only training from a
        # weak cold start degrades after its peak.
        "rl": ["steps=120", "learning_rate=1e-4", "export_steps=12", "save_steps=12"],
        "grpo": ["prompts=32", "micro_batch=256", *WARM_UP],
        "dapo": ["prompts=32", "micro_batch=256", *WARM_UP, "steps=80", "export_steps=8"],
        "ppo": ["prompts=256", "mini_batch=256", "micro_batch=256", "steps=80", "export_steps=8"],
    },
    "smollm2": {
        # With so little training, this model solves no grade-school problem.
        "all": [
            "env.id=ReTool-Arithmetic-v0",
            "env.difficulty=1",
            'env.prompt_template="{query}\\n"',
            "env.max_calls=3",
            "env.max_tokens=128",
        ],
        "sft": ["mix={tool: 2, mended: 1, worked: 3, direct: 2}", "traces=200"],
        "rl": ["steps=12", "learning_rate=2e-4", "export_steps=2", "save_steps=2"],
        "grpo": ["prompts=8", "rollouts=8", "micro_batch=16"],
    },
}
"""Settings that override a preset, by preset and stage.

The stage is `all` (every run), `sft` (the cold starts), `rl` (all RL runs) or an algorithm's name.
"""


@dataclass(frozen=True)
class Plan:
    """The plan of a replication: all its runs and their settings."""

    preset: str
    """The preset's name or file."""
    seeds: tuple[int, ...]
    """The training seeds."""
    algorithms: tuple[str, ...]
    """The RL algorithms."""
    problems: int
    """The number of held-out problems of an evaluation."""
    k: int
    """Episodes per held-out problem."""
    runs: Path
    """The folder of the runs."""
    overrides: tuple[str, ...] = ()
    """Settings of all RL runs, `key=value`; they override `OVERRIDES`."""

    def check(self) -> None:
        """Check the settings of all commands and the number of problems, before hours are spent.

        Raises:
            SettingsError: If a setting is invalid, or there are too few held-out problems.
        """
        for override in self.overrides:
            if override.partition("=")[0] in ("name", "seed", "model"):
                raise SettingsError(f"{override}: the plan sets this itself; remove it from --set")
        for command in self.commands(self.seeds[0], next(iter(ARMS))):
            if command[2] == "agents":
                algorithm = load_algorithm(command[3])
                settings = load_settings(algorithm.Settings, command[3], self.preset, command[9:])
        held_out(settings.env, self.problems)

    def folder(self, seed: int, arm: str, algorithm: str) -> Path:
        """The folder of a run.

        Args:
            seed: The training seed.
            arm: The arm, a key of `ARMS`.
            algorithm: The algorithm, or `sft` for the cold start.
        """
        return self.runs / _name(seed, arm, algorithm)

    def commands(self, seed: int, arm: str) -> Iterator[list[str]]:
        """The commands of a seed and arm, in order."""
        known = OVERRIDES.get(self.preset, {"all": [], "sft": [], "rl": ["export_steps=10"]})
        cold = self.folder(seed, arm, "sft") / "checkpoint"
        for algorithm in ("sft", *self.algorithms):
            settings = known.get(algorithm, [])
            if algorithm != "sft":
                settings = [f"model={cold}", *known["rl"], *settings, *self.overrides]
            yield [
                *("python", "-m", "agents", algorithm, "--preset", self.preset, "--resume"),
                *("--runs", str(self.runs), f"name={_name(seed, arm, algorithm)}", f"seed={seed}"),
                *(*known["all"], *ARMS[arm], *settings),
            ]
            if algorithm != "sft":
                numbers = ("--problems", str(self.problems), "--k", str(self.k))
                run = str(self.folder(seed, arm, algorithm))
                yield ["python", "-m", "benchmarks.along", run, *numbers]


def _name(seed: int, arm: str, algorithm: str) -> str:
    return f"{arm.replace(' ', '-')}-{seed}/{algorithm}"


def run_all(plan: Plan, jobs: int) -> None:
    """Run all commands of a plan. The commands of one seed and arm run one after the other.

    Args:
        plan: The plan.
        jobs: The number of commands that run at once.

    Raises:
        RuntimeError: If a command fails. The message names the file with its output.
    """
    chains = [(seed, arm) for seed in plan.seeds for arm in ARMS]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    stopped, started = threading.Event(), time.monotonic()

    def run(chain: tuple[int, str]) -> None:
        log = plan.runs / _name(*chain, "log.txt")
        log.parent.mkdir(parents=True, exist_ok=True)
        for command in plan.commands(*chain):
            if stopped.is_set():
                return
            _say(started, f"$ {shlex.join(command)}")
            with open(log, "a", encoding="utf-8") as output:
                done = subprocess.run(
                    [sys.executable, *command[1:]],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    check=False,
                )
            if done.returncode:
                stopped.set()
                _say(started, f"failed, see the end of {log}; the other commands end first")
                last_line = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
                raise RuntimeError(
                    f"{''.join(last_line)}\nThis failed, more of it in {log}: {shlex.join(command)}"
                )
            if command[2] == "benchmarks.along" and len(models(Path(command[3]))) < 3:
                stopped.set()
                few = f"{command[3]} kept fewer than two models"
                raise RuntimeError(f"{few}: set export_steps lower")
        _say(started, f"done: {chain[1]}, seed {chain[0]}")

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for future in [pool.submit(run, chain) for chain in chains]:
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _say(started: float, text: str) -> None:
    print(f"[{time.monotonic() - started:5.0f} s] {text}", file=sys.stderr, flush=True)


def read_curve(folder: Path, along: Sequence[tuple[int, list[Transcript]]]) -> Curve:
    """Read the learning curve of a run.

    Args:
        folder: The folder of the run.
        along: The step and the transcripts of each evaluation, in order.
    """
    logged = read_records(folder / "metrics.jsonl")
    # Not counted from the transcripts: tokens that were sampled but not trained on also cost time.
    # The record of an evaluation has the step of another record, and no such figure.
    sampled = {r["step"]: r["rollout/tokens"] for r in logged if "rollout/tokens" in r}
    steps = [step for step, _ in along]
    return Curve(
        tuple(steps),
        tuple(_accuracy(transcripts) for _, transcripts in along),
        tuple(int(sum(n for step, n in sampled.items() if step <= until)) for until in steps),
        tuple(seconds_of([r for r in logged if r["step"] <= until]) for until in steps),
    )


def rollouts(folder: Path) -> Iterator[Transcript]:
    """The training rollouts of a run, of all its processes."""
    for name in sorted(open_names(folder)):
        cure = "delete that line: its episode is then not counted"
        yield from read_episodes(folder / name, cure, appended=True)


def _accuracy(transcripts: Sequence[Transcript]) -> float:
    accuracy = summarise(transcripts).accuracy
    if accuracy is None:
        raise ValueError("an evaluation has no scored episode; delete its file and evaluate again")
    return accuracy.mean


@dataclass(frozen=True)
class Course:
    """The learning curve of a run, and how its models used the interpreter."""

    curve: Curve
    along: list[Summary]
    """The figures of each evaluation, in the order of the curve's steps."""
    training: dict[int, Summary]
    """The figures of the training rollouts, per third of the steps; the key is the last step."""


def read_course(folder: Path, problems: int, k: int) -> Course:
    """Read a finished run, and evaluate the models that have not been evaluated.

    Args:
        folder: The folder of the run.
        problems: The number of held-out problems.
        k: Episodes per problem.
    """
    evaluated = list(evaluate_along(folder, problems, k))
    curve = read_curve(folder, evaluated)
    return Course(
        curve,
        [summarise(transcripts) for _, transcripts in evaluated],
        summarise_along(rollouts(folder), thirds(folder)),
    )


def thirds(folder: Path) -> list[int]:
    """The last steps of the thirds of a run's training."""
    path = folder / "metrics.jsonl"
    end = max((record["step"] for record in read_records(path)), default=0)
    if not end:
        raise damaged(path, "it holds no step", "train this run again with another --runs")
    return sorted({end * part // 3 for part in (1, 2, 3)} - {0})


def tool_use(plan: Plan, algorithm: str) -> dict[str, Summary]:
    """Summaries of interpreter use in the training rollouts of all seeds, per third of the steps.

    Args:
        plan: The plan, whose commands have run.
        algorithm: The RL algorithm.
    """
    folders = [plan.folder(seed, "interpreter", algorithm) for seed in plan.seeds]
    together = itertools.chain.from_iterable(map(rollouts, folders))
    by_third = summarise_along(together, thirds(folders[0]))
    return {
        f"steps {before + 1} to {last}": by_third[last]
        for before, last in itertools.pairwise([0, *by_third])
    }


def report_of(plan: Plan) -> dict[str, Any]:
    """All figures of a finished plan, as plain JSON values."""
    report: dict[str, Any] = {}
    for algorithm in plan.algorithms:
        for seed in plan.seeds:
            courses = {
                arm: read_course(plan.folder(seed, arm, algorithm), plan.problems, plan.k)
                for arm in ARMS
            }
            interpreter, text_only = (courses[arm].curve for arm in ARMS)
            calibration = calibrate(text_only)
            ratios = compare(interpreter, text_only)
            report.setdefault(algorithm, {})[str(seed)] = {
                "arms": {
                    arm: {
                        "curve": asdict(course.curve),
                        "along": [summary.to_json() for summary in course.along],
                        "training": {
                            s: figures.to_json() for s, figures in course.training.items()
                        },
                    }
                    for arm, course in courses.items()
                },
                "area": {arm: courses[arm].curve.area for arm in ARMS},
                "calibration": {**asdict(calibration), "valid": calibration.valid},
                "step_ratios": ratios,
                "tokens_ratio": cost_ratio(interpreter, text_only, text_only.best, "tokens"),
                "seconds_ratio": cost_ratio(interpreter, text_only, text_only.best, "seconds"),
                "claim_holds": claim_holds(ratios),
            }
    return report


def draw_both(algorithms: dict[str, Any], stem: Path) -> None:
    """Draw the learning curves and the use of the interpreter.

    Args:
        algorithms: The result of `report_of`.
        stem: The path of the two PNG files, without their endings.
    """
    draw(algorithms, stem.with_name(f"{stem.name}.png"))
    draw_tools(algorithms, stem.with_name(f"{stem.name}_tools.png"))


def draw_again(path: Path) -> int:
    """Draw the pictures of figures on disk, and return the exit status.

    Args:
        path: The file of the figures.
    """
    try:
        algorithms = json.loads(path.read_text())["algorithms"]
    except (OSError, ValueError, KeyError) as error:
        print(f"python -m benchmarks.replication: {path}: {error!r}", file=sys.stderr)
        return 2
    draw_both(algorithms, path.with_suffix(""))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the commands that are not finished, and report.

    Args:
        arguments: The command line; `None`: `sys.argv`.

    Returns:
        The exit status: 1 if a comparison is void or the claim does not hold.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny", help="the preset (tiny)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (0 1 2)")
    parser.add_argument("--algorithms", nargs="+", default=["grpo", "ppo", "dapo"])
    parser.add_argument("--problems", type=int, default=100, help="held-out problems (100)")
    parser.add_argument("--k", type=int, default=4, help="episodes per problem (4)")
    parser.add_argument("--jobs", type=int, default=2, help="commands at once (2)")
    parser.add_argument("--runs", type=Path, help="the folder of runs (runs/replication/PRESET)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of figures")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="key=value", help="settings of all RL runs"
    )
    parser.add_argument(
        "--draw", action="store_true", help="draw the pictures of the figures in --out anew"
    )
    options = parser.parse_args(arguments)
    if min(options.problems, options.k, options.jobs) < 1:
        parser.error("--problems, --k and --jobs must be at least 1")
    preset = Path(options.preset).name.removesuffix(".yaml")
    if options.draw:
        return draw_again(options.out / f"replication_{preset}.json")
    plan = Plan(
        options.preset,
        tuple(options.seeds),
        tuple(options.algorithms),
        options.problems,
        options.k,
        options.runs or Path("runs/replication") / preset,
        tuple(options.set),
    )
    try:
        plan.check()
        run_all(plan, options.jobs)
        algorithms = report_of(plan)
        tools = {algorithm: tool_use(plan, algorithm) for algorithm in plan.algorithms}
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return 130
    except (RuntimeError, SettingsError) as error:
        print(f"python -m benchmarks.replication: {error}", file=sys.stderr)
        return 2
    commands = [
        shlex.join(c) for seed in plan.seeds for arm in ARMS for c in plan.commands(seed, arm)
    ]
    settings = {"preset": plan.preset, "problems": plan.problems, "k": plan.k, "jobs": options.jobs}
    report = {
        "settings": settings,
        "commands": commands,
        "algorithms": algorithms,
        "tool_use": {
            algorithm: {name: summary.to_json() for name, summary in rows.items()}
            for algorithm, rows in tools.items()
        },
    }
    name = f"replication_{preset}"
    write_results(options.out / f"{name}.json", report, indent=1)
    draw_both(algorithms, options.out / name)
    print(table(algorithms))
    for algorithm, rows in tools.items():
        print(f"\n{algorithm}, with the interpreter, rollouts of all seeds\n")
        print(tool_table(rows))
    comparisons = [seed for seeds in algorithms.values() for seed in seeds.values()]
    valid = [seed for seed in comparisons if seed["calibration"]["valid"]]
    void, held = len(comparisons) - len(valid), sum(seed["claim_holds"] for seed in valid)
    print(f"\n{len(comparisons)} comparisons, {void} void; the claim holds in {held}")
    return 0 if held == len(comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
