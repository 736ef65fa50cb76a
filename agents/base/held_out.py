"""Held-out problems: a run evaluates the model that it trains.

An evaluation takes place before the first step, every `eval_every` optimizer steps, and after the
last step. It samples with the run's own policy, with the current weights and the paper's sampling.
`retool eval` of the model of that step would sample the same episodes, up to rounding. The training
samples the same as without evaluations.

The episodes are shared out among the processes. The first process writes them to
`eval-<step>.jsonl`, and their figures to `metrics.jsonl`. A resumed run skips the evaluations that
`metrics.jsonl` holds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import statistics
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, override

import torch
from transformers import TrainerCallback

from agents.base.board import Bar
from agents.base.fields import RolloutSettings
from agents.base.presets import override_env
from agents.base.records import write_transcripts_atomically
from agents.base.run import Clock, Run
from agents.base.settings import SettingsError, check_least, prefixed
from agents.base.stopping import Stopping
from retool_env.checkpoint_task import TEMPERATURE
from retool_env.execution import Sandbox
from retool_env.problem import Problem
from retool_env.problems import SOURCES
from retool_env.rollout import Policy, RolloutEngine
from retool_env.rules import Rules
from retool_env.task import make_task, registered_settings
from retool_env.training.figures import episode_figures
from retool_env.training.processes import RolloutsAbandoned, everywhere
from retool_env.training.step import Step
from retool_env.transcript import Transcript

_RULES = {field.name for field in dataclasses.fields(Rules)}

Episodes = Callable[[Policy], Coroutine[Any, Any, list[Transcript]]]
"""Runs the episodes of one process with a policy."""

Sample = Callable[[Step, Episodes], list[Transcript]]
"""Runs episodes with the weights of a step, at the temperature and top-p of evaluations."""

Report = Callable[[int, Mapping[str, float], Sequence[Transcript]], None]
"""Reports an evaluation to trackers: its step, its figures and its transcripts."""


@dataclass(frozen=True)
class HeldOutTask:
    """The rules and the problems of a run's evaluations."""

    rules: Rules
    """The rules of the episodes."""
    problems: Sequence[Problem]
    """The problems, in the order of their source."""


def held_out_env(env: Mapping[str, Any], eval_env: Mapping[str, Any]) -> dict[str, Any]:
    """The environment of a run's evaluations: `env`, overridden by `eval_env`, with a test split.

    Another `id` keeps the rules of `env`, such as `max_tokens`, and drops its settings of problems.
    The faults of `env` are left out: an evaluation has only the faults that `eval_env` names.

    Args:
        env: The setting `env`.
        eval_env: The setting `eval_env`.

    Raises:
        SettingsError: If the environment is unknown, or its problems would also be in `env`.
    """
    id = eval_env.get("id", env["id"])
    same = id == env["id"]
    without = {key: value for key, value in env.items() if key != "faults"}
    settings = override_env(without, eval_env)
    with prefixed("eval_env"):
        registered = registered_settings(id)
    source = SOURCES.get(registered["problems"])
    has_splits = source is not None and "split" in inspect.signature(source).parameters
    own_file = settings.get("path", registered.get("path")) is not None
    if has_splits and not own_file:
        return {**settings, "split": eval_env.get("split", "test")}
    if same and not eval_env.keys() - _RULES - {"id"}:
        problems = "its own file of problems" if own_file else f"{id}, which has no split `test`"
        raise SettingsError(
            f"eval_every needs held-out problems, but the run trains on {problems}: set "
            "eval_env.path to a file of other problems, eval_env.id to another environment, or "
            "eval_every=0"
        )
    return settings


def held_out_task(settings: RolloutSettings, rules: Rules) -> HeldOutTask | None:
    """The task of a run's evaluations; `None` if the run has none.

    Args:
        settings: The run's settings.
        rules: The rules of the training.

    Raises:
        SettingsError: If a setting is out of range, or there are no held-out problems.
    """
    check_least(settings, {"eval_every": 0, "eval_problems": 1, "eval_k": 1})
    if not settings.eval_every:
        if settings.eval_env:
            raise SettingsError("eval_env has no effect without eval_every: set eval_every")
        return None
    env = held_out_env(settings.env, settings.eval_env)
    with prefixed("eval_env"):
        evaluated, source = make_task(**env)
    if evaluated.interpreter and not rules.interpreter:
        raise SettingsError(
            "eval_env.interpreter needs a sandbox, which env.interpreter=false closes"
        )
    count = min(settings.eval_problems, len(source))
    return HeldOutTask(evaluated, [source[index] for index in range(count)])


