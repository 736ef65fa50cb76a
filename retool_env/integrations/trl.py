"""For TRL: rollouts for `GRPOTrainer`, and a trainer whose loss sees the engine's log-probs.

    trainer = EngineGRPOTrainer(
        model=model,
        reward_funcs=episode_reward,
        rollout_func=EngineRollouts(engine, problems),
        train_dataset=problem_dataset(problems),
        ...
    )

Rewards are the environment's; the loss mask is the transcript's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from trl import GRPOTrainer

from retool_env.metrics import summarise
from retool_env.problems import ProblemSource
from retool_env.rollout.engine import RolloutEngine, run_blocking
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
    import numpy as np
    from datasets import Dataset

    generator = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < size:
        order.extend(generator.permutation(len(problems)).tolist())
    return Dataset.from_dict({"prompt": [problems[i].id for i in order[:size]]})


class EngineRollouts:
    """A `rollout_func`: runs one episode a prompt with the engine.

    Args:
        engine: Its policy must sample from the model that is trained, at top-p 1.
        problems: Where the ids in the data set come from.
        seed: Of all sampling; the step's number is mixed in, so that a resumed run samples as one that never stopped.
        on_rollouts: Called with the step's number and its transcripts.

    Raises:
        ValueError: If the policy does not sample from the model's own distribution.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        problems: ProblemSource,
        seed: int = 0,
        on_rollouts: Callable[[int, list[Transcript]], None] | None = None,
    ) -> None:
        if getattr(engine.policy, "top_p", 1.0) != 1.0:
            raise ValueError(
                "training needs top_p = 1: under a smaller one the log-probs are those of a cut distribution, and the "
                "ratio to the trained model's is wrong"
            )
        self.engine = engine
        self.problems = problems
        self.seed = seed
        self.on_rollouts = on_rollouts

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """Run the episodes of one generation batch.

        Raises:
            ValueError: If the policy samples at another temperature than the loss assumes.
            RuntimeError: If the sandbox failed in every episode, so that there is nothing to learn from.
        """
        temperature = getattr(self.engine.policy, "temperature", trainer.temperature)
        if temperature != trainer.temperature or not temperature > 0:
            raise ValueError(
                f"the policy samples at temperature {temperature}, the loss takes it for {trainer.temperature}: both must be "
                "the same, and above 0"
            )
        step = trainer.state.global_step
        run_blocking(self.engine.policy.update_weights(step))
        problems = [self.problems.get(problem_id) for problem_id in prompts]
        seed = (self.seed, step, trainer.accelerator.process_index)
        transcripts = [group[0] for group in self.engine.run(problems, 1, seed)]
        if self.on_rollouts is not None:
            self.on_rollouts(step, transcripts)
        if all(t.stop_reason is StopReason.INFRASTRUCTURE for t in transcripts):
            raise RuntimeError(
                f"the sandbox failed in all {len(transcripts)} episodes of step {step}; `retool doctor` checks it, and the run "
                "can go on from its last checkpoint"
            )
        return training_rows(transcripts, trainer.eos_token_ids)


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
    """

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        sampled = output.get("sampling_per_token_logps")
        if sampled is None:
            raise ValueError("the rollouts carry no log-probs: use EngineRollouts as rollout_func")
        output["old_per_token_logps"] = sampled.to(dtype=torch.float32)
        return output
