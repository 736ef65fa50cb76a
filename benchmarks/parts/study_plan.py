"""The plan of `benchmarks.recovery`: studies, parts, seeds, budgets, and the commands of each part.

Everything that could be chosen by looking at a result is fixed here and in the preset
`recovery_study.yaml`, and was committed before any curve was looked at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.parts import study_larger as larger
from benchmarks.parts.study_larger import LARGER, LARGER_SMALL, LargerSizes
from retool_env.errors import SettingsError
from retool_env.faults import KINDS
from retool_env.provenance import REVISION

PRESET = Path(__file__).with_name("recovery_study.yaml")
"""The preset of all runs."""
SEEDS = (0, 1, 2)
"""The training seeds. A seed has its own problems, traces, initial weights and sampling."""
ALGORITHMS = {
    "grpo": ("grpo", ()),
    "ppo": ("ppo", ()),
    "dapo": ("dapo", ()),
    "spare": ("grpo", ("spare=2",)),
}
"""The algorithms of study A: the name of the algorithm in `agents`, and its further settings.
`spare` samples two rollouts for each trained rollout, and the cleaner right ones stay."""
RATES = {"grpo": 0.0, "faults10": 0.1, "faults25": 0.25}
"""The fault rates of the training in study B, by the name of the run. Rate 0 is study A's GRPO."""
SEEN = tuple(kind.name for kind in KINDS.values() if kind.seen)
"""The kinds of faults that the cold start and the training of study B meet."""
REPLICATION = "replication"
"""The part that `benchmarks.replication` runs."""
COLD_RATE = 0.2
"""The fault rate of the cold start's traces."""
TOP_P = 0.9
"""The nucleus of all evaluations. The paper's 0.7 would cut off each choice with a share below 0.3,
such as a check or text alone: the habits that the study is about."""

STUDIES = {
    "A": "Does reinforcement learning without faults make the tool used more, sooner and better?",
    "B": "Does training under seen faults buy recovery from held-out faults, and at which price?",
    "C": "SmolLM2-135M before and after reinforcement learning, and the replication anew.",
    "D": "Is a false value noticed, the farther it is from plausible?",
}
"""The studies and their questions."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a study."""

    traces: int
    """Number of problems that the script solves for a cold start."""
    problems: int
    """Number of training problems of RL."""
    steps: int
    """Optimizer steps of RL."""
    along: int
    """Number of problems of an evaluation along a run."""
    whole: tuple[str, ...]
    """Options of `retool recover` for the whole suite."""
    larger: LargerSizes
    """The sizes of study C."""
    settings: tuple[str, ...] = ()
    """Settings of all RL runs that override the preset."""
    epochs: float = 3
    """Passes of the cold start over its traces."""


WHOLE = Sizes(
    traces=12_000,
    problems=4000,
    steps=60,
    along=20,
    whole=("--k", "4", "--m", "4", "--samples", "16", "--batch", "128"),
    larger=LARGER,
)
"""The study: the offline part of suite v0, 60 problems, 4 parents each, m = 4."""
SMALL = Sizes(
    traces=12,
    problems=8,
    steps=2,
    along=2,
    whole=("--k", "1", "--m", "1", "--samples", "1", "--problems", "1"),
    larger=LARGER_SMALL,
    settings=("prompts=2", "rollouts=2"),
    epochs=1,
)
"""A run through all code in about a minute, for tests. Its figures mean nothing."""


@dataclass(frozen=True)
class Part:
    """A part of the study, which runs in one go and is never run again."""

    name: str
    """The name, which is also the name of its file in the folder of results."""
    study: str
    """The study, a key of `STUDIES`."""
    seed: int
    """The training seed."""
    hours: float
    """The time that it takes on two quiet cores, in hours: an estimate."""
    after: tuple[str, ...] = ()
    """The parts that must be done before."""
    elsewhere: str = ""
    """The command of a part that another benchmark runs; empty: this benchmark runs it."""

    @property
    def run(self) -> str:
        """The name of the run without its seed: `cold`, a key of `ALGORITHMS` or of `RATES`."""
        return self.name.rpartition("-")[0]

    @property
    def is_rl(self) -> bool:
        """Whether the part trains a model by RL."""
        return self.run in {**ALGORITHMS, **RATES} or self.name == larger.TRAINED


