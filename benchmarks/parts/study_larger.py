"""Study C of `benchmarks.recovery`: the commands of its parts, for SmolLM2-135M.

Its problems are sums and word problems, since a script can solve both in the language of the study.
The cold start has so few traces that the model solves many problems sometimes: neither always, nor
never. The evaluation has the kinds of faults of the suite, on problems of its own, because the
suite's staged problems are too long for this model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LARGER_PRESET = Path(__file__).with_name("recovery_larger.yaml")
"""The preset of the runs of study C."""


@dataclass(frozen=True)
class LargerSizes:
    """The sizes of study C."""

    traces: int
    """Number of problems that the script solves for the cold start."""
    problems: int
    """Number of training problems of RL."""
    held_out: int
    """Number of problems of the evaluation."""
    steps: int
    """Optimizer steps of RL."""
    evaluation: tuple[str, ...]
    """Options of `retool recover`."""
    cold: tuple[str, ...] = ()
    """Settings of the cold start that override the preset."""
    rl: tuple[str, ...] = ()
    """Settings of RL that override the preset."""


LARGER = LargerSizes(
    traces=400,
    problems=1000,
    held_out=100,
    steps=30,
    evaluation=("--k", "3", "--m", "2", "--samples", "4", "--batch", "96"),
)
"""Study C."""
LARGER_SMALL = LargerSizes(
    traces=4,
    problems=8,
    held_out=2,
    steps=1,
    evaluation=("--k", "1", "--m", "1", "--samples", "1", "--max-tokens", "48"),
    cold=("epochs=1",),
    rl=("prompts=2", "rollouts=2", "micro_batch=4", "env.max_tokens=48"),
)
"""A run through all code, for tests. Its figures mean nothing."""
COLD, BEFORE, TRAINED, AFTER = (f"smollm2-{name}" for name in ("cold", "before", "grpo", "after"))
"""The parts: the cold start, its evaluation, GRPO, and the evaluation after it."""
EVALUATED = {BEFORE: COLD, AFTER: TRAINED}
"""The part whose model a part evaluates."""


def commands(part: str, runs: Path, sizes: LargerSizes, top_p: float) -> Iterator[list[str]]:
    """The commands of a part of study C, in order. Each continues where it was stopped.

    Args:
        part: The part.
        runs: The folder of the runs.
        sizes: The sizes.
        top_p: The nucleus of the evaluations.
    """
    data, model = runs / "language-smollm2", runs / "smollm2"
    if evaluated := EVALUATED.get(part):
        checkpoint, out = runs / evaluated / "checkpoint", runs / part / "recover" / "whole"
        yield [
            *("retool", "recover", "--model", str(checkpoint), "--out", str(out), "--resume"),
            *("--top-p", str(top_p), "--suite", "own", "--env", "ReTool-JSONL-v0"),
            *("--protocol", "fork", "--protocol", "frequency", *sizes.evaluation),
            f"path={data / 'held_out.jsonl'}",
        ]
        return
    run = ("--preset", os.path.relpath(LARGER_PRESET), "--resume", "--runs", str(runs))
    named = (f"name={part}", "seed=0", f"env.path={data / 'problems.jsonl'}")
    python = ["python", "-m"]
    if part == COLD:
        counts = (sizes.traces, sizes.problems, sizes.held_out)
        names = ("--traces", "--problems", "--held-out")
        options = (text for both in zip(names, map(str, counts), strict=True) for text in both)
        yield [*python, "agents", "smollm2", str(model)]
        language = ("benchmarks.parts.study_language", str(data), "--words", str(model))
        yield [*python, *language, *options]
        made = (f"model={model}", f"data={data / 'traces.jsonl'}")
        yield [*python, "agents", "sft", *run, *named, *made, *sizes.cold]
        return
    begin = f"model={runs / COLD / 'checkpoint'}"
    rl = (begin, f"steps={sizes.steps}", *sizes.rl)
    yield [*python, "agents", "grpo", *run, *named, *rl]
