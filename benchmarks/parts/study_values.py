"""Study D: is a false value noticed, the farther it is from plausible?

    python -m benchmarks.parts.study_values runs/recovery/cold-0/checkpoint --out values.json

A model solves staged problems without faults. At one call of each episode, several continuations go
on from the true value, and from false values at four distances: one more or less, another digit,
another sign, and ten times the value. The fault is silent: the result has the usual form.

- *Noticed*: the next turn runs a program for the same value again, by one of the two programs of
  the study's language. A model that checks in any case does so from the true value as well, so the
  figure is the difference.
- *Contagion*: the final answer is the answer to which the false value leads, minus the share of
  this answer from the true value.

The file is written after each model. A model that is in the file with the same weights and numbers
is not measured again.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import hashlib
import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.base.presets import read_preset
from agents.base.records import write_atomically
from agents.base.settings import find_sandbox
from benchmarks.parts.study_language import read_value, values_of
from benchmarks.parts.study_plan import PRESET, TOP_P
from retool_env.checkpoint_task import TEMPERATURE
from retool_env.evaluation.identity import weights_hash
from retool_env.execution import Execution, Fault, Sandbox
from retool_env.grading import is_equivalent
from retool_env.metrics.causal.intervals import Pair, difference, share
from retool_env.problem import Problem
from retool_env.problems.staged import implied_answer, read_stages
from retool_env.rollout import RolloutEngine
from retool_env.rollout.engine import run_blocking
from retool_env.rollout.fork import Fork, has_program, shown_calls
from retool_env.rollout.transformers.policy import load_policy
from retool_env.task import make_task
from retool_env.transcript import Transcript


def _digit(value: int, rng: random.Random) -> int:
    """A value with another digit at a place that changes it by at least 2."""
    digits = str(abs(value))
    place = rng.randrange(max(1, len(digits) - 1))
    new = rng.choice([digit for digit in "123456789" if abs(int(digit) - int(digits[place])) > 1])
    return (-1 if value < 0 else 1) * int(digits[:place] + new + digits[place + 1 :])


DISTANCES: Mapping[str, Callable[[int, random.Random], int]] = {
    "one": lambda value, rng: value + rng.choice((-1, 1)),
    "digit": _digit,
    "sign": lambda value, rng: -value,
    "magnitude": lambda value, rng: 10 * value,
}
"""The false values, from plausible to implausible; values of stages are positive."""
CONTROL = "control"
"""The arm with the true value."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A call whose result shows a value of a stage."""

    parent: Transcript
    """The episode."""
    sample: int
    """The number of the episode among the episodes of its problem."""
    call: int
    """The number of the call."""
    stage: str
    """The name of the stage."""
    value: int
    """The true value."""

    def false_values(self) -> Iterator[tuple[str, int, str]]:
        """The distance, the false value, and the answer to which it leads, if it is another one."""
        text = repr((self.parent.problem.id, self.sample, self.call)).encode()
        rng = random.Random(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big"))
        for name, change in DISTANCES.items():
            false = change(self.value, rng)
            implied = implied_answer(self.parent.problem, self.stage, false)
            if implied is not None and not is_equivalent(implied, self.parent.problem.answer):
                yield name, false, implied

    def shown(self, false: int) -> Execution:
        """The result with a false value in place of the true value."""
        real = self.parent.spans[2 * self.call].execution
        assert real is not None  # the call ran
        pattern = rf"(?<!\d){self.value}(?!\d)"
        stdout = re.sub(pattern, str(false), real.stdout)
        return dataclasses.replace(
            real, stdout=stdout, fault=Fault("wrong_value", injected=True, real=real)
        )


def cases_of(parents: Sequence[tuple[int, Transcript]]) -> list[Case]:
    """One case of each episode: the first call that shows a value of a stage for the first time.

    Every other episode gives its second such call, if it has one.

    Args:
        parents: The number of each episode among the episodes of its problem, and the episode.
    """
    cases = []
    for sample, parent in parents:
        values = {stage.value: stage.name for stage in read_stages(parent.problem)}
        found: dict[str, Case] = {}
        for call in shown_calls(parent):
            execution = parent.spans[2 * call].execution
            if execution is None or not has_program(parent, call):
                continue
            for value, name in values.items():
                if name not in found and read_value(execution.stdout, name) == value:
                    found[name] = Case(parent, sample, call, name, value)
        calls = sorted(found.values(), key=lambda case: case.call)
        cases += calls[: 1 + sample % 2][-1:]
    return cases


def checks_again(continuation: Transcript, case: Case) -> bool:
    """Whether the turn after the call runs a program for the same value once more.

    Args:
        continuation: A continuation of the case.
        case: The case.
    """
    after = continuation.turns[case.call : case.call + 1]
    known = {stage.name: stage.value for stage in read_stages(case.parent.problem)}
    value = next(each for each in values_of(case.parent.problem) if each.name == case.stage)
    programs = [program.format(**known) for program in value.programs]
    return any(turn.content.strip() in programs for turn in after)


def figures(
    cases: Sequence[Case], continuations: Mapping[tuple[int, str], Sequence[Transcript]]
) -> dict[str, Any]:
    """The figures of each distance.

    Args:
        cases: The cases.
        continuations: The continuations by the index of the case and the arm.
    """
    made: dict[str, Any] = {}
    for name in DISTANCES:
        noticed, taken, right = [], [], []
        for index, case in enumerate(cases):
            implied = {arm: answer for arm, _, answer in case.false_values()}
            false = continuations.get((index, name), ())
            true = continuations.get((index, CONTROL), ())
            if name not in implied or not false or not true:
                continue

            def mean(some: Sequence[Transcript], value: Callable[[Transcript], bool]) -> float:
                return sum(map(value, some)) / len(some)

            def checks(one: Transcript, case: Case = case) -> bool:
                return checks_again(one, case)

            def takes(one: Transcript, answer: str = implied[name]) -> bool:
                return one.answer is not None and is_equivalent(one.answer, answer)

            problem = case.parent.problem.id
            noticed.append(Pair(problem, mean(false, checks), mean(true, checks), len(false)))
            taken.append(Pair(problem, mean(false, takes), mean(true, takes), len(false)))
            right.append((problem, mean(false, lambda one: bool(one.correct)), len(false)))
        made[name] = {
            "noticed": dataclasses.asdict(difference(noticed)),
            "checks_of_true": dataclasses.asdict(share((p, b, n) for p, _, b, n in noticed)),
            "contagion": dataclasses.asdict(difference(taken)),
            "right": dataclasses.asdict(share(right)),
        }
    return made


def measure(model: str, problems: Sequence[Problem], k: int, m: int, sandbox: Sandbox) -> Any:
    """The figures of one model.

    Args:
        model: The folder of the model.
        problems: The staged problems.
        k: Episodes of each problem.
        m: Continuations in each arm of a case.
        sandbox: The sandbox.
    """
    rules, _ = _task(1)
    policy = load_policy(model, "float32", temperature=TEMPERATURE, top_p=TOP_P)
    engine = RolloutEngine(policy, rules, sandbox, concurrency=64)
    groups = engine.run(problems, k, seed=0)
    parents = [(n, one) for group in groups for n, one in enumerate(group) if one.scored]
    cases = cases_of(parents)
    jobs = [
        (
            index,
            arm,
            Fork(case.parent, case.call, arm, shown, sample=case.sample, equal_budget=True),
        )
        for index, case in enumerate(cases)
        for arm, shown in (
            (CONTROL, case.parent.spans[2 * case.call].execution),
            *((name, case.shown(false)) for name, false, _ in case.false_values()),
        )
    ]

    async def all_forks() -> dict[tuple[int, str], list[Transcript]]:
        slots = asyncio.Semaphore(64)

        async def one(fork: Fork, number: int) -> Transcript:
            async with slots:
                problem = fork.transcript.problem
                return await engine.episode(problem, (0, *fork.seeds, number), fork=fork)

        made: dict[tuple[int, str], list[Transcript]] = {}
        some = await asyncio.gather(*(one(fork, n) for _, _, fork in jobs for n in range(m)))
        for position, transcript in enumerate(some):
            index, arm, _ = jobs[position // m]
            if transcript.scored:
                made.setdefault((index, arm), []).append(transcript)
        return made

    return {
        "problems": len(problems),
        "cases": len(cases),
        "figures": figures(cases, run_blocking(all_forks())),
    }


def _task(count: int) -> Any:
    """The rules of the study, and staged problems of the test split."""
    env = {name: value for name, value in read_preset(str(PRESET))["env"].items() if name != "id"}
    return make_task(
        "ReTool-Staged-v0", **env, difficulty=[2, 3, 4, 5], split="test", size=count, seed=7
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure some models, write the figures, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="the folders of the models")
    parser.add_argument("--out", type=Path, required=True, help="the file of the figures")
    parser.add_argument("-n", type=int, default=60, help="staged problems (60)")
    parser.add_argument("--k", type=int, default=2, help="episodes of each problem (2)")
    parser.add_argument("--m", type=int, default=4, help="continuations in each arm (4)")
    options = parser.parse_args(arguments)
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    sizes = {"n": options.n, "k": options.k, "m": options.m}
    same = {
        model: {"weights": weights_hash(Path(model)), "sizes": sizes} for model in options.models
    }
    left = [m for m in options.models if found.get(m, {}).get("measured") != same[m]]
    if not left:
        return 0
    rules, source = _task(options.n)
    sandbox = find_sandbox("nsjail", rules)
    assert sandbox is not None  # the rules have an interpreter
    problems = [source[index] for index in range(options.n)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with sandbox:
        for model in left:
            measured = measure(model, problems, options.k, options.m, sandbox)
            found[model] = {"measured": same[model], **measured}
            write_atomically(options.out, json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
