"""For TRL: rollouts for `GRPOTrainer`, and a trainer whose loss sees the engine's log-probs.

    trainer = EngineGRPOTrainer(
        model=model,
        reward_funcs=episode_reward,
        rollout_func=EngineRollouts(engine, problems),
        train_dataset=problem_dataset(problems),
        ...
    )

Rewards are the environment's; the loss mask is the transcript's. On several processes each has an engine of its own and
runs the groups that are its part of the batch, however long each takes; what concerns all (an error, nothing to learn from,
another round of rollouts) they decide together, so that none waits for one that has gone another way.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from trl import GRPOTrainer

from retool_env.integrations.weights import is_sharded, trained_weights
from retool_env.metrics import summarise
from retool_env.problems import Problem, ProblemSource
from retool_env.rollout.background import BackgroundLoop
from retool_env.rollout.engine import Group, RolloutEngine
from retool_env.transcript import StopReason, Transcript


def training_rows(
    transcripts: Sequence[Transcript], eos_token_ids: Sequence[int]
) -> dict[str, list[Any]]:
    """The rows that a `rollout_func` returns, one a transcript, in order.

    An episode that ended by its own rules ends in an end-of-sequence token: the one that the model sampled, or else
    one with mask 0, so that TRL counts as truncated what the environment does. An infrastructure failure becomes one
    masked token: with a reward of `None` it enters neither its group's mean nor any gradient. (Losses that divide by the
    number of rows, `grpo` and `dr_grpo`, still count it there.)

    Args:
        transcripts: Finished episodes.
        eos_token_ids: Every token that ends a sequence; the first is the one appended.

    Returns:
        `prompt_ids`, `completion_ids`, `logprobs` (0.0 where the mask is 0), `env_mask` (1: sampled by the model) and
        `transcript`, each of `len(transcripts)` entries.
    """
    rows: dict[str, list[Any]] = {
        key: [] for key in ("prompt_ids", "completion_ids", "logprobs", "env_mask", "transcript")
    }
    for transcript in transcripts:
        ids, mask, logprobs = transcript.completion_ids, transcript.loss_mask, transcript.logprobs
        if transcript.stop_reason is StopReason.INFRASTRUCTURE:
            ids, mask, logprobs = [], [], []
        ended = transcript.stop_reason is not None and transcript.stop_reason.terminated
        if not ids or (ended and ids[-1] not in eos_token_ids):
            ids, mask, logprobs = [*ids, eos_token_ids[0]], [*mask, 0], [*logprobs, 0.0]
        rows["prompt_ids"].append(transcript.prompt_ids)
        rows["completion_ids"].append(ids)
        rows["logprobs"].append(logprobs)
        rows["env_mask"].append(mask)
        rows["transcript"].append(transcript)
    return rows


def problem_dataset(problems: ProblemSource, size: int, seed: int) -> Any:
    """A data set of `size` problems, drawn in random order without repeats until all have been drawn.

    Its one column, `prompt`, holds the problem's id: the prompt itself is rendered by the environment.
    """
    from datasets import Dataset

    generator = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < size:
        order.extend(generator.permutation(len(problems)).tolist())
    return Dataset.from_dict({"prompt": [problems[i].id for i in order[:size]]})


@dataclasses.dataclass(frozen=True)
class _Batch:
    """One process's part of a generation batch."""

    number: int
    """Of the batch, counted from the run's beginning."""
    prompts: list[str]
    """Ids of the problems, each as often as it has rollouts."""
    n: int
    """Rollouts a problem."""
    seed: tuple[int, ...]


