"""A rollout worker and a weight transfer for TRL's `AsyncGRPOTrainer`.

The worker keeps the rollout engine busy while the trainer trains:

    trainer = AsyncGRPOTrainer(
        model=folder,
        args=AsyncGRPOConfig(..., temperature=1.0, token_budget=16_384),
        train_dataset=problem_dataset(problems, size, seed=0),
        rollout_worker=EngineRolloutWorker(engine, problems, n=16, ahead=1024),
        weight_transfer=PolicyWeightTransfer(engine.policy),
    )

TRL's trainer does not write `retool.json`. The script must do so, after
`trainer.save_model(folder)`, by `CheckpointTask.of({"id": ..., ...}).save(folder)`.

Only the size of the data set matters: it is the number of groups in an epoch. TRL asks its vLLM
server for the `token_budget`; without a server it must be set, and a prompt with its response must
fit into it. Without `PolicyWeightTransfer` TRL itself moves the weights into the server at its
`vllm_server_base_url`, and a `VLLMServerPolicy` may sample from this server.

This is the only module that uses TRL's experimental modules, whose interfaces change. Importing it
raises an `ImportError` if the installed TRL has other interfaces.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from retool_env.episode import Generation
from retool_env.problem import Problem, ProblemSource
from retool_env.rollout.engine import Group, RolloutEngine, run_blocking
from retool_env.rollout.policy import Policy
from retool_env.servers.background import BackgroundLoop
from retool_env.training.advantages import group_normalised
from retool_env.training.figures import episode_figures
from retool_env.training.sampling_policy import check_policy
from retool_env.transcript import Transcript

try:
    from trl.experimental.async_grpo.async_rollout_worker import RolloutSample
except ImportError as error:
    raise ImportError(
        "retool_env.integrations.trl_async needs the experimental AsyncGRPOTrainer of TRL 1.16 "
        f"({error}): pip install 'trl>=1.16,<1.17', or train with EngineGRPOTrainer, whose "
        "EngineRollouts can also sample ahead (staleness=1)"
    ) from error


class EngineRolloutWorker:
    """TRL's `RolloutWorkerProtocol`: produces groups of rollouts without end, in its own thread.

    Problems are drawn in random order; a problem comes again only after all problems were drawn. A
    group's samples enter the queue together, in order. They hold the transcripts' token ids, loss
    masks and engine log-probs. The advantage is the reward less the group's mean, over the group's
    standard deviation, as in TRL's worker. An episode that the infrastructure made fail enters
    neither the queue nor its group's mean, but is counted. A group with fewer than two scored
    episodes has nothing to compare, so it is skipped and counted.

    A turn's weight version is the version that the trainer had announced when the turn began. A
    sample's version is the oldest version of its turns. The trainer announces weights once they are
    served, so the true weights of a turn may be newer than its version, never older.

    Besides its own figures the trainer logs

    - the figures of `episode_figures`, of scored episodes,
    - `env/failed_total` and `rollout/skipped_groups_total`, the numbers of failed episodes and
      skipped groups,
    - `rollout/in_flight`, the number of episodes in flight,
    - `rollout/weight_lag`, mean and maximum: the newest announced version, when a sample is
      finished, less the sample's version.

    Args:
        engine: The rollout engine. Its policy must sample at top-p 1, from the model into which the
            trainer's weights are moved.
        problems: The problems to draw from.
        n: Rollouts a problem, at least 2.
        ahead: Largest number of samples in flight or waiting for the trainer. The trainer throws
            away the samples beyond the number that it trains on in `max_staleness` steps.
        seed: Seed of the problems' order and of all sampling.
        temperature: The sampling temperature that the trainer's loss assumes.
        on_group: Called in the worker's thread with each group's number and its transcripts;
            `None`: nothing is called.

    Raises:
        ValueError: If a number is out of range, or the policy gives no token ids or does not sample
            from the distribution that the loss assumes.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        problems: ProblemSource,
        n: int,
        ahead: int,
        seed: int = 0,
        temperature: float = 1.0,
        on_group: Callable[[int, Group], None] | None = None,
    ) -> None:
        check_policy(engine.policy, temperature)
        engine.rules.check_training()
        if n < 2 or ahead < n:
            raise ValueError(
                f"n={n} and ahead={ahead}: a group has at least 2 rollouts, and ahead must hold a "
                "whole group"
            )
        self.rollout_buffer: queue.Queue[RolloutSample] = _Buffer(self._taken)
        self.metrics_queue: queue.Queue[dict[str, float | tuple[float, float]]] = queue.Queue()
        self.problems = problems
        self.n = n
        self.ahead = ahead
        self.seed = seed
        self.on_group = on_group
        self._policy = _AnnouncedPolicy(engine.policy, self._turn_ended)
        self._engine = copy.copy(engine)  # the caller's keeps its policy
        self._engine.policy = self._policy
        self._drawn = enumerate(self._draw())
        self._in_flight = 0
        self._heard = 0.0  # the time of the last product, in seconds of the monotonic clock
        self._failed = 0  # groups in a row of which all episodes failed
        self._loop: BackgroundLoop | None = None
        self._production: Future[None] | None = None
        self._woken: Callable[[], object] | None = None

    def start(self) -> None:
        """Start to produce samples.

        Raises:
            RuntimeError: If the worker runs already.
        """
        if self._loop is not None:
            raise RuntimeError("the rollout worker runs already")
        self._in_flight, self._failed, self._heard = 0, 0, time.monotonic()
        self._loop = BackgroundLoop("rollout-worker")
        self._production = self._loop.submit(self._produce())

    def stop(self) -> None:
        """Cancel the episodes in flight and their requests, end the thread. May be called again."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def update_model_version(self, model_version: int) -> None:
        """Note the version of the weights that the policy serves from now on.

        The policy has these weights already, so nothing is loaded.

        Args:
            model_version: The version, by the trainer's count.
        """
        self._policy.weight_version = model_version
        self._heard = time.monotonic()  # nothing could be produced while the weights were moved

    def check_health(self, stale_after_s: float) -> None:
        """Check that the worker still produces samples.

        Args:
            stale_after_s: Seconds without a finished turn, while episodes are in flight, after
                which the worker counts as stuck. Once all episodes of a group failed, only a group
                with a scored episode ends this time.

        Raises:
            RuntimeError: If the worker does not run, has failed, or is stuck.
        """
        if self._loop is None or self._production is None:
            raise RuntimeError("the rollout worker does not run: call start()")
        if self._production.done():
            error = self._production.exception()
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise RuntimeError(f"the rollout worker has failed: {error}") from error
        silent = time.monotonic() - self._heard
        if self._in_flight and silent > stale_after_s:
            stuck = (
                f"the rollout worker has produced nothing in {silent:.0f} s, and "
                f"{self._in_flight} episodes are in flight"
            )
            if self._failed:
                stuck += (
                    f"; the last {self._failed} groups failed, in the sandbox or the policy: check "
                    "the sandbox with `retool doctor`"
                )
            raise RuntimeError(stuck)

    async def _produce(self) -> None:
        room = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._woken = lambda: loop.call_soon_threadsafe(room.set)

        async def produce_group(number: int, problem: Problem) -> None:
            seed = (self.seed, number)
            async for _, group in self._engine.groups([problem], self.n, seed):
                self._in_flight -= self.n
                self._hand_over(number, group)
            room.set()

        async with asyncio.TaskGroup() as tasks:
            for number, problem in self._drawn:
                while self._in_flight + self.n + self.rollout_buffer.qsize() > self.ahead:
                    for_trainer = not self._in_flight
                    room.clear()
                    await room.wait()
                    if for_trainer:  # nothing could be produced during this wait
                        self._heard = time.monotonic()
                self._in_flight += self.n
                tasks.create_task(produce_group(number, problem))

    def _draw(self) -> Iterator[Problem]:
        generator = np.random.default_rng(self.seed)
        while True:
            for index in generator.permutation(len(self.problems)):
                yield self.problems[int(index)]

    def _hand_over(self, number: int, group: Group) -> None:
        if self.on_group is not None:
            self.on_group(number, group)
        scored = [transcript for transcript in group if transcript.scored]
        self._failed = 0 if scored else self._failed + 1
        self._turn_ended()
        samples = group_samples(scored, number) if len(scored) > 1 else []
        for sample in samples:
            sample.enqueued_at = time.time()
            self.rollout_buffer.put_nowait(sample)
        lags = [self._policy.weight_version - sample.model_version for sample in samples]
        figures: dict[str, float | tuple[float, float]] = {
            **{name: (sum(many), len(many)) for name, many in episode_figures(scored).items()},
            "env/failed_total": float(len(group) - len(scored)),
            "rollout/skipped_groups_total": float(not samples),
            "rollout/in_flight": float(self._in_flight),
            "rollout/weight_lag": (sum(lags), len(lags)),
        }
        if lags:
            figures["rollout/weight_lag_max"] = float(max(lags))
        self.metrics_queue.put_nowait(figures)

    def _turn_ended(self) -> None:
        # While all groups fail, the end of a turn does not promise a sample.
        if not self._failed:
            self._heard = time.monotonic()

    def _taken(self) -> None:
        """Called in the trainer's thread when the trainer has taken a sample."""
        if self._woken is not None:
            with suppress(RuntimeError):  # raised if the loop has ended
                self._woken()