def all_parts() -> list[Part]:
    """All parts, in the order in which they run: the first seed first."""
    parts = []
    for seed in SEEDS:
        cold = f"cold-{seed}"
        parts.append(Part(cold, "A", seed, 0.5))
        parts.append(Part(f"grpo-{seed}", "A", seed, 0.75, (cold,)))
        parts += [Part(f"{run}-{seed}", "B", seed, 0.75, (cold,)) for run in RATES if run != "grpo"]
        needed = (cold, f"grpo-{seed}", f"faults25-{seed}")
        parts.append(Part(f"values-{seed}", "D", seed, 0.25, needed))
        others = [run for run in ALGORITHMS if run != "grpo"]
        parts += [Part(f"{run}-{seed}", "A", seed, 0.75, (cold,)) for run in others]
    parts.append(Part(larger.COLD, "C", 0, 0.75))
    parts.append(Part(larger.BEFORE, "C", 0, 1.0, (larger.COLD,)))
    parts.append(Part(larger.TRAINED, "C", 0, 1.0, (larger.COLD,)))
    parts.append(Part(larger.AFTER, "C", 0, 1.0, (larger.TRAINED,)))
    parts.append(Part(REPLICATION, "C", 0, 1.5, elsewhere="python -m benchmarks.replication"))
    return parts


