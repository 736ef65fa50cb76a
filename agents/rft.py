"""RFT: rejection-sampling fine-tuning (arXiv 2308.01825, section 3.3).

In each round the model writes k responses to each problem. The different right responses become
traces, and a model is fine-tuned on its own tokens in the traces (by `sft.py`, with its masks). The
fine-tuned model samples the next round. The next fine-tuning starts from the initial model, on the
traces of all rounds, as in STaR (arXiv 2203.14465); or it continues with the last model.

Each round's fine-tuning is a run of `sft.py` in `stages/` below the run's folder.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import sft
from agents.base.board import Bar
from agents.base.fields import RolloutSettings
from agents.base.held_out import Episodes, HeldOut, HeldOutTask, held_out_task
from agents.base.model import check_learning_rate, load_model
from agents.base.records import damaged, read_episodes, write_transcripts_atomically
from agents.base.reporting import Reporter
from agents.base.sampler import check_engine, make_policy
from agents.base.session import Session
from agents.base.settings import SettingsError, build_settings, check_least, setting, stage
from agents.base.sharding import processes, read_by_all
from agents.base.stopping import Stopping
from retool_env.checkpoint_task import TEMPERATURE, TOP_P
from retool_env.execution import Sandbox
from retool_env.metrics.summary import summarise
from retool_env.problem import Problem, ProblemSource
from retool_env.rollout import Policy, PolicyUnavailable, RolloutEngine
from retool_env.rollout.engine import Group, run_blocking
from retool_env.rollout.progress import Progress
from retool_env.rules import Rules
from retool_env.training.processes import everywhere, phase, together
from retool_env.training.step import Step
from retool_env.training.trained_weights import trained_weights
from retool_env.transcript import Transcript, write_transcripts


@dataclass(frozen=True)
class Settings(RolloutSettings):
    """Settings of the rounds."""

    name: str = "rft"
    rounds: int = setting(
        1, "rounds of sampling and fine-tuning; with --resume a run may be given more"
    )
    problems: int = setting(500, "problems a round; rounds have different problems if possible")
    k: int = setting(8, "responses a problem")
    keep: int = setting(4, "largest number of right responses of a problem that a round keeps")
    restart: bool = setting(
        True,
        "fine-tune the initial model on the traces of all rounds; false: the last model on the "
        "traces of its round",
    )
    sft: dict[str, Any] = stage(
        "settings of the fine-tuning (sft.epochs=2)",
        ("model", "data", "env", "sandbox", "traces", "mix"),
    )


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run the rounds that have not been run yet.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Whether to continue the run in the folder.

    Returns:
        The folder of the trained model.

    Raises:
        SettingsError: If a number is out of range, or no response of a round was right.
        PolicyUnavailable: If all episodes of a round failed.
        Stopped: If a signal stopped the run.
    """
    counts = ("rounds", "problems", "k", "keep", "sample_batch", "in_flight")
    check_least(settings, {**dict.fromkeys(counts, 1), "lora_rank": 0})
    state = processes()
    check_engine(settings.engine, state.num_processes, settings.sample_batch)
    with Session(settings, folder, resume, "rounds", lambda: rounds_sampled(folder)) as run:
        if run.finished:
            return run.checkpoint
        tuning = [round_tuning(settings, folder, number) for number in range(settings.rounds)]
        sft.sft_config(tuning[0], folder, *sft.check_batch(tuning[0], state.num_processes))
        loaded, _ = load_model(settings.model, settings.dtype)
        task = held_out_task(settings, run.rules)
        check_learning_rate(tuning[0], loaded.num_parameters(), section="sft.")
        sandbox = run.open_sandbox()
        run.start()
        run.resume_at(settings.rounds)
        reporter = run.open_reporter(folder)
        model = settings.model
        held_out = make_held_out(run, task, lambda: model, sandbox, reporter)
        for number, fine_tuning in enumerate(tuning):
            run.stopping.check()
            held_out.evaluate(number, loaded, state)
            traces = folder / "stages" / f"{fine_tuning.name}.jsonl"
            missing = everywhere(not traces.exists())[0]  # the first process decides
            if missing:
                rank = state.process_index
                kept = traces.with_suffix(f".samples-{rank}.jsonl" if rank else ".samples.jsonl")
                groups = sample(
                    settings, number, model, run.rules, run.problems, sandbox, kept, run.stopping
                )
                chosen = chosen_traces(run, number, groups)
                if run.main:
                    # The traces are written last: a round with traces is not logged again.
                    if all(record["step"] != number + 1 for record in run.metrics()):
                        record = {**figures(groups), "rft/traces": len(chosen)}
                        run.log({"step": number + 1, **record})
                        reporter.log(number + 1, record)
                    write_transcripts_atomically(traces, chosen)
                everywhere(None)
            else:
                round_traces(traces)
            base = settings.model if settings.restart else model
            fine_tuning = dataclasses.replace(fine_tuning, model=base)
            target = folder / "stages" / fine_tuning.name
            run.stopping.check()
            model = str(sft.train(fine_tuning, target, resume=True))
        held_out.evaluate(settings.rounds, loaded, state, last=True)
        if run.main:
            run.checkpoint.unlink(missing_ok=True)
            run.checkpoint.symlink_to(Path(model).relative_to(folder))
    return run.checkpoint


