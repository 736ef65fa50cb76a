"""Rollouts: a trainer's batches of episodes, from the rollout engine.

If there are several processes, each has its own engine and runs the groups of its part of the
batch. The processes decide together on matters of the whole run: an error, or a batch without
anything to learn from. So no process waits for a process that has left the run.
All processes wait for the slowest, for up to `retool_env.training.processes.WAIT`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, get_args

from retool_env.errors import RolloutsAbandoned as RolloutsAbandoned
from retool_env.errors import SettingsError
from retool_env.problem import Problem, ProblemSource
from retool_env.rollout.engine import Group, RolloutEngine
from retool_env.rollout.policy import Policy
from retool_env.servers.background import BackgroundLoop
from retool_env.training.dynamic_sampling import DynamicSampling
from retool_env.training.dynamic_sampling import Sampled as Sampled
from retool_env.training.figures import RolloutFigures
from retool_env.training.kept_batches import KeptBatch, KeptBatches, asked_of
from retool_env.training.processes import gathered, phase, together
from retool_env.training.rows import (
    ResampleBy,
    has_void_turn,
    is_overlong,
    training_rows,
)
from retool_env.training.sampling_policy import check_policy, check_step, own_model
from retool_env.training.step import Step
from retool_env.training.weight_sync import WeightSync
from retool_env.transcript import StopReason, Transcript

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
"""Seconds between two checks whether the run is to stop."""


@dataclasses.dataclass(frozen=True)
class _Batch:
    """One process's part of a generation batch."""

    prompts: list[str]
    """Ids of the problems. Each id is repeated `n` times, side by side."""
    n: int
    """Rollouts a problem."""
    seed: tuple[int, ...]
    """The seed of all sampling for this batch."""
    training: bool = True
    """Whether the batch is trained on."""


