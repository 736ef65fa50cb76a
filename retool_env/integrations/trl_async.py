"""For TRL's `AsyncGRPOTrainer`: a worker that keeps the engine at work while the trainer trains, and a way for the weights.

    trainer = AsyncGRPOTrainer(
        model=folder,
        args=AsyncGRPOConfig(..., temperature=1.0, token_budget=16_384),
        train_dataset=problem_dataset(problems, size, seed=0),
        rollout_worker=EngineRolloutWorker(engine, problems, n=16, ahead=1024),
        weight_transfer=PolicyWeightTransfer(engine.policy),
    )

The trainer is TRL's own, so `retool.json` is the script's to write: `CheckpointTask.of({"id": ..., ...}).save(folder)` after
`trainer.save_model(folder)`.

Of the data set only its size counts, the number of groups in an epoch. A `token_budget` must be set where no vLLM server can be
asked for one, and hold a prompt with its response. Without a `weight_transfer` of ours TRL moves the weights into the server
at its `vllm_server_base_url` by itself; a `VLLMServerPolicy` may sample there.
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
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

from retool_env.episode import Generation
from retool_env.problem import Problem, ProblemSource
from retool_env.rollout.engine import Group, RolloutEngine, run_blocking
from retool_env.rollout.policy import Policy, TextPolicy
from retool_env.servers.background import BackgroundLoop
from retool_env.transcript import Transcript


class EngineRolloutWorker:
    """TRL's `RolloutWorkerProtocol`, in a thread of its own: groups of rollouts, of problems drawn without end.

    Problems come in random order, each once before one comes again. A group's samples enter the queue together, in order,
    and are exactly its transcripts: ids, loss mask, the engine's log-probs. Their advantages are the environment's rewards
    less their group's mean, over its standard deviation, as TRL's own worker scales them. An episode that failed for reasons
    of the infrastructure is as if it had not been: it enters neither the queue nor its group's mean, and is counted. So
    are groups with fewer than two others, which have nothing to be compared with.

    A sample's version is that of the oldest weights that sampled any of its turns: the one that the trainer had announced
    when the turn began. Weights are announced when they are served, so a turn's may be newer, never older.

    The trainer logs, beside its own figures, `env/accuracy`, `env/code_ratio`, `env/calls_per_episode` and
    `env/call_pass_rate` of scored episodes, `env/failed_total`, `rollout/skipped_groups_total`, `rollout/in_flight` (episodes),
    and `rollout/weight_lag`, mean and maximum: versions between a sample's and the one announced when it was finished.

    Args:
        engine: Its policy must sample at top-p 1, from what the trainer's weights are moved into.
        problems: What is drawn from.
        n: Rollouts a problem, at least 2.
        ahead: Samples that are under way or wait for the trainer, at most. More than it trains on in `max_staleness` steps
            would be thrown away.
        seed: Of the problems' order and of all sampling.
        temperature: The trainer's.
        on_group: Called in the worker's thread with each group's number and its transcripts.

    Raises:
        ValueError: If a number is out of range, or the policy gives no token ids or samples otherwise than the loss assumes.
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
        _check_policy(engine.policy, temperature)
        if n < 2 or ahead < n:
            raise ValueError(
                f"a group has at least 2 rollouts, and ahead is a group at least, not {n} and {ahead}"
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
        self._heard = 0.0  # when something was last produced, in seconds of the monotonic clock
        self._failed = 0  # groups in a row, all episodes of each
        self._loop: BackgroundLoop | None = None
        self._production: Future[None] | None = None
        self._woken: Callable[[], object] | None = None

    def start(self) -> None:
        """Begin to produce.

        Raises:
            RuntimeError: If it has begun.
        """
        if self._loop is not None:
            raise RuntimeError("the rollout worker runs already")
        self._in_flight, self._failed, self._heard = 0, 0, time.monotonic()
        self._loop = BackgroundLoop("rollout-worker")
        self._production = self._loop.submit(self._produce())

    def stop(self) -> None:
        """Cancel what is under way, requests included, and end the thread. May be called again."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def update_model_version(self, model_version: int) -> None:
        """Note the weights that are served from here on. They are there already: nothing is loaded."""
        self._policy.weight_version = model_version
        self._heard = time.monotonic()  # while they were moved, too, nothing could be

    def check_health(self, stale_after_s: float) -> None:
        """Check that there will be samples.

        Raises:
            RuntimeError: If it does not run, has failed, or episodes are under way but in that many seconds no turn has
                ended; nor, once a group's episodes have all failed, any of a group that did not.
        """
        if self._loop is None or self._production is None:
            raise RuntimeError("the rollout worker does not run")
        if self._production.done():
            error = self._production.exception()
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise RuntimeError(f"the rollout worker has failed: {error}") from error
        silent = time.monotonic() - self._heard
        if self._in_flight and silent > stale_after_s:
            failed = (
                f"; the last {self._failed} groups failed, in the sandbox or the policy: `retool doctor` checks the one"
                if self._failed
                else ""
            )
            raise RuntimeError(
                f"the rollout worker has produced nothing in {silent:.0f} s, and {self._in_flight} episodes are under way{failed}"
            )

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
                    if for_trainer:  # meanwhile nothing could be produced
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
        scored = [t for t in group if t.scored]
        self._failed = 0 if scored else self._failed + 1
        self._turn_ended()
        samples = group_samples(scored, number) if len(scored) > 1 else []
        for sample in samples:
            sample.enqueued_at = time.time()
            self.rollout_buffer.put_nowait(sample)
        calls = [call for transcript in scored for call in transcript.calls]
        lags = [self._policy.weight_version - sample.model_version for sample in samples]
        figures: dict[str, float | tuple[float, float]] = {
            "env/accuracy": (sum(bool(t.correct) for t in scored), len(scored)),
            "env/code_ratio": (sum(bool(t.calls) for t in scored), len(scored)),
            "env/calls_per_episode": (len(calls), len(scored)),
            "env/failed_total": float(len(group) - len(scored)),
            "rollout/skipped_groups_total": float(not samples),
            "rollout/in_flight": float(self._in_flight),
            "rollout/weight_lag": (sum(lags), len(lags)),
        }
        if calls:
            figures["env/call_pass_rate"] = (sum(call.ok for call in calls), len(calls))
        if lags:
            figures["rollout/weight_lag_max"] = float(max(lags))
        self.metrics_queue.put_nowait(figures)

    def _turn_ended(self) -> None:
        # While all fail, turns that end are no sign that samples will come.
        if not self._failed:
            self._heard = time.monotonic()

    def _taken(self) -> None:
        """The trainer has taken a sample, in its thread."""
        if self._woken is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._woken()


class PolicyWeightTransfer:
    """TRL's `WeightTransferProtocol`: the trainer's weights go to a policy, as it takes them (`Policy.update_weights`).

    All of the model's weights must be trained: those that are frozen, TRL does not send.

    Args:
        policy: What takes them.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._version = 0

    def init_weight_transfer(self) -> None:
        """There is nothing to set up."""

    def pause(self) -> None:
        """The policy sees to it that no turn is sampled with weights that are being changed."""

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Wait until the policy serves these. They have the trainer's number: it counts its transfers from 1."""
        self._version += 1
        run_blocking(self._policy.update_weights(self._version, iterator))

    def resume(self) -> None:
        """The policy goes on by itself."""

    def destroy(self) -> None:
        """The policy belongs to whoever made it."""


def group_samples(group: Sequence[Transcript], group_id: int) -> list[RolloutSample]:
    """What TRL trains on of one problem's scored transcripts, in order.

    Args:
        group: At least one. One that the model wrote nothing of counts for the mean, and gives no sample.
        group_id: Says which samples belong together.

    Returns:
        Samples of ids, mask (1: sampled by the model) and log-probs (0.0 where the mask is 0), each of shape
        `(prompt + response,)`.
    """
    rewards = np.array([transcript.reward for transcript in group], dtype=np.float64)
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
    samples = []
    for transcript, reward, advantage in zip(group, rewards, advantages, strict=True):
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
                advantage=float(advantage),
                model_version=min(versions, default=0),
                group_id=group_id,
                metrics={"reward": float(reward), "reward_std": float(rewards.std())},
            )
        )
    return samples


class _AnnouncedPolicy:
    """A policy whose turns have the version that was last announced when they began, whatever it counts itself.

    Args:
        policy: What samples.
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
    """A queue that tells when something was taken from it."""

    def __init__(self, taken: Callable[[], None]) -> None:
        super().__init__()
        self._on_taken = taken

    def _get(self) -> RolloutSample:
        sample = super()._get()
        self._on_taken()
        return sample


def _check_policy(policy: Any, temperature: float) -> None:
    if isinstance(policy, TextPolicy):
        raise ValueError("a policy of text gives no token ids, so it can't be trained")
    if policy.top_p != 1.0:
        raise ValueError(
            "training needs top_p = 1: under a smaller one the log-probs are those of a cut distribution"
        )
    own = temperature if policy.temperature is None else policy.temperature
    if own != temperature or not temperature > 0:
        raise ValueError(
            f"the policy samples at temperature {own}, the loss takes it for {temperature}: both must be the same, above 0"
        )
