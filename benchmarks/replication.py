"""The paper's claim in miniature: learning with the interpreter beside learning in text alone.

    python -m benchmarks.replication
    python -m benchmarks.replication --seeds 0 --algorithms grpo

Of each seed and arm: a cold start from as many traces, then each algorithm with the same budget, then its models along
training on the same held-out problems. The commands are printed, and each run keeps its folder below `runs/replication/`:
the same command again goes on where it was stopped, and runs nothing twice. Several commands run side by side, each on its
share of the processors; `--jobs 1` runs one after the other.

First it says whether the comparison says anything: text alone must gain 15 points over its own cold start, and must still be
rising at half its budget. Figures and a picture go to `benchmarks/results/replication_<preset>.json` and `.png`.
"""

import argparse
import itertools
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
from agents.base.settings import SettingsError, find_task
from benchmarks.along import evaluate_along, models
from benchmarks.parts.learning import Curve, calibrate, claim_holds, compare
from benchmarks.parts.replication_figures import draw, draw_tools, table
from benchmarks.parts.results import RESULTS, write_results
from retool_env.metrics.summary import Summary, summarise, summarise_along
from retool_env.metrics.tables import tool_table
from retool_env.transcript import Transcript

ARMS = {"interpreter": [], "text only": ["env.interpreter=false"]}
"""What each arm sets."""
WARM_UP = [
    "trl.lr_scheduler_type=constant_with_warmup",
    "trl.warmup_steps=20",
    "trl.adam_beta2=0.98",
]
"""At full rate from the first step on, GRPO in text alone falls below its cold start on some seeds, and stays there."""
OVERRIDES: dict[str, dict[str, list[str]]] = {
    "tiny": {
        # Sums alone: of nested products a model of this size learns nothing in text.
        "all": ["env.difficulty=1"],
        "sft": [
            "mix={tool: 1, stepwise: 1.5, mended: 0.5, mended_stepwise: 1, worked: 3, direct: 3}",
            # More, and some seeds' cold starts in text alone add so well that RL soon has nothing left to gain.
            "traces=900",
        ],
        # With half as many episodes a step at twice the rate, what text alone learns from weak cold starts does not last.
        "rl": ["steps=120", "learning_rate=1e-4", "export_steps=12", "save_steps=12"],
        "grpo": ["prompts=32", "micro_batch=256", *WARM_UP],
        "dapo": ["prompts=32", "micro_batch=256", *WARM_UP, "steps=80", "export_steps=8"],
        "ppo": ["prompts=256", "mini_batch=256", "micro_batch=256", "steps=80", "export_steps=8"],
    },
    "smollm2": {
        # Grade-school problems it does not solve at all, with so little training.
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
"""Settings over a preset's: of every run, of the cold starts, of what follows them, and of one algorithm."""


@dataclass(frozen=True)
class Plan:
    """What is run."""

    preset: str
    seeds: tuple[int, ...]
    algorithms: tuple[str, ...]
    problems: int
    k: int
    runs: Path
    overrides: tuple[str, ...] = ()
    """Settings over those of `OVERRIDES`, of what follows the cold starts."""

    def check(self) -> None:
        """Check, before hours are spent, that all commands have settings that there are, and there are as many problems.

        Raises:
            SettingsError: If one has not.
        """
        for override in self.overrides:
            if override.partition("=")[0] in ("name", "seed", "model"):
                raise SettingsError(f"{override}: the plan itself sets this")
        for command in self.commands(self.seeds[0], next(iter(ARMS))):
            if command[2] == "agents":
                algorithm = load_algorithm(command[3])
                settings = load_settings(algorithm.Settings, command[3], self.preset, command[9:])
        held_out = len(find_task({**settings.env, "split": "test"})[1])
        if self.problems > held_out:
            raise SettingsError(f"there are {held_out} held-out problems, not {self.problems}")

    def folder(self, seed: int, arm: str, algorithm: str) -> Path:
        """Of a run."""
        return self.runs / _name(seed, arm, algorithm)

    def commands(self, seed: int, arm: str) -> Iterator[list[str]]:
        """Of a seed and arm, in order."""
        known = OVERRIDES.get(self.preset, {"all": [], "sft": [], "rl": ["export_steps=10"]})
        cold = self.folder(seed, arm, "sft") / "checkpoint"
        for algorithm in ("sft", *self.algorithms):
            own = list(known.get(algorithm, []))
            if algorithm != "sft":
                own = [f"model={cold}", *known["rl"], *own]
            extra = [] if algorithm == "sft" else self.overrides
            name = _name(seed, arm, algorithm)
            yield [
                *("python", "-m", "agents", algorithm, "--preset", self.preset, "--resume"),
                *("--runs", str(self.runs), f"name={name}", f"seed={seed}"),
                *(*known["all"], *ARMS[arm], *own, *extra),
            ]
            if algorithm != "sft":
                numbers = ("--problems", str(self.problems), "--k", str(self.k))
                run = str(self.folder(seed, arm, algorithm))
                yield ["python", "-m", "benchmarks.along", run, *numbers]


def _name(seed: int, arm: str, algorithm: str) -> str:
    return f"{arm.replace(' ', '-')}-{seed}/{algorithm}"


def run_all(plan: Plan, jobs: int) -> None:
    """Run all commands of a plan, those of a seed and arm one after the other.

    Raises:
        RuntimeError: If one of them fails; it says where its output is.
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
                said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
                raise RuntimeError(
                    f"{''.join(said)}\nThis failed, more of it in {log}: {shlex.join(command)}"
                )
            if command[2] == "benchmarks.along" and len(models(Path(command[3]))) < 3:
                stopped.set()
                raise RuntimeError(
                    f"{command[3]} kept fewer than two models: set export_steps lower"
                )
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
    """A run's learning curve: accuracy along it, against steps, tokens and seconds of training."""
    logged = read_records(folder / "metrics.jsonl")
    # Not those of the transcripts: what was sampled and not trained on has been paid for, too.
    sampled = {record["step"]: record.get("rollout/tokens", 0.0) for record in logged}
    steps = [step for step, _ in along]
    return Curve(
        tuple(steps),
        tuple(_accuracy(transcripts) for _, transcripts in along),
        tuple(int(sum(n for step, n in sampled.items() if step <= until)) for until in steps),
        tuple(seconds_of([r for r in logged if r["step"] <= until]) for until in steps),
    )


def _rollouts(folder: Path) -> Iterator[Transcript]:
    """What a run was trained on, of all its processes."""
    for path in sorted(folder.glob("transcripts*.jsonl")):
        cure = "delete that line: its episode is then not counted"
        yield from read_episodes(path, cure, appended=True)


def _accuracy(transcripts: Sequence[Transcript]) -> float:
    found = summarise(transcripts).accuracy
    if found is None:
        raise ValueError("no episode of an evaluation was scored")
    return found.mean


@dataclass(frozen=True)
class Course:
    """What came of a run: its learning curve, and what its models did with their tool."""

    curve: Curve
    along: list[Summary]
    """Figures of each evaluation, in order of the curve's steps."""
    training: dict[int, Summary]
    """The same of the rollouts that it was trained on, a third of its steps each, by the last of these."""


def read_course(folder: Path, problems: int, k: int) -> Course:
    """A finished and evaluated run."""
    evaluated = list(evaluate_along(folder, problems, k))
    curve = read_curve(folder, evaluated)
    return Course(
        curve,
        [summarise(transcripts) for _, transcripts in evaluated],
        summarise_along(_rollouts(folder), _thirds(folder)),
    )


def _thirds(folder: Path) -> list[int]:
    """The last steps of the thirds of a run's training."""
    path = folder / "metrics.jsonl"
    end = max((record["step"] for record in read_records(path)), default=0)
    if not end:
        raise damaged(path, "it holds no step", "train this run again, under another --runs")
    return sorted({end * part // 3 for part in (1, 2, 3)} - {0})


def tool_use(plan: Plan, algorithm: str) -> dict[str, Summary]:
    """What the models of all seeds did with the interpreter, in each third of the training, all rollouts together."""
    folders = [plan.folder(seed, "interpreter", algorithm) for seed in plan.seeds]
    together = itertools.chain.from_iterable(map(_rollouts, folders))
    found, first = {}, 1
    for last, summary in summarise_along(together, _thirds(folders[0])).items():
        found[f"steps {first} to {last}"] = summary
        first = last + 1
    return found


def report_of(plan: Plan) -> dict[str, Any]:
    """All figures of a plan whose commands have run, as plain JSON values."""
    found: dict[str, Any] = {}
    for algorithm in plan.algorithms:
        for seed in plan.seeds:
            courses = {
                arm: read_course(plan.folder(seed, arm, algorithm), plan.problems, plan.k)
                for arm in ARMS
            }
            interpreter, text_only = (courses[arm].curve for arm in ARMS)
            calibration = calibrate(text_only)
            ratios = compare(interpreter, text_only)
            found.setdefault(algorithm, {})[str(seed)] = {
                "arms": {
                    arm: {
                        "curve": asdict(course.curve),
                        "along": [summary.to_json() for summary in course.along],
                        "training": {s: each.to_json() for s, each in course.training.items()},
                    }
                    for arm, course in courses.items()
                },
                "area": {arm: courses[arm].curve.area for arm in ARMS},
                "calibration": {**asdict(calibration), "valid": calibration.valid},
                "step_ratios": ratios,
                "tokens_ratio": _ratio(interpreter, text_only, "tokens"),
                "seconds_ratio": _ratio(interpreter, text_only, "seconds"),
                "claim_holds": claim_holds(ratios),
            }
    return found


def _ratio(interpreter: Curve, text_only: Curve, of: str) -> float | None:
    """Of what the two arms took until text-only's best accuracy."""
    ours, theirs = interpreter.first(text_only.best, of), text_only.first(text_only.best, of)
    return None if ours is None or not theirs else ours / theirs


def main(arguments: list[str] | None = None) -> int:
    """Runs what has not been run, and reports; returns the exit status: 1 if a comparison is void or the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny", help="(tiny)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--algorithms", nargs="+", default=["grpo", "ppo", "dapo"])
    parser.add_argument("--problems", type=int, default=100, help="held-out ones (100)")
    parser.add_argument("--k", type=int, default=4, help="episodes of each (4)")
    parser.add_argument("--jobs", type=int, default=2, help="commands side by side (2)")
    parser.add_argument("--runs", type=Path, help="folder of the runs (runs/replication/PRESET)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the figures")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="key=value", help="of what follows the cold starts"
    )
    options = parser.parse_args(arguments)
    if min(options.problems, options.k, options.jobs) < 1:
        parser.error("--problems, --k and --jobs must be at least 1")
    preset = Path(options.preset).name.removesuffix(".yaml")
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
        found = report_of(plan)
        tools = {algorithm: tool_use(plan, algorithm) for algorithm in plan.algorithms}
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
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
        "algorithms": found,
        "tool_use": {
            algorithm: {name: summary.to_json() for name, summary in rows.items()}
            for algorithm, rows in tools.items()
        },
    }
    name = f"replication_{preset}"
    write_results(options.out / f"{name}.json", report, indent=1)
    draw(found, options.out / f"{name}.png")
    draw_tools(found, options.out / f"{name}_tools.png")
    print(table(found))
    for algorithm, rows in tools.items():
        print(f"\n{algorithm}, with the interpreter, rollouts of all seeds\n")
        print(tool_table(rows))
    each = [seed for seeds in found.values() for seed in seeds.values()]
    void = [seed for seed in each if not seed["calibration"]["valid"]]
    held = [seed for seed in each if seed["calibration"]["valid"] and seed["claim_holds"]]
    print(f"\n{len(each)} comparisons, {len(void)} void; the claim holds in {len(held)}")
    return 0 if len(held) == len(each) else 1


if __name__ == "__main__":
    sys.exit(main())