class EngineRollouts:
    """A `rollout_func`: runs one group of episodes a problem with the engine.

    Each step logs what TRL does not: `rollout/seconds` from a batch's first prompt to its last end, `rollout/waited` of
    these that the trainer stood still, `rollout/tool_seconds` summed over episodes, `rollout/weight_lag` (optimizer
    steps between the weights that sampled a turn and those that are trained on it, mean and maximum), and episodes `cut`,
    `dropped`, `retried`, groups `resampled`.

    Args:
        engine: Its policy must sample at top-p 1, from the model that is trained or one that takes its weights.
        problems: Where the ids in the data set come from.
        seed: Of all sampling; the step's number is mixed in, so that a resumed run samples as one that never stopped.
        on_rollouts: Called with the step's number and its transcripts.
        staleness: Generation batches that are sampled ahead while the trainer trains. What is trained on is that many
            steps old at most. Needs a policy whose weights are not the trained model's own tensors, and a data set in
            its own order (`shuffle_dataset=False`). After a resumption the first batch is sampled with the newest weights.
        deadline: Seconds after which a batch's episodes are cut; see `RolloutEngine.groups`.
        oversample: Rollouts begun for each that is kept; see `RolloutEngine.groups`.
        resample: Rounds at most in which groups from which nothing can be learned, since all rewards are equal or all
            episodes failed, are replaced by those of other problems (dynamic sampling, DAPO, arXiv 2503.14476, section
            3.2). A round is run as long as there is such a group in any process.

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
    ) -> None:
        if getattr(engine.policy, "top_p", 1.0) != 1.0:
            raise ValueError(
                "training needs top_p = 1: under a smaller one the log-probs are those of a cut distribution, and the "
                "ratio to the trained model's is wrong"
            )
        if staleness < 0 or resample < 0:
            raise ValueError(
                f"staleness and resample must not be negative: {staleness}, {resample}"
            )
        if staleness and getattr(engine.policy, "sleep_mode", False):
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
        self._loop = BackgroundLoop("rollouts")
        self._ahead: dict[int, tuple[_Batch, Future[tuple[list[Group], float]]]] = {}
        self._step, self._round, self._synced = -1, 0, -1
        # An engine that shares its GPU with the trainer has it while it samples, and sleeps while that trains.
        self._sleeps = getattr(engine.policy, "sleep_mode", False)
        self._asleep = False
        self._counted = dataclasses.replace(engine.progress)

    def close(self) -> None:
        """Cancel what is sampled ahead. May be called again."""
        self._loop.close()
        self._ahead.clear()

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """Run the episodes of one generation batch; on several processes, called by all.

        Raises:
            ValueError: If the policy samples at another temperature than the loss assumes, the prompts are no whole groups,
                or the trainer does not allow for the staleness.
            RuntimeError: If every episode of every process failed, so that there is nothing to learn from, or another
                process has an error.
        """
        began = time.monotonic()
        step = trainer.state.global_step
        _together(trainer, lambda: self._check(trainer))
        batch = self._batch(prompts, trainer)
        if self._asleep:
            self._loop.run_blocking(self.engine.policy.wake_up())
            self._asleep = False
        if batch.number not in self._ahead:
            self._sync(trainer, step)
        groups, seconds = _together(trainer, lambda: self._take(batch))
        waited = time.monotonic() - began
        if self.staleness and trainer.model.training:
            self._sync(trainer, step)
            _together(trainer, lambda: self._start_ahead(batch.number, trainer))
        groups, resampled = self._resampled(trainer, batch, groups)
        if self._sleeps:
            self._loop.run_blocking(self.engine.policy.sleep())
            self._asleep = True
        transcripts = [
            dataclasses.replace(transcript, trained_version=step)
            for group in groups
            for transcript in group
        ]
        if self.on_rollouts is not None:
            self.on_rollouts(step, transcripts)
        lags = [
            step - span.weight_version
            for transcript in transcripts
            for span in transcript.spans
            if span.weight_version is not None
        ]
        scored = sum(map(_scored, transcripts))
        everywhere = _gathered(trainer, scored, max(lags, default=0))
        if not sum(each for each, _ in everywhere):
            raise RuntimeError(
                f"all {len(transcripts)} episodes of step {step} failed, in the sandbox or the policy; `retool doctor` checks "
                "the one, and the run can go on from its last checkpoint"
            )
        figures = {"seconds": seconds, "waited": waited, "resampled": float(resampled)}
        if lags:
            figures["weight_lag"] = sum(lags) / len(lags)
            figures["weight_lag_max"] = max(lag for _, lag in everywhere)
        self._log(trainer, figures)
        return training_rows(transcripts, trainer.eos_token_ids)

    def _check(self, trainer: GRPOTrainer) -> None:
        policy = self.engine.policy
        temperature = getattr(policy, "temperature", trainer.temperature)
        if temperature != trainer.temperature or not temperature > 0:
            raise ValueError(
                f"the policy samples at temperature {temperature}, the loss takes it for {trainer.temperature}: both must be "
                "the same, and above 0"
            )
        if getattr(policy, "model", None) is trainer.model:
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

    def _batch(self, prompts: list[str], trainer: GRPOTrainer) -> _Batch:
        step, training = trainer.state.global_step, trainer.model.training
        n = trainer.num_generations if training else trainer.num_generations_eval
        if any(len(set(prompts[i : i + n])) != 1 for i in range(0, len(prompts), n)):
            raise ValueError(f"the prompts are no groups of {n} equal ones: {prompts[: n + 1]} ...")
        seed = (self.seed, step, trainer.accelerator.process_index)
        if not training:
            return _Batch(-1, prompts, n, (*seed, 0, 1))
        self._round = self._round + 1 if step == self._step else 0
        self._step = step
        every = trainer.args.steps_per_generation * trainer.num_iterations
        taken = step * trainer.args.gradient_accumulation_steps + self._round * every
        more = (self._round,) if self._round else ()
        return _Batch(taken // every, prompts, n, (*seed, *more))

    def _coming(self, number: int, trainer: GRPOTrainer) -> _Batch | None:
        """A batch that the trainer will ask for, as far as it will."""
        arguments, n = trainer.args, trainer.num_generations
        every = arguments.steps_per_generation * trainer.num_iterations
        step, beyond = divmod(number * every, arguments.gradient_accumulation_steps)
        if step >= trainer.state.max_steps:
            return None
        size = arguments.generation_batch_size // n
        first = number % (len(trainer.train_dataset) // size) * size
        ids = trainer.train_dataset[first : first + size]["prompt"]
        rank, rows = (
            trainer.accelerator.process_index,
            len(ids) * n // trainer.accelerator.num_processes,
        )
        own = [each for each in ids for _ in range(n)][rank * rows : (rank + 1) * rows]
        more = (beyond // every,) if beyond else ()
        return _Batch(number, own, n, (self.seed, step, rank, *more))

    def _start(self, batch: _Batch) -> Future[tuple[list[Group], float]]:
        problems = [self.problems.get(each) for each in batch.prompts[:: batch.n]]
        return self._loop.submit(self._run(problems, batch.n, batch.seed))

    def _take(self, batch: _Batch) -> tuple[list[Group], float]:
        """A batch's groups, and the seconds from its first prompt to its last end."""
        asked, future = self._ahead.pop(batch.number, None) or (batch, self._start(batch))
        if asked.prompts != batch.prompts:
            raise ValueError(
                "the trainer asks for other problems than those that were sampled ahead: set shuffle_dataset=False, or "
                "staleness=0"
            )
        return future.result()

    def _start_ahead(self, number: int, trainer: GRPOTrainer) -> None:
        for coming in range(number + 1, number + 1 + self.staleness):
            if coming not in self._ahead and (batch := self._coming(coming, trainer)):
                self._ahead[coming] = batch, self._start(batch)

    async def _run(
        self, problems: Sequence[Problem], n: int, seed: Sequence[int]
    ) -> tuple[list[Group], float]:
        began = time.monotonic()
        groups: list[Group] = [[] for _ in problems]
        async for index, group in self.engine.groups(
            problems, n, seed, self.deadline, self.oversample
        ):
            groups[index] = group
        return groups, time.monotonic() - began

    def _resampled(
        self, trainer: GRPOTrainer, batch: _Batch, groups: list[Group]
    ) -> tuple[list[Group], int]:
        """The groups, those that teach nothing replaced as far as may be, and how many were tried."""
        tried = 0
        for turn in range(self.resample):
            dull = [index for index, group in enumerate(groups) if not _teaches(group)]
            if not sum(count for (count,) in _gathered(trainer, len(dull))):
                break
            chance = np.random.default_rng((*batch.seed, turn))
            chosen = chance.integers(len(self.problems), size=len(dull))
            problems = [self.problems[int(index)] for index in chosen]
            # Longer than any other batch's seed, so that it is none of them.
            work = self._run(problems, batch.n, (*batch.seed, turn, 0, 0))
            fresh, _ = _together(trainer, lambda work=work: self._loop.submit(work).result())
            tried += len(dull)
            for index, group in zip(dull, fresh, strict=True):
                if _teaches(group) or not any(map(_scored, groups[index])):
                    groups[index] = group
        return groups, tried

    def _sync(self, trainer: GRPOTrainer, step: int) -> None:
        """Let every process's policy sample from the weights of a step."""
        if step == self._synced:
            return
        policy, main = self.engine.policy, trainer.accelerator.is_main_process
        shared = hasattr(policy, "follow") and trainer.accelerator.num_processes > 1
        _together(trainer, lambda: self._load(trainer, step, leads=main or not shared))
        if shared:
            _together(trainer, lambda: main or self._loop.run_blocking(policy.follow(step)))
        self._synced = step

    def _load(self, trainer: GRPOTrainer, step: int, leads: bool) -> None:
        policy = self.engine.policy
        if getattr(policy, "model", None) is trainer.model:
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

    def _log(self, trainer: GRPOTrainer, figures: dict[str, float]) -> None:
        now, before = self.engine.progress, self._counted
        self._counted = dataclasses.replace(now)
        for name in ("tool_seconds", "cut", "dropped", "retried"):
            figures[name] = float(getattr(now, name) - getattr(before, name))
        for name, value in figures.items():
            trainer._log_metric(f"rollout/{name}", value)


