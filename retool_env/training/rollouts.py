"""EngineRollouts: TRL's `rollout_func`, over the rollout engine.

On several processes each has an engine of its own and runs the groups that are its part of the batch, however long each takes;
what concerns all (an error, nothing to learn from, another round of rollouts) they decide together, so that none waits for one
that has gone another way. They wait for the slowest in a collective, so that `ddp_timeout` of TRL's configuration must be
longer than the slowest process's rollouts take beyond the fastest's.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, Literal, get_args

import numpy as np
import torch
from trl import GRPOTrainer

from retool_env.errors import RolloutsAbandoned as RolloutsAbandoned
from retool_env.problem import Problem, ProblemSource
from retool_env.rollout.engine import Group, RolloutEngine
from retool_env.servers.background import BackgroundLoop
from retool_env.training.rows import is_trainable, training_rows
from retool_env.training.trained_weights import is_sharded, trained_weights
from retool_env.transcript import StopReason, Transcript

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
_MANY_CUT = 0.05
"""Share of a batch's episodes cut by the deadline from which there is a warning."""

ResampleBy = Literal["accuracy", "reward"]
"""What must differ within a group that dynamic sampling keeps."""


@dataclasses.dataclass(frozen=True)
class _Batch:
    """One process's part of a generation batch."""

    number: int
    """Of the batch, counted from the run's beginning; -1 in evaluation."""
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