class HeldOut:
    """Evaluates the trained model of a run. All processes call its methods together.

    Args:
        run: The run.
        settings: The run's settings.
        task: The task of the evaluations; `None`: the run has no evaluations.
        sample: Samples the episodes of this process with the weights of a step.
        sandbox: The run's sandbox.
        bar: The run's board.
        stopping: The handler of the signals that stop the run.
        report: Reports an evaluation to trackers. Only the first process calls it.
    """

    def __init__(
        self,
        run: Run,
        settings: RolloutSettings,
        task: HeldOutTask | None,
        sample: Sample,
        sandbox: Sandbox | None,
        bar: Bar,
        stopping: Stopping,
        report: Report,
    ) -> None:
        self._run, self._settings, self._task = run, settings, task
        self._sample, self._bar, self._stopping, self._report = sample, bar, stopping, report
        if task is None:
            return
        self._sandbox = sandbox
        self._clock = Clock(run)
        done = {record["step"] for record in run.metrics() if "eval/failed" in record}
        self._done = everywhere(done)[0]

    def evaluate(
        self, step: int, model: torch.nn.Module, accelerator: Any, last: bool = False
    ) -> None:
        """Evaluate the model if its turn has come and this step has no evaluation yet.

        Args:
            step: The number of optimizer steps that the model has made.
            model: The trained model.
            accelerator: The accelerator of the run, or its state.
            last: Whether the training is over.

        Raises:
            RolloutsAbandoned: If a process was asked to stop.
        """
        if self._task is None or step in self._done:
            return
        if not last and step % self._settings.eval_every:
            return
        began = time.monotonic()
        jobs = [
            (index, sample)
            for index in range(len(self._task.problems))
            for sample in range(self._settings.eval_k)
        ]
        part = jobs[accelerator.process_index :: accelerator.num_processes]
        state = Step(
            number=step,
            batch=-1,
            prompts=(),
            group=1,
            model=model,
            accelerator=accelerator,
            temperature=TEMPERATURE,
            eos_token_ids=(),
            log=lambda name, value: None,
            training=False,
        )
        sampled = self._sample(state, lambda policy: self._episodes(policy, part))
        own = dict(zip(part, sampled, strict=True))
        found = {job: t for each in everywhere(own) for job, t in each.items()}
        self._done.add(step)
        if self._run.main:
            transcripts = [found[job] for job in jobs]
            self._record(step, transcripts, time.monotonic() - began)

    def finish(self, step: int, model: torch.nn.Module, accelerator: Any) -> None:
        """Evaluate the model after its last step, unless a signal stops the run.

        Args:
            step: The number of optimizer steps that the model has made.
            model: The trained model.
            accelerator: The accelerator of the run, or its state.
        """
        if self._task is None or self._stopping.agreed():
            return
        try:
            self.evaluate(step, model, accelerator, last=True)
        except RolloutsAbandoned:
            self._stopping.agreed()

    async def _episodes(self, policy: Policy, jobs: Sequence[tuple[int, int]]) -> list[Transcript]:
        """Run this process's episodes, each with the seed that `retool eval` gives it."""
        assert self._task is not None  # only evaluations call this
        problems, room = self._task.problems, asyncio.Semaphore(self._settings.in_flight)
        # An engine of its own, so that the counts of the training rollouts stay theirs.
        engine = RolloutEngine(policy, self._task.rules, self._sandbox)

        async def one(index: int, sample: int) -> Transcript:
            async with room:
                seed = self._settings.seed, index, sample
                return await engine.episode(problems[index], seed)

        return await asyncio.gather(*(one(*job) for job in jobs))

    def _record(self, step: int, transcripts: Sequence[Transcript], seconds: float) -> None:
        figures = evaluation_figures(transcripts) | {"eval/seconds": round(seconds, 3)}
        # The figures are written last: a step with figures is not evaluated again.
        write_transcripts_atomically(self._run.evaluation(step), transcripts)
        record = {"step": step, "seconds": self._clock.seconds(), **figures}
        self._run.log(record)
        self._bar.show_held_out(record)
        self._report(step, figures, transcripts)


def evaluation_figures(transcripts: Sequence[Transcript]) -> dict[str, float]:
    """The figures of an evaluation, by their names in `metrics.jsonl`.

    They are the figures of `episode_figures`, with the prefix `eval/`, and `eval/failed`, the
    number of episodes that an infrastructure failure ended, which count in no other figure.
    """
    scored = [transcript for transcript in transcripts if transcript.scored]
    figures = {
        name.replace("env/", "eval/", 1): statistics.fmean(numbers)
        for name, numbers in episode_figures(scored).items()
    }
    return {**figures, "eval/failed": float(len(transcripts) - len(scored))}


class HeldOutCallback(TrainerCallback):
    """Evaluates the model of a trainer of transformers.

    The last evaluation precedes the trainer's last log and its end, at which trackers are closed.

    Args:
        trainer: The trainer of the model.
        held_out: The evaluations.
    """

    def __init__(self, trainer: Any, held_out: HeldOut) -> None:
        self._trainer, self._held_out = trainer, held_out

    @override
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate the weights from which the step samples."""
        trainer = self._trainer
        self._held_out.evaluate(state.global_step, trainer.model, trainer.accelerator)

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate the weights of the last step."""
        self._finish(state)

    @override
    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate the weights of a run that was resumed after its last step."""
        self._finish(state)

    def _finish(self, state: Any) -> None:
        if state.global_step >= state.max_steps:
            trainer = self._trainer
            self._held_out.finish(state.global_step, trainer.model, trainer.accelerator)
