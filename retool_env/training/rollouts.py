"""Rollouts: a trainer's batches of episodes, from the rollout engine.

On several processes each has an engine of its own and runs the groups that are its part of the batch,
however long each takes; what concerns all (an error, nothing to learn from, another round of rollouts)
they decide together, so that none waits for one that has gone another way. They wait for the slowest in a
collective, so that its timeout (`ddp_timeout` of TRL's configuration) must be longer than the slowest
process's rollouts take beyond the fastest's.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import aclosing
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from retool_env.errors import RolloutsAbandoned as RolloutsAbandoned
from retool_env.problem import Problem, ProblemSource
from retool_env.rollout.engine import Group, RolloutEngine
from retool_env.rollout.policy import Policy, TextPolicy
from retool_env.servers.background import BackgroundLoop
from retool_env.training.figures import RolloutFigures
from retool_env.training.processes import gathered, together
from retool_env.training.rows import has_void_turn, is_trainable, training_rows
from retool_env.training.step import Step
from retool_env.training.trained_weights import is_sharded, trained_weights
from retool_env.transcript import StopReason, Transcript

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2

ResampleBy = Literal["accuracy", "reward"]
"""What must differ within a group that dynamic sampling keeps."""


@dataclasses.dataclass(frozen=True)
class _Batch:
    """One process's part of a generation batch."""

    prompts: list[str]
    """Ids of the problems, each as often as it has rollouts."""
    n: int
    """Rollouts a problem."""
    seed: tuple[int, ...]


@dataclasses.dataclass
class Sampled:
    """What was sampled for one process's part of a batch."""

    groups: list[Group]
    """Those that are trained on."""
    others: list[Transcript]
    """Episodes that were begun too, did not fail, and are in no group: dropped by `oversample`, or replaced."""
    seconds: float
    """From the first prompt to the last end."""