class PolicyWeightTransfer:
    """TRL's `WeightTransferProtocol`: sends the trainer's weights to `Policy.update_weights`.

    All of the model's weights must be trained, since TRL does not send frozen weights.

    Args:
        policy: The policy that takes the weights.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._version = 0

    def init_weight_transfer(self) -> None:
        """Do nothing: the transfer needs no set-up."""

    def pause(self) -> None:
        """Do nothing: the policy itself samples no turn with weights that are being changed."""

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Send weights, and wait until the policy serves them.

        Their version is the number of the transfer, from 1, as the trainer counts.

        Args:
            iterator: Names and tensors of all weights, each tensor whole, in its parameter's shape.
        """
        self._version += 1
        run_blocking(self._policy.update_weights(self._version, iterator))

    def resume(self) -> None:
        """Do nothing: the policy goes on sampling by itself."""

    def destroy(self) -> None:
        """Do nothing: the caller that made the policy closes it."""


def group_samples(group: Sequence[Transcript], group_id: int) -> list[RolloutSample]:
    """TRL's training samples of one problem's scored transcripts, in order.

    Args:
        group: At least one transcript. A transcript without a sampled token counts in the mean, but
            gives no sample.
        group_id: The number of the group, the same in all its samples.

    Returns:
        Samples of token ids, mask (1 on tokens that the model sampled) and log-probs (0.0 where the
        mask is 0), each of shape `(prompt + response,)`.
    """
    rewards = torch.tensor([transcript.reward for transcript in group], dtype=torch.float64)
    # TRL's own worker scales advantages in this way.
    advantages = group_normalised(rewards, len(group), bessel=False, epsilon=1e-8)
    deviation = rewards.std(correction=0).item()
    samples = []
    for transcript, reward, advantage in zip(
        group, rewards.tolist(), advantages.tolist(), strict=True
    ):
        prompt, response = transcript.prompt_ids, transcript.completion_ids
        if not any(transcript.loss_mask):
            continue
        padding = [0] * len(prompt)
        versions = [version for span in transcript.spans for version, _ in span.weights]
        samples.append(
            RolloutSample(
                prompt=[{"role": "user", "content": transcript.spans[0].text}],
                completion=[{"role": "assistant", "content": transcript.response_text}],
                input_ids=np.array(prompt + response, dtype=np.int64),
                completion_mask=np.array(padding + transcript.loss_mask, dtype=np.int64),
                old_log_probs=np.array(padding + transcript.logprobs, dtype=np.float32),
                advantage=advantage,
                model_version=min(versions, default=0),
                group_id=group_id,
                metrics={"reward": reward, "reward_std": deviation},
            )
        )
    return samples


class _AnnouncedPolicy:
    """A policy whose turns carry the version that the trainer had announced when they began.

    The policy's own count of versions is not used.

    Args:
        policy: The policy that samples.
        on_turn: Called when a turn has ended.
    """

    def __init__(self, policy: Policy, on_turn: Callable[[], None]) -> None:
        self.weight_version = 0
        self._policy = policy
        self._on_turn = on_turn

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        version = self.weight_version
        generation = await self._policy.act(token_ids, stop, budget, seed)
        self._on_turn()
        return dataclasses.replace(generation, weight_version=version, weight_runs=())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)


class _Buffer(queue.Queue[RolloutSample]):
    """A queue that calls a function whenever an item was taken from it."""

    def __init__(self, taken: Callable[[], None]) -> None:
        super().__init__()
        self._on_taken = taken

    def _get(self) -> RolloutSample:
        sample = super()._get()
        self._on_taken()
        return sample
