"""RFT: rejection-sampling fine-tuning (arXiv 2308.01825, section 3.3).

In each round the model writes k responses to each problem; those with the right answer, each different one once, become
traces, and the model is fine-tuned on its own tokens in them (`sft.py`, with its masks). The next round samples from what came of
it, and starts again from the initial model on the traces of all rounds, as STaR does (arXiv 2203.14465), or goes on from it.

Each round is a run of `sft.py` in `stages/` below the run's folder.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from agents import sft
from agents.base.board import Bar
from agents.base.fields import RolloutSettings
from agents.base.model import check_learning_rate, load_model
from agents.base.records import damaged, read_episodes, write_transcripts_atomically
from agents.base.sampler import check_engine, make_policy
from agents.base.session import Session
from agents.base.settings import SettingsError, build_settings, check_least, setting, stage
from agents.base.sharding import processes, read_by_all
from retool_env.execution import Sandbox
from retool_env.metrics.summary import summarise
from retool_env.problem import Problem, ProblemSource
from retool_env.rollout import Policy, PolicyUnavailable, RolloutEngine
from retool_env.rollout.engine import Group, run_blocking
from retool_env.rollout.progress import Progress
from retool_env.rules import Rules
from retool_env.training.trained_weights import trained_weights
from retool_env.transcript import Transcript, write_transcripts


@dataclass(frozen=True)
class Settings(RolloutSettings):
    """Settings of the rounds."""

    name: str = "rft"
    rounds: int = setting(1, "of sampling and fine-tuning; with --resume a run may be given more")
    problems: int = setting(500, "of a round; each has others, as far as there are any")
    k: int = setting(8, "responses a problem")
    keep: int = setting(4, "right ones of a problem that are kept in a round, at most")
    restart: bool = setting(
        True, "fine-tune the initial model on all rounds' traces; false: the last one on its own"
    )
    sft: dict[str, Any] = stage(
        "settings of the fine-tuning (sft.epochs=2)",
        ("model", "data", "env", "sandbox", "traces", "mix"),
    )


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run the rounds that have not been run yet.

    Returns:
        The folder of the trained model.

    Raises:
        SettingsError: If a number is out of range, or no response of a round was right.
        PolicyUnavailable: If all episodes of a round failed.
    """
    counts = ("rounds", "problems", "k", "keep", "sample_batch", "in_flight")
    check_least(settings, {**dict.fromkeys(counts, 1), "lora_rank": 0})
    state = processes()
    check_engine(settings.engine, state.num_processes, settings.sample_batch)
    with Session(settings, folder, resume, "rounds", lambda: rounds_sampled(folder)) as run:
        if run.finished:
            return run.checkpoint
        tuning = [round_tuning(settings, folder, number) for number in range(settings.rounds)]
        sft.check_batch(tuning[0], state.num_processes)
        loaded, _ = load_model(settings.model, settings.dtype)
        check_learning_rate(tuning[0], loaded.num_parameters(), section="sft.")
        sandbox = run.open_sandbox()
        run.start()
        run.resume_at(settings.rounds)
        reporter = run.open_reporter(folder)
        model = settings.model
        for number, fine_tuning in enumerate(tuning):
            traces = folder / "stages" / f"{fine_tuning.name}.jsonl"
            missing = not traces.exists()
            state.wait_for_everyone()  # all have looked before one writes it
            if missing:
                rank = state.process_index
                kept = traces.with_suffix(f".samples-{rank}.jsonl" if rank else ".samples.jsonl")
                groups = sample(settings, number, model, run.rules, run.problems, sandbox, kept)
                found = chosen_traces(run, number, groups)
                if run.main:
                    # Last, the traces: with them the round is sampled, and not logged again.
                    if all(record["step"] != number + 1 for record in run.metrics()):
                        record = {**figures(groups), "rft/traces": len(found)}
                        run.log({"step": number + 1, **record})
                        reporter.log(number + 1, record)
                    write_transcripts_atomically(traces, found)
                state.wait_for_everyone()
            else:
                round_traces(traces)
            base = settings.model if settings.restart else model
            fine_tuning = dataclasses.replace(fine_tuning, model=base)
            target = folder / "stages" / fine_tuning.name
            model = str(sft.train(fine_tuning, target, resume=True))
        if run.main:
            run.checkpoint.unlink(missing_ok=True)
            run.checkpoint.symlink_to(Path(model).relative_to(folder))
    return run.checkpoint


def chosen_traces(run: Session[Settings], number: int, groups: Sequence[Group]) -> list[Transcript]:
    """The traces of a round that was just sampled, with those of the rounds before if they count.

    Raises:
        PolicyUnavailable: If all episodes failed.
        SettingsError: If no response was right.
    """
    if not any(transcript.scored for group in groups for transcript in group):
        raise PolicyUnavailable(
            f"round {number + 1}: all episodes failed, in the sandbox or the model; `retool doctor` checks the one"
        )
    found = choose(groups, run.settings.keep)
    if not found:
        raise SettingsError(
            f"round {number + 1}: no response was right, so there is nothing to learn from: take more k, easier "
            "problems, or a longer cold start"
        )
    if number and run.settings.restart:
        before = round_traces(run.folder / "stages" / f"round-{number}.jsonl")
        found = distinct([*before, *found])
    return found