class Rollouts:
    """Collects a trainer's batches: one group of episodes a problem, run by the engine.

    What is logged of each step is said in `RolloutFigures`.

    Args:
        engine: Its policy must sample at top-p 1, from the model that is trained or one that takes its
            weights.
        problems: Where the ids of a step's problems come from.
        seed: Of all sampling; the batch's number is mixed in, so that a resumed run samples as one that never
            stopped.
        on_rollouts: Called with the step's number and its transcripts; not in evaluation.
        staleness: Batches that are sampled ahead while the trainer trains. What is trained on is that many
            batches old at most. Needs a policy whose weights are not the trained model's own tensors, and a
            trainer that knows what it will ask for (`Step.coming`; of TRL's a data set in its own order,
            `shuffle_dataset=False`). After a resumption the first batch is sampled with the newest weights,
            so that the curve is not quite that of a run which never stopped.
        deadline: Seconds after which a batch's episodes are cut; see `RolloutEngine.groups`. A cut episode
            keeps its score in the records; it is not trained on, nor counted in its group's mean and
            deviation. Long episodes are cut more often, so that what is left favours short ones: there is a
            warning once 5 % of a batch are cut.
        oversample: Rollouts begun for each that is kept; see `RolloutEngine.groups`. The dropped ones count
            in the figures of `episode_reward`, cut where they were, and so as wrong if they had no answer:
            else accuracy would be that of the episodes that finish first.
        resample: Rounds at most in which groups from which nothing can be learned are replaced by those of
            other problems (dynamic sampling, DAPO, arXiv 2503.14476, section 3.2). A round is run as long as
            there is such a group in any process.
        resample_by: Groups from which nothing can be learned are those whose episodes are all right or all
            wrong (`"accuracy"`, the paper's), or those of equal rewards (`"reward"`, for rewards of other
            things than a right answer). A shaped reward differs within an all-wrong group too, and training
            on that would teach the shape alone.
        mask_void: Whether nothing of an episode with a void turn is trained on (see `training_rows`). The
            share of such episodes is logged as `env/void_episodes`.
        stopping: Asked again and again while rollouts are waited for. Once it says so they are abandoned.

    Raises:
        ValueError: If the policy does not sample from the model's own distribution, or a number is out of
            range.
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
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        check_policy(engine.policy)
        if min(staleness, resample) < 0 or oversample < 1 or not (deadline is None or deadline > 0):
            raise ValueError(
                "staleness and resample must not be negative, oversample at least 1, a deadline above 0: "
                f"{staleness}, {resample}, {oversample}, {deadline}"
            )
        if resample_by not in get_args(ResampleBy):
            raise ValueError(f"resample_by must be accuracy or reward, not {resample_by!r}")
        if oversample > 1:
            logger.warning(
                "oversample=%g keeps the rollouts that finish first, which are shorter than what the policy writes, and more often "
                "right. env/accuracy is of all rollouts that were begun, and a dropped one without an answer counts as wrong, so "
                "that it is at most the policy's; reward and lengths are of those that are kept",
                oversample,
            )
        if staleness and engine.policy.sleep_mode:
            raise ValueError(
                "an engine that sleeps while the trainer trains can't sample ahead: staleness=0, or sleep_mode=False"
            )
        self.engine = engine
        self.problems = problems
        self.seed = seed
        self.on_rollouts = on_rollouts
        self.staleness = staleness
        self.deadline = deadline
        self.oversample = oversample
        self.resample = resample
        self.resample_by = resample_by
        self.mask_void = mask_void
        self.stopping = stopping
        self._loop = BackgroundLoop("rollouts")
        self._ahead: dict[int, tuple[_Batch, Future[Sampled]]] = {}
        self._synced = -1
        # An engine that shares its GPU with the trainer has it while it samples, and sleeps while that trains.
        self._sleeps = engine.policy.sleep_mode
        self._asleep = False
        self._figures = RolloutFigures(engine.progress, deadline)

    def close(self) -> None:
        """Cancel what is sampled ahead. May be called again."""
        self._loop.close()
        self._ahead.clear()

    @property
    def ahead(self) -> list[int]:
        """Numbers of the batches that are sampled ahead and were not yet asked for."""
        return list(self._ahead)

    def collect(self, step: Step) -> dict[str, list[Any]]:
        """Run the episodes of one batch; on several processes, called by all.

        Args:
            step: What the trainer asks for.

        Returns:
            The rows of `training_rows`, one an episode; and `untrained`, whose first entry lists the episodes
            that were begun for this batch too, did not fail, and are not trained on.

        Raises:
            ValueError: If the policy samples at another temperature than the loss assumes, the prompts are no
                whole groups, or the trainer does not allow for the staleness.
            RuntimeError: If every episode of every process failed or was cut in training, so that there is
                nothing to learn from, or another process has an error.
            RolloutsAbandoned: If a process was to stop.
        """
        began, accelerator = time.monotonic(), step.accelerator
        batch = together(accelerator, lambda: self._prepare(step))
        if step.batch not in self._ahead:
            self._sync(step)
        sampled = together(accelerator, lambda: self._take(step.batch, batch))
        resampled = 0
        if step.training and self.staleness:
            self._sync(step)
            together(accelerator, lambda: self._start_ahead(step))
        if step.training:
            resampled = self._resample(step, batch, sampled)
        together(accelerator, lambda: self._rest(step))
        version = step.number if step.training else None
        transcripts = [
            dataclasses.replace(transcript, trained_version=version)
            for group in sampled.groups
            for transcript in group
        ]
        if step.training:
            if (record := self.on_rollouts) is not None:
                together(accelerator, lambda: record(step.number, transcripts))
            waited = time.monotonic() - began
            self._figures.log(step, transcripts, sampled.seconds, waited, resampled)
        if self.mask_void:
            void = sum(map(has_void_turn, transcripts))
            step.log("env/void_episodes", void / len(transcripts))
        rows = training_rows(transcripts, step.eos_token_ids, self.mask_void)
        rows["untrained"] = [sampled.others, *([] for _ in transcripts[1:])]
        return rows

    def _prepare(self, step: Step) -> _Batch:
        self._check(step)
        if self._asleep:
            self._loop.run_blocking(self.engine.policy.wake_up())
            self._asleep = False
        prompts, n = list(step.prompts), step.group
        starts = range(0, len(prompts), n)
        if len(prompts) % n or any(len(set(prompts[i : i + n])) != 1 for i in starts):
            raise ValueError(f"the prompts are no groups of {n} equal ones: {prompts[: n + 1]} ...")
        rank = step.accelerator.process_index
        if not step.training:
            return _Batch(prompts, n, (self.seed, step.number, rank, 0, 1))
        return _Batch(prompts, n, (self.seed, step.batch, rank))

    def _check(self, step: Step) -> None:
        check_policy(self.engine.policy, step.temperature)
        if self._own_model(step):
            if self.staleness:
                raise ValueError(
                    "a model that is trained can't be sampled from meanwhile: give the policy one of its own, loaded from "
                    "the same checkpoint (TRL's model is not to be copied: its forward stays the original's), or staleness=0"
                )
            if is_sharded(step.model):
                raise ValueError(
                    "a model whose parameters are sharded can't be sampled from by one process: give the policy one of "
                    "its own, loaded from the same checkpoint, or use vLLM"
                )
        if self.staleness > 1 and self._shares_servers(step):
            raise ValueError(
                "servers that several processes share can be sampled ahead from by one batch only, since no turn may be under "
                "way while they take new weights: staleness=1"
            )

    def _own_model(self, step: Step) -> bool:
        return self.engine.policy.model is step.model

    def _shares_servers(self, step: Step) -> bool:
        return self.engine.policy.shares_servers and step.accelerator.num_processes > 1

    def _start(self, batch: _Batch) -> Future[Sampled]:
        problems = [self.problems.get(each) for each in batch.prompts[:: batch.n]]
        return self._loop.submit(self.sample(problems, batch.n, batch.seed))

    def _take(self, number: int, batch: _Batch) -> Sampled:
        ahead = number in self._ahead
        asked, future = self._ahead.pop(number) if ahead else (batch, self._start(batch))
        if asked.prompts != batch.prompts:
            raise ValueError(
                "the trainer asks for other problems than those that were sampled ahead: set shuffle_dataset=False, or "
                "staleness=0"
            )
        return self._wait(future)

    def _wait(self, future: Future[Sampled]) -> Sampled:
        while not futures.wait([future], _LOOK_SECONDS).done:
            if self.stopping():
                future.cancel()
                raise RolloutsAbandoned("the rollouts were abandoned")
        return future.result()

    def _start_ahead(self, step: Step) -> None:
        for number in range(step.batch + 1, step.batch + 1 + self.staleness):
            if number not in self._ahead and (prompts := step.coming(number)) is not None:
                seed = self.seed, number, step.accelerator.process_index
                batch = _Batch(list(prompts), step.group, seed)
                self._ahead[number] = batch, self._start(batch)

    async def sample(self, problems: Sequence[Problem], n: int, seed: Sequence[int]) -> Sampled:
        """Run `n` episodes of each problem. A subclass may run more, and choose which are trained on.

        Args:
            problems: The problems.
            n: Rollouts a problem.
            seed: Of the sampling.

        Returns:
            A group of `n` a problem, in the problems' order, and the episodes beside them.
        """
        began = time.monotonic()
        found: list[Group] = [[] for _ in problems]
        others: list[Transcript] = []

        def dropped(transcript: Transcript) -> None:
            if transcript.stop_reason is not StopReason.INFRASTRUCTURE:
                others.append(transcript)

        run = self.engine.groups(problems, n, seed, self.deadline, self.oversample, dropped)
        async with aclosing(run) as groups:
            async for index, group in groups:
                found[index] = group
        return Sampled(found, others, time.monotonic() - began)

    def _resample(self, step: Step, batch: _Batch, sampled: Sampled) -> int:
        """Replace the groups that teach nothing as far as may be; returns how many were tried."""
        tried, groups, accelerator = 0, sampled.groups, step.accelerator
        for turn in range(self.resample):
            dull = [i for i, group in enumerate(groups) if not teaches(group, self.resample_by)]
            if not sum(count for (count,) in gathered(accelerator, len(dull))):
                break
            fresh = together(accelerator, partial(self._others, batch, turn, dull))
            tried += len(dull)
            sampled.others += fresh.others
            for index, group in zip(dull, fresh.groups, strict=True):
                untrainable = not any(is_trainable(each) for each in groups[index])
                if teaches(group, self.resample_by) or untrainable:
                    groups[index], group = group, groups[index]
                sampled.others += [each for each in group if each.scored]
        return tried

    def _others(self, batch: _Batch, turn: int, instead: Sequence[int]) -> Sampled:
        """Groups of other problems, drawn at random."""
        rng = np.random.default_rng((*batch.seed, turn))
        chosen = rng.integers(len(self.problems), size=len(instead))
        problems = [self.problems[int(index)] for index in chosen]
        # Longer than any batch's seed, so that it is none of them.
        seed = (*batch.seed, turn, 0, 0)
        return self._wait(self._loop.submit(self.sample(problems, batch.n, seed)))

    def _rest(self, step: Step) -> None:
        """Leave the memory to the trainer."""
        if self._sleeps:
            self._loop.run_blocking(self.engine.policy.sleep())
            self._asleep = True
        elif self._own_model(step):
            self.engine.policy.clear_cache()

    def _sync(self, step: Step) -> None:
        """Let every process's policy sample from the weights of the step."""
        if step.number == self._synced:
            return
        policy, accelerator = self.engine.policy, step.accelerator
        main, shared = accelerator.is_main_process, self._shares_servers(step)
        together(accelerator, lambda: self._load(step, leads=main or not shared))
        if shared:
            follow = policy.follow
            together(accelerator, lambda: main or self._loop.run_blocking(follow(step.number)))
        self._synced = step.number

    def _load(self, step: Step, leads: bool) -> None:
        policy = self.engine.policy
        if self._own_model(step):
            self._loop.run_blocking(policy.update_weights(step.number))
            return
        weights = trained_weights(step.model)
        try:
            if leads:
                self._loop.run_blocking(policy.update_weights(step.number, weights))
        finally:
            if is_sharded(step.model):
                for _ in weights:  # all processes gather the shards, or none goes on
                    pass