class EngineRollouts:
    """A `rollout_func`: runs one group of episodes a problem with the engine.

    Each step logs what TRL does not, over all processes: `rollout/seconds`, from a batch's first prompt to its last end;
    `rollout/tokens`, that the model wrote since the step before, whatever became of them; `rollout/waited`, of the step, that the trainer stood still for rollouts, weights and resampling; `rollout/tool_seconds`,
    summed over episodes; `rollout/weight_lag` and `rollout/weight_lag_max`, optimizer steps between the weights that sampled
    a turn and those that the trainer has when it takes the batch; episodes `rollout/failed`, which are not scored, and
    `rollout/cut`, `rollout/dropped` and `rollout/retried` since the step before; groups `rollout/resampled`; and
    `env/deadline_cut`, the share of the batch's episodes that the deadline cut.

    Args:
        engine: Its policy must sample at top-p 1, from the model that is trained or one that takes its weights.
        problems: Where the ids in the data set come from.
        seed: Of all sampling; the batch's number is mixed in, so that a resumed run samples as one that never stopped.
        on_rollouts: Called with the step's number and its transcripts; not in evaluation.
        staleness: Generation batches that are sampled ahead while the trainer trains. What is trained on is that many
            batches old at most. Needs a policy whose weights are not the trained model's own tensors, and a data set in
            its own order (`shuffle_dataset=False`). After a resumption the first batch is sampled with the newest weights,
            so that the curve is not quite that of a run which never stopped.
        deadline: Seconds after which a batch's episodes are cut; see `RolloutEngine.groups`. A cut episode keeps its score in the
            records; it is not trained on, nor counted in its group's mean and deviation. Long episodes are cut more often, so
            that what is left favours short ones: there is a warning once 5 % of a batch are cut.
        oversample: Rollouts begun for each that is kept; see `RolloutEngine.groups`. The dropped ones count in the figures of
            `episode_reward`, cut where they were, and so as wrong if they had no answer: else accuracy would be that of the
            episodes that finish first.
        resample: Rounds at most in which groups from which nothing can be learned are replaced by those of other problems
            (dynamic sampling, DAPO, arXiv 2503.14476, section 3.2). A round is run as long as there is such a group in any
            process.
        resample_by: Groups from which nothing can be learned are those whose episodes are all right or all wrong
            (`"accuracy"`, the paper's), or those of equal rewards (`"reward"`, for rewards of other things than a right answer).
            A shaped reward differs within an all-wrong group too, and training on that would teach the shape alone.
        stopping: Asked again and again while rollouts are waited for. Once it says so they are abandoned.

    Raises:
        ValueError: If the policy does not sample from the model's own distribution, or a number is out of range.
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
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        if engine.policy.top_p != 1.0:
            raise ValueError(
                "training needs top_p = 1: under a smaller one the log-probs are those of a cut distribution, and the "
                "ratio to the trained model's is wrong"
            )
        if (
            staleness < 0
            or resample < 0
            or oversample < 1
            or not (deadline is None or deadline > 0)
        ):
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
        self.stopping = stopping
        self._loop = BackgroundLoop("rollouts")
        self._ahead: dict[int, tuple[_Batch, Future[Sampled]]] = {}
        self._origin: tuple[int, int] | None = None
        self._synced = -1
        # An engine that shares its GPU with the trainer has it while it samples, and sleeps while that trains.
        self._sleeps = engine.policy.sleep_mode
        self._asleep = False
        self._counted = dataclasses.replace(engine.progress)
        self._warned = False

    def close(self) -> None:
        """Cancel what is sampled ahead. May be called again."""
        self._loop.close()
        self._ahead.clear()

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """Run the episodes of one generation batch; on several processes, called by all.

        Raises:
            ValueError: If the policy samples at another temperature than the loss assumes, the prompts are no whole groups,
                or the trainer does not allow for the staleness.
            RuntimeError: If every episode of every process failed or was cut in training, so that there is nothing to learn from, or
                another process has an error.
            RolloutsAbandoned: If a process was to stop.
        """
        began = time.monotonic()
        step, training = trainer.state.global_step, trainer.model.training
        batch = together(trainer, lambda: self._prepare(prompts, trainer))
        if batch.number not in self._ahead:
            self._sync(trainer, step)
        sampled = together(trainer, lambda: self._take(batch))
        resampled = 0
        if training and self.staleness:
            self._sync(trainer, step)
            together(trainer, lambda: self._start_ahead(batch.number, trainer))
        if training:
            resampled = self._resample(trainer, batch, sampled)
        together(trainer, lambda: self._rest(trainer))
        transcripts = [
            dataclasses.replace(transcript, trained_version=step if training else None)
            for group in sampled.groups
            for transcript in group
        ]
        if training:
            if self.on_rollouts is not None:
                together(trainer, lambda: self.on_rollouts(step, transcripts))
            self._log(
                trainer, transcripts, step, sampled.seconds, time.monotonic() - began, resampled
            )
        rows = training_rows(transcripts, trainer.eos_token_ids)
        rows["untrained"] = [sampled.others, *([] for _ in transcripts[1:])]
        return rows

    def _prepare(self, prompts: list[str], trainer: GRPOTrainer) -> _Batch:
        self._check(trainer)
        if self._asleep:
            self._loop.run_blocking(self.engine.policy.wake_up())
            self._asleep = False
        rank, step = trainer.accelerator.process_index, trainer.state.global_step
        training = trainer.model.training
        n = trainer.num_generations if training else trainer.num_generations_eval
        starts = range(0, len(prompts), n)
        if len(prompts) % n or any(len(set(prompts[i : i + n])) != 1 for i in starts):
            raise ValueError(f"the prompts are no groups of {n} equal ones: {prompts[: n + 1]} ...")
        if not training:
            return _Batch(-1, prompts, n, (self.seed, step, rank, 0, 1))
        passes = trainer.args.gradient_accumulation_steps
        if self._origin is None:
            self._origin = step * passes, trainer._step
        taken = self._origin[0] + trainer._step - self._origin[1]
        number = taken // _passes_a_batch(trainer)
        return _Batch(number, prompts, n, (self.seed, number, rank))

    def _check(self, trainer: GRPOTrainer) -> None:
        policy = self.engine.policy
        temperature = trainer.temperature if policy.temperature is None else policy.temperature
        if temperature != trainer.temperature or not temperature > 0:
            raise ValueError(
                f"the policy samples at temperature {temperature}, the loss takes it for {trainer.temperature}: both must be "
                "the same, and above 0"
            )
        if self._own_model(trainer):
            if self.staleness:
                raise ValueError(
                    "a model that is trained can't be sampled from meanwhile: give the policy one of its own, loaded from "
                    "the same checkpoint (TRL's model is not to be copied: its forward stays the original's), or staleness=0"
                )
            if is_sharded(trainer.model):
                raise ValueError(
                    "a model whose parameters are sharded can't be sampled from by one process: give the policy one of "
                    "its own, loaded from the same checkpoint, or use vLLM"
                )
        if self.staleness > 1 and self._shares_servers(trainer):
            raise ValueError(
                "servers that several processes share can be sampled ahead from by one batch only, since no turn may be under "
                "way while they take new weights: staleness=1"
            )

    def _own_model(self, trainer: GRPOTrainer) -> bool:
        return self.engine.policy.model is trainer.model

    def _shares_servers(self, trainer: GRPOTrainer) -> bool:
        return self.engine.policy.shares_servers and trainer.accelerator.num_processes > 1

    def _coming(self, number: int, trainer: GRPOTrainer) -> _Batch | None:
        """A batch that the trainer will ask for, as far as it will."""
        assert self._origin is not None
        arguments, n, passes = trainer.args, trainer.num_generations, _passes_a_batch(trainer)
        first = self._origin[0] + (number - self._origin[0] // passes) * passes
        if first >= trainer.state.max_steps * arguments.gradient_accumulation_steps:
            return None
        size = arguments.generation_batch_size // n
        start = number % (len(trainer.train_dataset) // size) * size
        ids = trainer.train_dataset[start : start + size]["prompt"]
        rank = trainer.accelerator.process_index
        rows = len(ids) * n // trainer.accelerator.num_processes
        own = [each for each in ids for _ in range(n)][rank * rows : (rank + 1) * rows]
        return _Batch(number, own, n, (self.seed, number, rank))

    def _start(self, batch: _Batch) -> Future[Sampled]:
        problems = [self.problems.get(each) for each in batch.prompts[:: batch.n]]
        return self._loop.submit(self._run(problems, batch.n, batch.seed))

    def _take(self, batch: _Batch) -> Sampled:
        asked, future = self._ahead.pop(batch.number, None) or (batch, self._start(batch))
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

    def _start_ahead(self, number: int, trainer: GRPOTrainer) -> None:
        for coming in range(number + 1, number + 1 + self.staleness):
            if coming not in self._ahead and (batch := self._coming(coming, trainer)):
                self._ahead[coming] = batch, self._start(batch)

    async def _run(self, problems: Sequence[Problem], n: int, seed: Sequence[int]) -> Sampled:
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

    def _resample(self, trainer: GRPOTrainer, batch: _Batch, sampled: Sampled) -> int:
        """Replace the groups that teach nothing as far as may be; returns how many were tried."""
        tried, groups = 0, sampled.groups
        for turn in range(self.resample):
            dull = [index for index, group in enumerate(groups) if not self._teaches(group)]
            if not sum(count for (count,) in _gathered(trainer, len(dull))):
                break
            fresh = together(trainer, lambda turn=turn, dull=dull: self._others(batch, turn, dull))
            tried += len(dull)
            sampled.others += fresh.others
            for index, group in zip(dull, fresh.groups, strict=True):
                if self._teaches(group) or not any(is_trainable(each) for each in groups[index]):
                    groups[index], group = group, groups[index]
                sampled.others += [each for each in group if each.scored]
        return tried

    def _teaches(self, group: Group) -> bool:
        """Whether a group's episodes differ in what `resample_by` names."""
        scored = [each for each in group if is_trainable(each)]
        if self.resample_by == "accuracy":
            return len({bool(each.correct) for each in scored}) > 1
        return len({each.reward for each in scored}) > 1

    def _others(self, batch: _Batch, turn: int, instead: Sequence[int]) -> Sampled:
        """Groups of other problems, drawn at random."""
        rng = np.random.default_rng((*batch.seed, turn))
        chosen = rng.integers(len(self.problems), size=len(instead))
        problems = [self.problems[int(index)] for index in chosen]
        # Longer than any batch's seed, so that it is none of them.
        seed = (*batch.seed, turn, 0, 0)
        return self._wait(self._loop.submit(self._run(problems, batch.n, seed)))

    def _rest(self, trainer: GRPOTrainer) -> None:
        """Leave the memory to the trainer."""
        if self._sleeps:
            self._loop.run_blocking(self.engine.policy.sleep())
            self._asleep = True
        elif self._own_model(trainer):
            self.engine.policy.clear_cache()

    def _sync(self, trainer: GRPOTrainer, step: int) -> None:
        """Let every process's policy sample from the weights of a step."""
        if step == self._synced:
            return
        policy, main = self.engine.policy, trainer.accelerator.is_main_process
        shared = self._shares_servers(trainer)
        together(trainer, lambda: self._load(trainer, step, leads=main or not shared))
        if shared:
            together(trainer, lambda: main or self._loop.run_blocking(policy.follow(step)))
        self._synced = step

    def _load(self, trainer: GRPOTrainer, step: int, leads: bool) -> None:
        policy = self.engine.policy
        if self._own_model(trainer):
            self._loop.run_blocking(policy.update_weights(step))
            return
        weights = trained_weights(trainer.model)
        try:
            if leads:
                self._loop.run_blocking(policy.update_weights(step, weights))
        finally:
            if is_sharded(trainer.model):
                for _ in weights:  # all processes gather the shards, or none goes on
                    pass

    def _log(
        self,
        trainer: GRPOTrainer,
        transcripts: Sequence[Transcript],
        step: int,
        seconds: float,
        waited: float,
        resampled: int,
    ) -> None:
        """Log a batch's figures, the same on every process.

        Raises:
            RuntimeError: If none of its episodes, on any process, can be trained on.
        """
        now, before = self.engine.progress, self._counted
        self._counted = dataclasses.replace(now)
        lags = [
            step - version
            for transcript in transcripts
            for span in transcript.spans
            for version, _ in span.weights
        ]
        sums = {
            name: float(getattr(now, name) - getattr(before, name))
            for name in ("tokens", "tool_seconds", "cut", "dropped", "retried")
        }
        sums |= {"resampled": resampled, "turns": len(lags), "weight_lag": sum(lags)}
        sums["trainable"] = sum(map(is_trainable, transcripts))
        sums["failed"] = sum(not transcript.scored for transcript in transcripts)
        sums["deadline_cut"] = sum(t.stop_reason is StopReason.CANCELLED for t in transcripts)
        sums["episodes"] = len(transcripts)
        most = {"seconds": seconds, "waited": waited, "weight_lag_max": max(lags, default=0)}
        everywhere = list(zip(*_gathered(trainer, *sums.values(), *most.values()), strict=True))
        figures = {name: sum(each) for name, each in zip(sums, everywhere, strict=False)}
        figures |= {
            name: max(each) for name, each in zip(most, everywhere[len(sums) :], strict=True)
        }
        cut = figures.pop("deadline_cut") / figures.pop("episodes")
        if not figures.pop("trainable"):
            if cut:
                raise RuntimeError(
                    f"no episode of step {step} is left to train on: {cut:.0%} were cut by the deadline of {self.deadline:g} s, "
                    "and the others failed. Set a later deadline; the run can go on from its last checkpoint"
                )
            raise RuntimeError(
                f"all {len(transcripts)} episodes of step {step} failed, in the sandbox or the policy; `retool doctor` checks "
                "the one, and the run can go on from its last checkpoint"
            )
        if cut >= _MANY_CUT and not self._warned and trainer.accelerator.is_main_process:
            self._warned = True
            logger.warning(
                "the deadline of %g s cut %.0f %% of the episodes of step %d, which are not trained on. Long episodes are cut "
                "more often than short ones, so that the model learns to write less: set a later deadline",
                self.deadline,
                100 * cut,
                step,
            )
        trainer._log_metric("env/deadline_cut", cut)
        if turns := figures.pop("turns"):
            figures["weight_lag"] /= turns
        else:  # a policy without weights
            del figures["weight_lag"], figures["weight_lag_max"]
        for name, value in figures.items():
            trainer._log_metric(f"rollout/{name}", value)


def _passes_a_batch(trainer: GRPOTrainer) -> int:
    """Forward and backward passes that are made with one generation batch."""
    return trainer.args.steps_per_generation * trainer.num_iterations


def together[T](trainer: GRPOTrainer, work: Callable[[], T]) -> T:
    """Do something on every process. An error on one is one on all, so that none waits for it.

    Raises:
        RuntimeError: If another process has an error.
        RolloutsAbandoned: If none has, and one abandoned its rollouts.
    """
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    abandoned = isinstance(error, RolloutsAbandoned)
    numbers = _gathered(trainer, error is not None and not abandoned, abandoned)
    if error is not None and not abandoned:
        raise error
    for rank, (failed, _) in enumerate(numbers):
        if failed:
            raise RuntimeError(f"process {rank} failed; it says why")
    if any(left for _, left in numbers):
        raise RolloutsAbandoned("the rollouts were abandoned")
    return result


def _gathered(trainer: GRPOTrainer, *numbers: float) -> list[list[float]]:
    """Every process's numbers, by its rank. All must call it."""
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return [list(map(float, numbers))]
    own = torch.tensor([numbers], dtype=torch.float32, device=accelerator.device)
    return accelerator.gather(own).tolist()