class Rollouts:
    """Collects a trainer's batches: one group of episodes a problem, run by the engine.

    `RolloutFigures` lists the figures that each step logs.

    Args:
        engine: The rollout engine. Its policy must sample at top-p 1, from the trained model or
            from a model that takes the trained model's weights.
        problems: The problems, which a step names by their ids.
        seed: Seed of all sampling. The batch's number is mixed in, so that a resumed run samples
            the same as a run that never stopped.
        on_rollouts: Called with a step's number and its transcripts, except in evaluation; `None`:
            nothing is called.
        staleness: Number of batches that are sampled ahead while the trainer trains, and so the
            largest age of a trained batch. Above 0 the policy must not sample from the trained
            model's own tensors, and the trainer must know its later batches (`Step.coming`; with
            TRL a data set in its own order, `shuffle_dataset=False`). After a resumption the first
            batch is sampled with the newest weights, so that the curve differs slightly from the
            curve of a run that never stopped.
        deadline: Seconds after which a batch's episodes are cut (see `RolloutEngine.groups`);
            `None`: no deadline. A group that replaces another has the same time again. A cut
            episode keeps its score in the records. It is not trained on and not counted in its
            group's mean and deviation. Long episodes are cut more often, so that training favours
            short episodes: a warning is logged once 5 % of a batch are cut.
        oversample: Rollouts begun for each kept rollout (see `RolloutEngine.groups`). The dropped
            rollouts count in the figures of `episode_reward` as they were when they were cut, so as
            wrong if they had no answer. Otherwise the accuracy would count only the episodes that
            finish first.
        resample: Largest number of times that a group which teaches nothing is replaced by a group
            of another problem (dynamic sampling, DAPO, arXiv 2503.14476, section 3.2). The other
            group begins as soon as the first one has ended, and waits for no other group. With a
            `staleness` of 2 or more, no batch waits for it: see
            `retool_env.training.dynamic_sampling`.
        resample_by: The test for a group that teaches nothing. `"accuracy"`, as in the paper: its
            episodes are all right or all wrong. `"reward"`, for rewards that measure more than the
            answer: its rewards are all equal. A shaped reward also differs within an all-wrong
            group, and training on such a group would teach only the shape.
        mask_void: Whether episodes with a void turn are masked as a whole (see `training_rows`).
            Their share is logged as `env/void_episodes`.
        mask_overlong: Whether episodes that ended at a budget are masked as a whole (see
            `training_rows`). Their share is logged as `env/overlong_episodes`.
        stopping: Asked repeatedly during the wait for rollouts; once it returns `True`, the
            rollouts are abandoned.
        kept: Keeps the newest batches on disk, so that a run that is resumed inside a batch, or
            before a batch that it has sampled already, trains on the same rollouts; `None`: they
            are sampled anew.

    Raises:
        SettingsError: If the policy does not sample from the model's own distribution, a number is
            out of range, or the rollouts of a problem meet different faults.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        problems: ProblemSource,
        seed: int = 0,
        on_rollouts: Callable[[int, list[Transcript]], None] | None = None,
        *,
        staleness: int = 0,
        deadline: float | None = None,
        oversample: float = 1.0,
        resample: int = 0,
        resample_by: ResampleBy = "accuracy",
        mask_void: bool = False,
        mask_overlong: bool = False,
        stopping: Callable[[], bool] = lambda: False,
        kept: KeptBatches | None = None,
    ) -> None:
        check_policy(engine.policy)
        engine.rules.check_training()
        if min(staleness, resample) < 0 or oversample < 1 or not (deadline is None or deadline > 0):
            raise SettingsError(
                f"staleness={staleness} and resample={resample} must be at least 0, "
                f"oversample={oversample} at least 1, deadline={deadline} above 0"
            )
        if resample_by not in get_args(ResampleBy):
            raise SettingsError(f"resample_by must be accuracy or reward, not {resample_by!r}")
        if oversample > 1:
            logger.warning(
                "oversample=%g keeps the rollouts that finish first, which are shorter and more "
                "often right than the average rollout. env/accuracy counts all rollouts that were "
                "begun; a dropped rollout without an answer counts as wrong, so that env/accuracy "
                "is at most the policy's accuracy. Reward and lengths count the kept rollouts only",
                oversample,
            )
        if staleness and engine.policy.sleep_mode:
            raise SettingsError(
                "an engine that sleeps while the trainer trains can't sample ahead: set "
                "staleness=0 or sleep_mode=False"
            )
        self.engine = engine
        self.problems = problems
        self.seed = seed
        self.on_rollouts = on_rollouts
        self.staleness = staleness
        self.deadline = deadline
        self.oversample = oversample
        self.resample = resample
        self.mask_void = mask_void
        self.mask_overlong = mask_overlong
        self.stopping = stopping
        self.kept = kept
        self.goes_on = False
        """Whether an earlier start of the run has trained on a part of the last batch."""
        self.request: Step
        """The request for the last batch, after the first `collect`."""
        self._loop = BackgroundLoop("rollouts")
        self._ahead: dict[int, tuple[_Batch, Future[Any]]] = {}
        self._dynamic = (
            DynamicSampling(
                lambda *args: self.sample(*args), problems, resample, resample_by, staleness
            )
            if resample
            else None
        )
        self._weights = WeightSync(engine.policy, self._loop)
        # An engine that shares its GPU with the trainer sleeps while the trainer trains.
        self._sleeps = engine.policy.sleep_mode
        self._asleep = False
        self._figures = RolloutFigures(engine.progress, deadline, engine.policy)

    def close(self) -> None:
        """Cancel the batches that are sampled ahead. May be called again."""
        self._loop.close()
        self._ahead.clear()

    @property
    def ahead(self) -> list[int]:
        """Numbers of the batches that are sampled ahead and that the trainer has not asked for."""
        return list(self._ahead)

    @phase("rollouts")
    def collect(self, step: Step) -> dict[str, list[Any]]:
        """Run the episodes of one batch. All processes must call it.

        Args:
            step: The trainer's request for the batch.

        Returns:
            The rows of `training_rows`, one an episode, and the further entry `untrained`. Its
            first element lists the episodes of this batch that did not fail and are not trained on.

        Raises:
            SettingsError: If the policy samples at another temperature than the loss assumes, the
                prompts are not whole groups, or the trainer does not allow for the staleness.
            RuntimeError: If in training every episode of every process failed or was cut, or
                another process has an error.
            RolloutsAbandoned: If a process was asked to stop.
        """
        accelerator = step.accelerator
        batch = together(accelerator, lambda: self._prepare(step))
        kept = self._recall(step)
        self.request, self.goes_on = step, kept is not None and kept.version < step.number
        if kept is None:
            kept = self._sample(step, batch)
        elif self.staleness:
            self._sample_ahead(step)
        together(accelerator, lambda: self._rest(step))
        for name, value in [] if self.goes_on else kept.figures:
            step.log(name, value)
        transcripts = [transcript for group in kept.groups for transcript in group]
        masks = self.mask_void, self.mask_overlong
        rows = training_rows(transcripts, step.eos_token_ids, *masks)
        rows["untrained"] = [kept.others, *([] for _ in transcripts[1:])]
        return rows

    def _recall(self, step: Step) -> KeptBatch | None:
        """The batch, if an earlier start of the run has sampled and kept it."""
        if (kept := self.kept) is None or not step.training or step.batch in self._ahead:
            return None
        found = together(step.accelerator, lambda: kept.load(step))
        everywhere = gathered(step.accelerator, found is not None)
        return found if all(number for (number,) in everywhere) else None

    def _sample(self, step: Step, batch: _Batch) -> KeptBatch:
        """Sample the batch, and keep it."""
        began, accelerator = time.monotonic(), step.accelerator
        if step.batch not in self._ahead:
            self._sync(step)
        sampled = together(accelerator, lambda: self._take(step, batch))
        if step.training and self.staleness:
            self._sample_ahead(step)
        version = step.number if step.training else None
        groups = [
            [dataclasses.replace(transcript, trained_version=version) for transcript in group]
            for group in sampled.groups
        ]
        transcripts = [transcript for group in groups for transcript in group]
        figures: list[tuple[str, float]] = []

        def log(name: str, value: float) -> None:
            figures.append((name, value))

        if step.training:
            if (record := self.on_rollouts) is not None:
                together(accelerator, lambda: record(step.number, transcripts))
            waited = time.monotonic() - began
            logged = dataclasses.replace(step, log=log)
            self._figures.log(logged, transcripts, waited, sampled)
        if self.mask_void:
            log("env/void_episodes", sum(map(has_void_turn, transcripts)) / len(transcripts))
        if self.mask_overlong:
            log("env/overlong_episodes", sum(map(is_overlong, transcripts)) / len(transcripts))
        batch_kept = KeptBatch(groups, sampled.others, figures, asked_of(step))
        if step.training and (kept := self.kept) is not None:
            together(accelerator, lambda: kept.save(step, batch_kept))
        return batch_kept

    def _sample_ahead(self, step: Step) -> None:
        """Give the policy the newest weights, and start the batches that are sampled ahead."""
        self._sync(step)
        later = range(step.batch + 1, step.batch + 1 + self.staleness)
        kept = self.kept.found_by_all(later, step) if self.kept else set()
        together(step.accelerator, lambda: self._start_ahead(step, sorted({*later} - kept)))

    def _sync(self, step: Step) -> None:
        self._weights.sync(step)
        if self._dynamic is not None and step.training:
            self._dynamic.trained = step.batch

    @phase("evaluation")
    def evaluate[T](
        self,
        step: Step,
        sample: Callable[[Policy], Coroutine[Any, Any, T]],
        temperature: float,
        top_p: float,
    ) -> T:
        """Sample with the step's weights and other sampling settings. All processes must call it.

        Batches that are sampled ahead end first, and later batches are as they would be without it.

        Args:
            step: The trainer's state. Its batch and prompts are not read.
            sample: Makes the coroutine, which samples from the policy that it gets.
            temperature: The sampling temperature.
            top_p: The nucleus mass of sampling.

        Raises:
            RolloutsAbandoned: If a process was asked to stop.
        """
        accelerator, policy = step.accelerator, self.engine.policy
        together(accelerator, self._settle)
        self._weights.sync(step)
        before = policy.temperature, policy.top_p
        if policy.temperature is not None:
            policy.temperature, policy.top_p = temperature, top_p
        try:
            result = together(accelerator, lambda: self._wait(self._loop.submit(sample(policy))))
        finally:
            policy.temperature, policy.top_p = before
        policy.clear_cache()  # cached prefixes would change the rounding of later turns
        together(accelerator, lambda: self._rest(step))
        return result

    def _settle(self) -> None:
        self._wake()
        for _, future in self._ahead.values():
            self._wait(future)
        if self._dynamic is not None:
            self._wait(self._loop.submit(self._dynamic.ended()))

    def _wake(self) -> None:
        if self._asleep:
            self._loop.run_blocking(self.engine.policy.wake_up())
            self._asleep = False

    def _prepare(self, step: Step) -> _Batch:
        check_step(self.engine.policy, step, self.staleness)
        self._wake()
        prompts, n = list(step.prompts), step.group
        starts = range(0, len(prompts), n)
        if len(prompts) % n or any(len(set(prompts[i : i + n])) != 1 for i in starts):
            raise SettingsError(
                f"the prompts must be groups of {n} equal prompts, side by side, but they begin "
                f"with {prompts[: n + 1]}"
            )
        rank = step.accelerator.process_index
        if not step.training:
            return _Batch(prompts, n, (self.seed, step.number, rank, 0, 1), training=False)
        return _Batch(prompts, n, (self.seed, step.batch, rank))

    def _start(self, step: Step, number: int, batch: _Batch) -> Future[Any]:
        """Begin a batch. The future has a `Sampled`, or `None` if groups may be replaced."""
        problems = [self.problems.get(name) for name in batch.prompts[:: batch.n]]
        if self._dynamic is None or not batch.training:
            return self._loop.submit(self.sample(problems, batch.n, batch.seed))
        if not self._dynamic.begun and self.kept is not None:
            self._dynamic.moved = self.kept.moved(number - 1, step)
        return self._loop.submit(self._dynamic.start(number, problems, batch.n, batch.seed))

    def _take(self, step: Step, batch: _Batch) -> Sampled:
        number = step.batch
        ahead = number in self._ahead
        asked, future = (
            self._ahead.pop(number) if ahead else (batch, self._start(step, number, batch))
        )
        if asked.prompts != batch.prompts:
            raise SettingsError(
                "the trainer asks for other problems than the ones sampled ahead: set "
                "shuffle_dataset=False or staleness=0"
            )
        begun: Sampled | None = self._wait(future)
        if begun is not None or self._dynamic is None:
            assert begun is not None
            return begun
        sampled, moved = self._wait(self._loop.submit(self._dynamic.take(number)))
        if self.kept is not None and (moved or self.staleness > 1):
            self.kept.save_moved(step, moved)
        return sampled

    def _wait[T](self, future: Future[T]) -> T:
        while not futures.wait([future], _POLL_SECONDS).done:
            if self.stopping():
                future.cancel()
                raise RolloutsAbandoned("the rollouts were abandoned")
        return future.result()

    def _start_ahead(self, step: Step, numbers: Iterable[int]) -> None:
        for number in numbers:
            if number not in self._ahead and (prompts := step.coming(number)) is not None:
                seed = self.seed, number, step.accelerator.process_index
                batch = _Batch(list(prompts), step.group, seed)
                self._ahead[number] = batch, self._start(step, number, batch)

    async def sample(self, problems: Sequence[Problem], n: int, seed: Sequence[int]) -> Sampled:
        """Run `n` episodes of each problem. A subclass may run more, and choose the trained ones.

        Args:
            problems: The problems.
            n: Rollouts a problem.
            seed: Seed of the sampling.

        Returns:
            A group of `n` episodes a problem, in the problems' order, and the episodes that are in
            no group.
        """
        began = time.monotonic()
        groups: list[Group] = [[] for _ in problems]
        others: list[Transcript] = []

        def dropped(transcript: Transcript) -> None:
            if transcript.stop_reason is not StopReason.INFRASTRUCTURE:
                others.append(transcript)

        run = self.engine.groups(problems, n, seed, self.deadline, self.oversample, dropped)
        async with aclosing(run) as finished:
            async for index, group in finished:
                groups[index] = group
        return Sampled(groups, others, time.monotonic() - began)

    def _rest(self, step: Step) -> None:
        """Free the policy's memory for the trainer."""
        if self._sleeps:
            self._loop.run_blocking(self.engine.policy.sleep())
            self._asleep = True
        elif own_model(self.engine.policy, step):
            self.engine.policy.clear_cache()