def check_policy(policy: Policy | TextPolicy, temperature: float | None = None) -> None:
    """Check that a policy's log-probs are those of the distribution that a loss assumes.

    Args:
        policy: What samples.
        temperature: The loss's; `None`: it is not known yet.

    Raises:
        ValueError: If the policy gives text without token ids, or samples at a top-p below 1 or at another
            temperature than the loss's.
    """
    if isinstance(policy, TextPolicy):
        raise ValueError("a policy of text gives no token ids, so it can't be trained")
    if policy.top_p != 1.0:
        raise ValueError(
            "training needs top_p = 1: under a smaller one the log-probs are those of a cut distribution, and the "
            "ratio to the trained model's is wrong"
        )
    if temperature is None:
        return
    own = temperature if policy.temperature is None else policy.temperature
    if own != temperature or not temperature > 0:
        raise ValueError(
            f"the policy samples at temperature {own}, the loss takes it for {temperature}: both must be the "
            "same, and above 0"
        )


def teaches(group: Group, by: ResampleBy) -> bool:
    """Whether something can be learned from a group: its episodes differ in what `by` names.

    Those that are not trained on don't count.
    """
    scored = [each for each in group if is_trainable(each)]
    return len({bool(each.correct) if by == "accuracy" else each.reward for each in scored}) > 1
