"""Evaluation: run a policy on problems, k times each."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from retool_env.episode import Episode
from retool_env.errors import RequestRefused
from retool_env.execution import Sandbox
from retool_env.metrics.summary import Summary, summarise
from retool_env.problem import Problem
from retool_env.rollout.engine import Group, RolloutEngine, run_blocking
from retool_env.rollout.policy import Policy, TextPolicy, Usage
from retool_env.rollout.progress import Progress
from retool_env.rules import Rules
from retool_env.transcript import StopReason, Transcript

FEWEST_REFUSED = 8
"""The number of refused episodes, without any answer, from which on the settings are at fault."""

_log = logging.getLogger(__name__)


def evaluate(
    policy: Policy | TextPolicy,
    rules: Rules,
    problems: Sequence[Problem],
    k: int,
    sandbox: Sandbox | None,
    seed: int = 0,
    on_group: Callable[[int, Group], None] | None = None,
    concurrency: int = 256,
    progress: Progress | None = None,
) -> tuple[Summary, list[Transcript]]:
    """Measures avg@k of a policy, in memory.

    Args:
        policy: The model, with the sampling to evaluate.
        rules: The settings of the episodes.
        problems: The problems, each tried `k` times.
        k: Number of episodes for each problem.
        sandbox: Runs the programs; `None` only where the interpreter is off.
        seed: The seed of all sampling.
        on_group: Called with a problem's index and transcripts once all `k` have ended.
        concurrency: Number of episodes in flight at once.
        progress: Holds the counts while the evaluation runs.

    Returns:
        The figures, and the transcripts in the order of the problems.

    Raises:
        ValueError: `problems` is empty, or `k` is below 1.
    """
    if not problems or k < 1:
        raise ValueError("an evaluation needs at least one problem, and k of at least 1")
    engine = RolloutEngine(policy, rules, sandbox, concurrency, progress=progress)
    groups = engine.run(problems, k, seed, on_group)
    transcripts = [transcript for group in groups for transcript in group]
    return summarise(transcripts), transcripts


@dataclass(frozen=True)
class Job:
    """One episode to run."""

    index: int
    """The index of the problem in its source."""
    problem: Problem
    """The problem."""
    sample: int
    """The number of the episode among the episodes of its problem, from 0."""


def run_jobs(
    engine: RolloutEngine,
    jobs: Sequence[Job],
    seed: int,
    on_end: Callable[[Job, Transcript, Usage | None], None],
    going_on: Callable[[], bool] = lambda: True,
    on_refused: Callable[[Job, Transcript, Usage | None, str], None] | None = None,
    answered: bool = False,
) -> bool:
    """Runs episodes and hands each over as it ends.

    An episode samples the same whether others run beside it or not: its seed derives from `seed`,
    the problem's index and the sample, as in `evaluate`.

    Args:
        engine: Runs the episodes, `engine.concurrency` at once.
        jobs: The episodes.
        seed: The seed of all sampling.
        on_end: Called with each episode as it ends: its job, transcript, and the tokens that an API
            counted for its turns.
        going_on: Asked before each episode begins. From its first `False` on, no further episode
            begins, and episodes in flight are finished.
        on_refused: Called, in place of `on_end`, with each episode of which an API refused a
            request, and the API's words. The episode ends as an infrastructure failure, and the
            others go on. `None`: the first refused request ends the run.
        answered: Whether an earlier start had an answer with these settings.

    Returns:
        Whether every episode has run.

    Raises:
        SettingsError: A prompt fills the model's context.
        RequestRefused: An API refuses a request and `on_refused` is `None`, or it refuses the first
            episodes and has never answered: then the settings are at fault, and not a prompt.
    """
    held: list[Callable[[], None]] = []  # refused episodes, until the first answer
    most_held = min(max(FEWEST_REFUSED, engine.concurrency), len(jobs))

    def release() -> None:
        while held:
            held.pop(0)()

    def end(job: Job, transcript: Transcript, turns: list[Any], refusal: str | None) -> None:
        counted = [used for turn in turns if (used := getattr(turn, "usage", None)) is not None]
        usage = functools.reduce(Usage.__add__, counted) if counted else None
        engine.progress.finished(transcript)
        if refusal is None or on_refused is None:
            on_end(job, transcript, usage)
        else:
            _log.warning("%s: failed: %s", job.problem.id, refusal)
            on_refused(job, transcript, usage, refusal)

    async def run(job: Job) -> None:
        turns: list[Any] = []
        begun: list[Episode] = []

        def on_turn(turn: Any) -> None:
            nonlocal answered
            answered = True
            turns.append(turn)

        numbers = (seed, job.index, job.sample)
        # Ended here, not where tasks are awaited: there the error of one episode would lose others
        # that ended at the same moment.
        try:
            end(job, await engine.episode(job.problem, numbers, begun.append, on_turn), turns, None)
        except RequestRefused as error:
            begun[-1].cut(StopReason.INFRASTRUCTURE)
            held.append(functools.partial(end, job, begun[-1].transcript, turns, str(error)))
            if on_refused is None or (not answered and len(held) == most_held):
                raise
        if answered:
            release()

    engine.check_prompts({job.index: job.problem for job in jobs}.values())
    engine.progress.expect(len(jobs))
    complete = run_blocking(run_all(run, jobs, engine.concurrency, going_on))
    release()
    return complete


async def run_episode(
    engine: RolloutEngine, problem: Problem, seed: Sequence[int], **more: Any
) -> tuple[Transcript, Usage | None]:
    """Runs one episode.

    Args:
        engine: Runs the episode.
        problem: The problem.
        seed: The numbers from which the seeds of the turns derive.
        **more: Other arguments of `RolloutEngine.episode`.

    Returns:
        The transcript, and the tokens that an API counted for its turns.
    """
    turns: list[Any] = []
    transcript = await engine.episode(problem, seed, on_turn=turns.append, **more)
    counted = [used for turn in turns if (used := getattr(turn, "usage", None)) is not None]
    return transcript, functools.reduce(Usage.__add__, counted) if counted else None


async def run_all[J](
    run: Callable[[J], Coroutine[Any, Any, None]],
    jobs: Sequence[J],
    concurrency: int,
    going_on: Callable[[], bool],
) -> bool:
    """Runs jobs, `concurrency` at once; see `run_jobs`.

    Args:
        run: Runs one job.
        jobs: The jobs.
        concurrency: The most jobs at once.
        going_on: Asked before each job begins.
    """
    begun = 0
    running: set[asyncio.Task[None]] = set()
    try:
        while True:
            while len(running) < concurrency and begun < len(jobs) and going_on():
                running.add(asyncio.create_task(run(jobs[begun])))
                begun += 1
            if not running:
                return begun == len(jobs)
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            # Each error is read, since asyncio prints the errors that nobody reads.
            if errors := [error for task in done if (error := task.exception())]:
                raise errors[0]
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