def _together[T](trainer: GRPOTrainer, work: Callable[[], T]) -> T:
    """Do something on every process. An error on one is one on all, so that none waits for it.

    Raises:
        RuntimeError: If another process has an error.
    """
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    failed = [rank for rank, (flag,) in enumerate(_gathered(trainer, error is not None)) if flag]
    if error is not None:
        raise error
    if failed:
        raise RuntimeError(f"the rollouts of process {failed[0]} failed; it says why")
    return result


def _gathered(trainer: GRPOTrainer, *numbers: float) -> list[list[float]]:
    """Every process's numbers, by its rank. All must call it."""
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return [list(map(float, numbers))]
    own = torch.tensor([numbers], dtype=torch.float32, device=accelerator.device)
    return accelerator.gather(own).tolist()


def _scored(transcript: Transcript) -> bool:
    return transcript.reward is not None


def _teaches(group: Group) -> bool:
    """Whether a group's episodes have different rewards, so that some have an advantage."""
    return len({transcript.reward for transcript in group if _scored(transcript)}) > 1


def episode_reward(
    transcript: Sequence[Transcript],
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """A reward function: what the environment gave. `None`, which TRL leaves out, after an infrastructure failure."""
    if log_metric is not None:
        summary = summarise(transcript)
        figures = {
            "accuracy": summary.accuracy.mean if summary.accuracy else None,
            "code_ratio": summary.code_ratio,
            "calls_per_episode": summary.calls_per_episode,
            "call_pass_rate": summary.call_pass_rate,
            "failed_episodes": float(summary.failed),
        }
        for name, value in figures.items():
            if value is not None:
                log_metric(f"env/{name}", value)
    return [t.reward for t in transcript]


class EngineGRPOTrainer(GRPOTrainer):
    """TRL's trainer, but the old log-probs of the loss are those that the engine sampled with.

    Stock TRL, unless it runs vLLM itself, takes the trained model's own log-probs for the old ones, so that an engine
    which differs from it (other arithmetic, older weights) goes uncorrected. Here the ratio of the clipped objective is
    the trained model's probability over the engine's.

    Each step logs how far the two are apart, over the tokens that the model sampled: `offpolicy/difference` and
    `offpolicy/difference_max`, the absolute difference of their log-probs; `offpolicy/kl`, of the engine from the
    trained model (the estimator k3 of Schulman, 2020); `offpolicy/weight`, the mean ratio, before it is clipped;
    and `offpolicy/effective_tokens`, the share of the tokens that so weighted ones are worth (Kish's effective sample size).

    Raises:
        ValueError: If a process's part of a generation batch is not made of whole groups.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check_groups()
        self._trained_logps: torch.Tensor | None = None

    def _check_groups(self) -> None:
        rows = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if rows % self.num_generations:
            raise ValueError(
                f"a process samples per_device_train_batch_size * steps_per_generation = {rows} rollouts at a time, which "
                f"groups of {self.num_generations} do not divide: a group must not be split"
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        sampled = output.get("sampling_per_token_logps")
        if sampled is None:
            raise ValueError("the rollouts carry no log-probs: use EngineRollouts as rollout_func")
        output["old_per_token_logps"] = sampled.to(dtype=torch.float32)
        return output

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._trained_logps = result[0].detach()
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._trained_logps = None
        loss = super()._compute_loss(model, inputs)
        if self.model.training and self._trained_logps is not None:
            self._log_distance(self._trained_logps, inputs)
        return loss

    @torch.no_grad()
    def _log_distance(self, trained: torch.Tensor, inputs: dict[str, Any]) -> None:
        mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        difference = (trained.float() - inputs["old_per_token_logps"])[mask]
        ratio = difference.exp()
        sums = torch.stack(
            [
                difference.abs().sum(),
                (ratio - 1 - difference).sum(),
                ratio.sum(),
                ratio.square().sum(),
                mask.sum().float(),
            ]
        )
        most = difference.abs().max() if difference.numel() else difference.new_zeros(())
        total, kl, weight, squares, tokens = self.accelerator.reduce(sums, "sum").tolist()
        metrics = self._metrics["train"]
        metrics["offpolicy/difference_max"].append(self.accelerator.gather(most).max().item())
        if tokens:
            metrics["offpolicy/difference"].append(total / tokens)
            metrics["offpolicy/kl"].append(kl / tokens)
            metrics["offpolicy/weight"].append(weight / tokens)
            metrics["offpolicy/effective_tokens"].append(weight**2 / squares / tokens)