def rounds_sampled(folder: Path) -> int:
    """The number of the last round whose traces are chosen."""
    names = [re.fullmatch(r"round-(\d{1,9})\.jsonl", path.name) for path in folder.glob("stages/*")]
    return max((int(name[1]) for name in names if name), default=0)


def round_traces(path: Path) -> list[Transcript]:
    """The traces of a round that was sampled.

    Raises:
        SettingsError: If the file is damaged.
    """
    cure = f"delete {path}: the traces are then chosen anew from what was sampled"
    traces = list(read_episodes(path, cure))
    if not traces:
        raise damaged(path, "it is empty", cure)
    return traces


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
    kept: Path,
) -> list[Group]:
    """A round's responses, `k` to each of its problems. Of several processes each samples its part, and all return all.

    They are kept in a file as they are done, so that a round that was stopped samples none of them again.
    """
    order = np.random.default_rng(settings.seed).permutation(len(problems))
    count = min(settings.problems, len(order))
    places = np.arange(number * count, (number + 1) * count) % len(order)
    chosen = [problems[int(i)] for i in order[places]]
    state = processes()
    own = range(state.process_index, len(chosen), state.num_processes)
    progress = Progress()
    found = kept_groups(kept, settings.k)
    with ExitStack() as resources:
        policy = policy_of(settings, number, model, resources)
        engine = RolloutEngine(policy, rules, sandbox, settings.in_flight, progress=progress)

        async def one(index: int, problem: Problem) -> None:
            run = engine.groups([problem], settings.k, (settings.seed, number, index))
            async with aclosing(run) as groups:
                async for _, group in groups:
                    found[problem.id] = group
                    write_transcripts(kept, group)
                    bar.advance()

        async def rest() -> None:
            left = ((i, chosen[i]) for i in own if chosen[i].id not in found)
            await asyncio.gather(*(one(i, problem) for i, problem in left))

        with Bar(f"round {number + 1}: sampling", len(own), live=progress) as bar:
            bar.set_total(len(own), len(found))
            run_blocking(rest())
        # With which all wait for each other: the first process has the weights that servers get.
        everywhere = dict(gather_object([(i, found[chosen[i].id]) for i in own]))
    return [everywhere[i] for i in range(len(chosen))]


def policy_of(settings: Settings, number: int, model: str, resources: ExitStack) -> Policy:
    """What samples a round: the engine with the round's model, closed with the resources. All processes call it."""
    state = processes()
    name, options = check_engine(settings.engine, state.num_processes, settings.sample_batch)
    with read_by_all():
        loaded, tokenizer = load_model(model, settings.dtype)
    if name == "transformers" and torch.accelerator.is_available():
        # transformers' wrapper of `to` takes its argument for the model.
        loaded = loaded.to(torch.accelerator.current_accelerator())  # type: ignore[arg-type]  # there is one
    policy = make_policy(name, options, loaded, tokenizer, model, settings.temperature, apart=False)
    resources.enter_context(policy)
    # Servers have whatever they were started with, or an earlier round's.
    if name.startswith("http"):
        version = number + 1
        if state.is_main_process:
            run_blocking(policy.update_weights(version, trained_weights(loaded)))
        state.wait_for_everyone()
        if not state.is_main_process:
            run_blocking(policy.follow(version))
    return policy


def kept_groups(path: Path, k: int) -> dict[str, Group]:
    """The groups of `k` in a file, by their problems' ids.

    What else is there, where a start was killed, is dropped; so is a group in which an episode failed, to be sampled again.
    """
    groups: dict[str, Group] = {}
    cure = "delete that line: its problem is then sampled again"
    for transcript in read_episodes(path, cure, appended=True):
        groups.setdefault(transcript.problem.id, []).append(transcript)
    whole = {name: group for name, group in groups.items() if len(group) == k}
    groups = {name: group for name, group in whole.items() if all(each.scored for each in group)}
    write_transcripts_atomically(
        path, [transcript for group in groups.values() for transcript in group]
    )
    return groups


def figures(groups: Sequence[Group]) -> dict[str, float | None]:
    """Accuracy of the responses, and the share of problems with a right one."""
    accuracy = summarise([transcript for group in groups for transcript in group]).accuracy
    solved = sum(any(transcript.correct for transcript in group) for group in groups)
    return {
        "env/accuracy": accuracy.mean if accuracy else None,
        "rft/solved": solved / len(groups),
    }


def round_tuning(settings: Settings, folder: Path, number: int) -> sft.Settings:
    """Settings of a round's fine-tuning."""
    name = f"round-{number + 1}"
    shared = (
        "dtype",
        "seed",
        "lora_rank",
        "gradient_checkpointing",
        "allow_high_learning_rate",
        "report_to",
    )
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
