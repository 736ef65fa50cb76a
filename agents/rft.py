"""RFT: rejection-sampling fine-tuning (arXiv 2308.01825, section 3.3).

In each round the model writes k responses to each problem; those with the right answer, each different one once, become
traces, and the model is fine-tuned on its own tokens in them (`sft.py`, with its masks). The next round samples from what came of
it, and starts again from the initial model on the traces of all rounds, as STaR does (arXiv 2203.14465), or goes on from it.

Each round is a run of `sft.py` in `stages/` below the run's folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import sft
from agents.model import load_model
from agents.progress import Bar
from agents.run import Run
from agents.settings import (
    SANDBOX,
    SettingsError,
    build_settings,
    find_sandbox,
    find_task,
    setting,
)
from retool_env.episode import Rules
from retool_env.metrics import summarise
from retool_env.problems import ProblemSource
from retool_env.rollout import RolloutEngine
from retool_env.rollout.engine import Group
from retool_env.rollout.progress import Progress
from retool_env.rollout.transformers import TransformersPolicy
from retool_env.sandbox import Sandbox
from retool_env.transcript import Transcript, read_transcripts, write_transcripts

ONE_PROCESS = True
"""It is not for several processes."""


@dataclass(frozen=True)
class Settings:
    """Settings of the rounds."""

    name: str = setting("rft", "the run's folder is runs/<name>")
    model: str = setting("runs/sft/checkpoint", "a folder or a Hub id")
    dtype: str = setting("float32", "of the weights")
    env: dict[str, Any] = setting(
        {"id": "ReTool-Arithmetic-v0"}, "the environment's id and settings"
    )
    sandbox: str | dict[str, Any] = setting("nsjail", SANDBOX)
    seed: int = setting(0, "of problems, sampling and order")
    rounds: int = setting(1, "of sampling and fine-tuning")
    problems: int = setting(500, "of a round; each has others, as far as there are any")
    k: int = setting(8, "responses a problem")
    keep: int = setting(4, "right ones of a problem that are kept in a round, at most")
    restart: bool = setting(
        True, "fine-tune the initial model on all rounds' traces; false: the last one on its own"
    )
    sample_batch: int = setting(128, "sequences that are decoded together, at most")
    in_flight: int = setting(256, "episodes in flight at once, at most")
    temperature: float = setting(1.0, "of sampling")
    sft: dict[str, Any] = setting({}, "settings of the fine-tuning (sft.epochs=2)")
    lora_rank: int = setting(0, "0: full fine-tuning")
    gradient_checkpointing: bool = setting(False, "less memory, more time")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run the rounds that have not been run yet.

    Returns:
        The folder of the trained model.

    Raises:
        SettingsError: If a number is out of range, or no response of a round was right.
    """
    for name in ("rounds", "problems", "k", "keep"):
        if getattr(settings, name) < 1:
            raise SettingsError(f"{name} must be at least 1, not {getattr(settings, name)}")
    run = Run(folder, settings, resume)
    if run.finished:
        return run.checkpoint
    rules, problems = find_task(settings.env)
    tuning = [_tuning(settings, folder, number) for number in range(settings.rounds)]
    load_model(settings.model, settings.dtype)  # so that a mistake leaves nothing behind
    model = settings.model
    with find_sandbox(settings.sandbox, rules) or nullcontext() as sandbox:
        run.start()
        for number, stage in enumerate(tuning):
            traces = Path(stage.data)
            if not traces.is_file():
                groups = sample(settings, number, model, rules, problems, sandbox)
                found = choose(groups, settings.keep)
                if not found:
                    raise SettingsError(
                        f"round {number + 1}: no response was right, so there is nothing to learn from: take more k, easier "
                        "problems, or a longer cold start"
                    )
                if number and settings.restart:
                    found = distinct([*read_transcripts(Path(tuning[number - 1].data)), *found])
                part = traces.with_suffix(".part")
                part.parent.mkdir(parents=True, exist_ok=True)
                part.unlink(missing_ok=True)
                write_transcripts(part, found)
                part.replace(traces)
                run.log({"step": number + 1, **figures(groups), "rft/traces": len(found)})
            base = settings.model if settings.restart else model
            stage = dataclasses.replace(stage, model=base)
            model = str(sft.train(stage, folder / "stages" / stage.name, resume=True))
    run.checkpoint.unlink(missing_ok=True)
    run.checkpoint.symlink_to(Path(model).relative_to(folder))
    run.finish()
    return run.checkpoint


def distinct(transcripts: Iterable[Transcript]) -> list[Transcript]:
    """Right ones, one of each problem and response, in order. What programs printed is no part of a response."""
    found: dict[tuple[str, ...], Transcript] = {}
    for transcript in transcripts:
        if transcript.correct:
            turns = (span.text for span in transcript.response if span.author == "model")
            found.setdefault((transcript.problem.id, *turns), transcript)
    return list(found.values())


def choose(groups: Iterable[Group], keep: int) -> list[Transcript]:
    """The right transcripts of each problem, no two alike and no more than `keep`."""
    return [trace for group in groups for trace in distinct(group)[:keep]]


def sample(
    settings: Settings,
    number: int,
    model: str,
    rules: Rules,
    problems: ProblemSource,
    sandbox: Sandbox | None,
) -> list[Group]:
    """A round's responses, `k` to each of its problems."""
    order = np.random.default_rng(settings.seed).permutation(len(problems))
    count = min(settings.problems, len(order))
    places = np.arange(number * count, (number + 1) * count) % len(order)
    chosen = [problems[int(i)] for i in order[places]]
    loaded, tokenizer = load_model(model, settings.dtype)
    if torch.accelerator.is_available():
        loaded = loaded.to(torch.accelerator.current_accelerator())
    policy = TransformersPolicy(
        loaded, tokenizer, temperature=settings.temperature, max_batch=settings.sample_batch
    )
    progress = Progress()
    engine = RolloutEngine(policy, rules, sandbox, settings.in_flight, progress=progress)
    with Bar(f"round {number + 1}: sampling", count, live=progress) as bar:
        return engine.run(chosen, settings.k, (settings.seed, number), lambda *_: bar.advance())


def figures(groups: Sequence[Group]) -> dict[str, float | None]:
    """Accuracy of the responses, and the share of problems with a right one."""
    accuracy = summarise([transcript for group in groups for transcript in group]).accuracy
    solved = sum(any(transcript.correct for transcript in group) for group in groups)
    return {
        "env/accuracy": accuracy.mean if accuracy else None,
        "rft/solved": solved / len(groups),
    }


def _tuning(settings: Settings, folder: Path, number: int) -> sft.Settings:
    """Settings of a round's fine-tuning."""
    name = f"round-{number + 1}"
    shared = ("dtype", "seed", "lora_rank", "gradient_checkpointing")
    return build_settings(
        sft.Settings,
        {
            **{key: getattr(settings, key) for key in shared},
            **settings.sft,
            "name": name,
            "model": settings.model,
            "data": str(folder / "stages" / f"{name}.jsonl"),
            "env": settings.env,
            "sandbox": settings.sandbox,
        },
    )