@dataclass(frozen=True)
class Plan:
    """The plan of a study: its sizes and folders."""

    runs: Path
    """The folder of the runs."""
    results: Path
    """The folder of the results: a file for each part."""
    sizes: Sizes = WHOLE
    """The sizes."""

    def file(self, part: str) -> Path:
        """The file of a part's results."""
        return self.results / f"{part}.json"

    def done(self, part: str) -> bool:
        """Whether a part is done: the replication, with the present revision of the environment."""
        if part != REPLICATION:
            return self.file(part).exists()
        file = self.results.parent / "replication_tiny.json"
        try:
            return bool(json.loads(file.read_text(encoding="utf-8")).get("revision") == REVISION)
        except (OSError, ValueError):
            return False

    def read(self, name: str) -> dict[str, Any]:
        """The results of a part that is done.

        Args:
            name: The name of the part.

        Raises:
            SettingsError: If the file is damaged, or its part began with weights that
                the part before it does not have now.
        """
        file = self.file(name)
        part = next(part for part in all_parts() if part.name == name)
        try:
            done: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if done["part"] != name or not done["seconds"] or not done["date"]:
                raise ValueError
            began = dict(done["began_with"]) if part.after else {}
            if part.study != "D":  # a part of study D trains no model
                weights_of(done)
            for evaluation in done.get("evaluations", {}).values():
                evaluation["use"], evaluation["next"], evaluation["pairs"], evaluation["accuracy"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SettingsError(
                f"{file} is damaged, or of another version of this study: delete it and run "
                f"--part {name} again. It is soon done if {self.folder(name)} is still there"
            ) from None
        for before, weights in began.items():
            if self.done(before) and weights_of(self.read(before)) != weights:
                raise SettingsError(
                    f"{file}: the part began with weights that {before} does not have now: "
                    f"delete this file and {self.folder(name)}, and run --part {name} again"
                )
        return done

    def folder(self, part: str) -> Path:
        """The folder of a part's run, with its evaluations."""
        return self.runs / part

    def checkpoint(self, part: str) -> Path:
        """The folder of the model that a part trained."""
        return self.folder(part) / "checkpoint"

    def half_way(self, part: str) -> Path:
        """The folder of the model after half of the steps of a part's training."""
        return self.folder(part) / "checkpoints" / str(self.sizes.steps // 2)

    def evaluations(self, part: Part) -> dict[str, Path]:
        """The folders of the evaluations of a part: the whole suite, and points along the run."""
        folder = self.folder(part.name) / "recover"
        if part.study == "C":
            return {"whole": folder / "whole"} if part.name in larger.EVALUATED else {}
        names = ["whole", "end"] if part.run == "cold" else ["whole", "half", "end"]
        return {name: folder / name for name in names}

    def commands(self, part: Part) -> Iterator[list[str]]:
        """The commands of a part, in order. Each continues where it was stopped.

        Args:
            part: A part without `elsewhere`.
        """
        if part.study == "C":
            yield from larger.commands(part.name, self.runs, self.sizes.larger, TOP_P)
            return
        if part.study == "D":
            models = [str(self.checkpoint(name)) for name in part.after]
            out = str(self.folder(part.name) / "values.json")
            problems = str(self.sizes.along)
            yield _python("benchmarks.parts.study_values", *models, "--out", out, "-n", problems)
            return
        yield from self._training(part)
        model = str(self.checkpoint(part.name))
        folders = self.evaluations(part)
        if "half" in folders:
            yield self._along(str(self.half_way(part.name)), folders["half"])
        yield self._along(model, folders["end"])
        yield [
            *("retool", "recover", "--model", model, "--out", str(folders["whole"]), "--resume"),
            *("--top-p", str(TOP_P), *self.sizes.whole),
        ]

    def _training(self, part: Part) -> Iterator[list[str]]:
        data = self.runs / f"language-{part.seed}"
        run = ("--preset", os.path.relpath(PRESET), "--resume", "--runs", str(self.runs))
        named = (f"name={part.name}", f"seed={part.seed}", f"env.path={data / 'problems.jsonl'}")
        if part.run == "cold":
            sizes = ("--traces", str(self.sizes.traces), "--problems", str(self.sizes.problems))
            seed = str(part.seed)
            yield _python("benchmarks.parts.study_language", str(data), "--seed", seed, *sizes)
            made = (f"model={data / 'model'}", f"data={data / 'traces.jsonl'}")
            yield _python("agents", "sft", *run, *named, *made, f"epochs={self.sizes.epochs:g}")
            return
        algorithm, settings = ALGORITHMS.get(part.run, ("grpo", ()))
        rate = RATES.get(part.run, 0.0)
        faults = {"rate": rate, "kinds": list(SEEN), "by_rollout": False}
        steps = self.sizes.steps
        yield _python(
            *("agents", algorithm, *run, *named, f"model={self.checkpoint(f'cold-{part.seed}')}"),
            *(f"steps={steps}", f"export_steps={steps // 2}", *settings, *self.sizes.settings),
            *([f"env.faults={json.dumps(faults)}"] if rate else []),
        )

    def _along(self, model: str, folder: Path) -> list[str]:
        return [
            *("retool", "recover", "--model", model, "--out", str(folder), "--resume"),
            *(
                "--top-p",
                str(TOP_P),
                "--suite",
                "own",
                "--env",
                "ReTool-Staged-v0",
                "--problems",
                str(self.sizes.along),
            ),
            *("--protocol", "fork", "--k", "2", "--m", "2", "--batch", "128"),
            "difficulty=[2,3,4,5]",
        ]


def weights_of(done: Mapping[str, Any]) -> str:
    """The hash of the weights that a part trained or evaluated.

    Args:
        done: The results of the part.
    """
    if evaluations := done.get("evaluations"):
        return str(evaluations["whole"]["of"]["weights"])
    return str(done["weights"])


def _python(module: str, *arguments: str) -> list[str]:
    return ["python", "-m", module, *arguments]


def next_parts(plan: Plan, hours: float) -> list[Part]:
    """The next parts that are not done, as many as fit into a time; at least one.

    Args:
        plan: The plan.
        hours: The time in hours.
    """
    chosen: list[Part] = []
    for part in all_parts():
        if part.elsewhere or plan.done(part.name):
            continue
        if chosen and sum(one.hours for one in chosen) + part.hours > hours:
            break
        chosen.append(part)
    return chosen


def hours_left(plan: Plan, study: str, parts: Sequence[Part] | None = None) -> float:
    """The hours of two cores that the parts of a study still take.

    Args:
        plan: The plan.
        study: The study.
        parts: The parts; `None`: all.
    """
    some = all_parts() if parts is None else parts
    return sum(part.hours for part in some if part.study == study and not plan.done(part.name))