def chosen_traces(run: Session[Settings], number: int, groups: Sequence[Group]) -> list[Transcript]:
    """The traces of a round that was just sampled; with `restart` also of the rounds before.

    Args:
        run: The run.
        number: The round's number, from 0.
        groups: The round's responses, a group a problem.

    Raises:
        PolicyUnavailable: If all episodes failed.
        SettingsError: If no response was right.
    """
    if not any(transcript.scored for group in groups for transcript in group):
        raise PolicyUnavailable(
            f"round {number + 1}: all episodes failed, in the sandbox or the model: check the "
            "sandbox with `retool doctor`"
        )
    chosen = choose(groups, run.settings.keep)
    if not chosen:
        raise SettingsError(
            f"round {number + 1}: no response was right: take a larger k, easier problems, or a "
            "longer cold start"
        )
    if number and run.settings.restart:
        before = round_traces(run.folder / "stages" / f"round-{number}.jsonl")
        chosen = distinct([*before, *chosen])
    return chosen


def rounds_sampled(folder: Path) -> int:
    """The number of rounds whose traces are written."""
    names = [re.fullmatch(r"round-(\d{1,9})\.jsonl", path.name) for path in folder.glob("stages/*")]
    return max((int(name[1]) for name in names if name), default=0)


def round_traces(path: Path) -> list[Transcript]:
    """The traces of a round that was sampled.

    Raises:
        SettingsError: If the file is damaged.
    """
    cure = f"delete {path}, so that the traces are chosen again from the samples"
    traces = list(read_episodes(path, cure))
    if not traces:
        raise damaged(path, "it is empty", cure)
    return traces


def distinct(transcripts: Iterable[Transcript]) -> list[Transcript]:
    """The right transcripts in order, the first of each problem and response.

    Responses are compared by the model's turns, without the output of programs.
    """
    first: dict[tuple[str, ...], Transcript] = {}
    for transcript in transcripts:
        if transcript.correct:
            turns = (span.text for span in transcript.response if span.author == "model")
            first.setdefault((transcript.problem.id, *turns), transcript)
    return list(first.values())


def choose(groups: Iterable[Group], keep: int) -> list[Transcript]:
    """At most `keep` right and different transcripts of each problem."""
    return [trace for group in groups for trace in distinct(group)[:keep]]


def sample(
    settings: Settings,
    number: int,
    model: str,
    rules: Rules,
    problems: ProblemSource,
    sandbox: Sandbox | None,
    kept: Path,
    stopping: Stopping,
) -> list[Group]:
    """Sample a round's responses, `k` to each of its problems.

    Each process samples a part of the problems, and all processes return all groups. Finished
    groups are written to a file, so that a round that was stopped does not sample them again.

    Args:
        settings: The run's settings.
        number: The round's number, from 0.
        model: Folder or Hub id of the model that samples.
        rules: The rules of the episodes.
        problems: The source of all problems.
        sandbox: The sandbox for programs; `None`: there is no interpreter.
        kept: The file of this process's finished groups.
        stopping: The handler of the signals.

    Raises:
        RolloutsAbandoned: If a process was asked to stop.
    """
    order = np.random.default_rng(settings.seed).permutation(len(problems))
    count = min(settings.problems, len(order))
    places = np.arange(number * count, (number + 1) * count) % len(order)
    chosen = [problems[int(i)] for i in order[places]]
    state = processes()
    part = range(state.process_index, len(chosen), state.num_processes)
    progress = Progress()
    finished = kept_groups(kept, settings.k)
    with ExitStack() as resources:
        policy = policy_of(settings, number, model, resources)
        engine = RolloutEngine(policy, rules, sandbox, settings.in_flight, progress=progress)

        async def one(index: int, problem: Problem) -> None:
            run = engine.groups([problem], settings.k, (settings.seed, number, index))
            async with aclosing(run) as groups:
                async for _, group in groups:
                    finished[problem.id] = group
                    write_transcripts(kept, group)
                    bar.advance()

        async def rest() -> None:
            left = [i for i in part if chosen[i].id not in finished]
            await asyncio.gather(*(one(i, chosen[i]) for i in left))

        live = Bar(f"round {number + 1}: sampling", len(part), live=progress)
        with phase("rollouts"), live as bar:
            bar.set_total(len(part), len(finished))
            together(state, lambda: stopping.run(rest()))
        # All processes wait here, so that no policy is closed while another process samples.
        own = {i: finished[chosen[i].id] for i in part}
        found = {i: group for groups in everywhere(own) for i, group in groups.items()}
    return [found[i] for i in range(len(chosen))]


def make_held_out(
    run: Session[Settings],
    task: HeldOutTask | None,
    model: Callable[[], str],
    sandbox: Sandbox | None,
    reporter: Reporter,
) -> HeldOut:
    """The evaluations of the models of the rounds.

    Args:
        run: The run.
        task: The task of the evaluations.
        model: Returns the folder or Hub id of the model of now.
        sandbox: The sandbox for programs.
        reporter: Reports an evaluation to trackers.
    """
    settings = dataclasses.replace(run.settings, temperature=TEMPERATURE)
    bar = Bar("evaluation", settings.rounds)

    def sample(step: Step, episodes: Episodes) -> list[Transcript]:
        with ExitStack() as resources:
            policy = policy_of(settings, step.number, model(), resources, top_p=TOP_P)
            # No policy is closed while another process samples.
            return together(processes(), lambda: run.stopping.run(episodes(policy)))

    return HeldOut(run, settings, task, sample, sandbox, bar, run.stopping, reporter.evaluation)


def policy_of(
    settings: Settings, number: int, model: str, resources: ExitStack, **sampling: float
) -> Policy:
    """The policy that samples a round. All processes must call this function.

    Args:
        settings: The run's settings.
        number: The round's number, from 0.
        model: Folder or Hub id of the model that samples.
        resources: The exit stack that closes the policy.
        **sampling: Further arguments of the policy.
    """
    state = processes()
    name, options = check_engine(settings.engine, state.num_processes, settings.sample_batch)
    with read_by_all():
        loaded, tokenizer = load_model(model, settings.dtype)
    if name == "transformers" and torch.accelerator.is_available():
        device: Any = torch.accelerator.current_accelerator()
        loaded = loaded.to(device)
    options |= sampling
    policy = make_policy(name, options, loaded, tokenizer, model, settings.temperature, apart=False)
    resources.enter_context(policy)
    # Servers still hold the weights of their start, or of an earlier round.
    if name.startswith("http"):
        version = number + 1
        if state.is_main_process:
            run_blocking(policy.update_weights(version, trained_weights(loaded)))
        everywhere(None)
        if not state.is_main_process:
            run_blocking(policy.follow(version))
    return policy


def kept_groups(path: Path, k: int) -> dict[str, Group]:
    """The finished groups of `k` episodes in a file, by their problems' ids.

    Other groups are removed from the file and sampled again: a group that is not whole, because the
    process was killed, and a group in which an episode failed.

    Args:
        path: The file of finished groups.
        k: Episodes of a group.
    """
    groups: dict[str, Group] = {}
    cure = "delete that line, so that its problem is sampled again"
    for transcript in read_episodes(path, cure, appended=True):
        groups.setdefault(transcript.problem.id, []).append(transcript)
    whole = {
        name: group
        for name, group in groups.items()
        if len(group) == k and all(transcript.scored for transcript in group)
    }
    write_transcripts_atomically(path, [t for group in whole.values() for t in group])
    return whole


def figures(groups: Sequence[Group]) -> dict[str, float | None]:
    """The accuracy of the responses, and the share of problems with a right response."""
    accuracy = summarise([transcript for group in groups for transcript in group]).accuracy
    solved = sum(any(transcript.correct for transcript in group) for group in groups)
    return {"env/accuracy": accuracy.mean if accuracy else None, "rft/solved": solved / len(groups)}


def round_tuning(settings: Settings, folder: Path, number: int) -> sft.Settings:
    """The settings of a round's fine-tuning.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        number: The round's number, from 0.
    """
    name = f"round-{number + 1}"
    # The setting `sft` overrides the shared settings, but not the fixed ones.
    free = ("dtype", "export_dtype", "seed", "lora_rank", "gradient_checkpointing", "report_to")
    shared = {key: getattr(settings, key) for key in (*free, "allow_high_learning_rate")}
    fixed = {key: getattr(settings, key) for key in ("model", "env", "sandbox")}
    fixed |= {"name": name, "data": str(folder / "stages" / f"{name}.jsonl")}
    return build_settings(sft.Settings, shared | settings.sft | fixed)
