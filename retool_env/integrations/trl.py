"""For TRL: rollouts for `GRPOTrainer`, and a trainer whose loss sees the engine's log-probs.

    trainer = EngineGRPOTrainer(
        model=model,
        reward_funcs=episode_reward,
        rollout_func=EngineRollouts(engine, problems),
        train_dataset=problem_dataset(problems, size, seed=0),
        ...
    )

Rewards are the environment's; the loss mask is the transcript's. All that is imported from here may be used from here:
`EngineRollouts` lies in `retool_env.integrations.rollouts`, `problem_dataset` and `training_rows` in `rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer

from retool_env.integrations.rollouts import EngineRollouts
from retool_env.integrations.rows import problem_dataset, training_rows
from retool_env.metrics import summarise
from retool_env.transcript import Transcript

__all__ = [
    "Advantages",
    "EngineGRPOTrainer",
    "EngineRollouts",
    "episode_reward",
    "problem_dataset",
    "training_rows",
]


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


Advantages = Callable[[torch.Tensor, int], torch.Tensor]
"""Advantages, shape `(N,)`, of rewards, shape `(N,)`, and the number of rollouts a problem, which stand side by side. The reward
of a failed episode is NaN: it gets 0, and the others what they had without it."""

_BY_ROWS = ("grpo", "dr_grpo", "luspo", "sapo")
"""TRL's losses that divide by the number of rows, whether there is anything to learn from them or not."""


class EngineGRPOTrainer(GRPOTrainer):
    """TRL's trainer, but the old log-probs of the loss are those that the engine sampled with.

    Stock TRL, unless it runs vLLM itself, takes the trained model's own log-probs for the old ones, so that an engine
    which differs from it (other arithmetic, older weights) goes uncorrected. Here the ratio of the clipped objective is
    the trained model's probability over the engine's.

    Each step logs how far the two are apart, over the tokens that the model sampled: `offpolicy/difference` and
    `offpolicy/difference_max`, the absolute difference of their log-probs; `offpolicy/kl`, of the engine from the
    trained model (the estimator k3 of Schulman, 2020); `offpolicy/weight`, the mean ratio, before it is clipped;
    and `offpolicy/effective_tokens`, the share of the tokens that so weighted ones are worth (Kish's effective sample size).

    A row without a token to train on (a failed episode; one that is masked as a whole) is as if absent from a loss that divides
    by the number of rows, too: policy and KL terms are scaled by the rows of the generation batch over those that train.

    Args:
        advantages: In place of TRL's; called with the rewards of all processes.

    Raises:
        ValueError: If a process's part of a generation batch is not made of whole groups.
    """

    def __init__(self, *args: Any, advantages: Advantages | None = None, **kwargs: Any) -> None:
        for each in (*args, *kwargs.values()):  # before TRL starts it
            if isinstance(each, GRPOConfig) and each.use_vllm:
                raise ValueError(
                    "use_vllm makes TRL start or ask a vLLM of its own, and correct a second time: leave it out, and give "
                    "EngineRollouts a VLLMPolicy or VLLMServerPolicy"
                )
        super().__init__(*args, **kwargs)
        self._check_groups()
        self.advantages = advantages
        self._rewards: torch.Tensor | None = None
        self._trained_logps: torch.Tensor | None = None
        self._distance: torch.Tensor | None = None

    def _check_groups(self) -> None:
        rows = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if rows % self.num_generations:
            raise ValueError(
                f"a process samples per_device_train_batch_size * steps_per_generation = {rows} rollouts at a time, which "
                f"groups of {self.num_generations} do not divide: a group must not be split"
            )
        rows = self.args.per_device_eval_batch_size
        if self.args.eval_strategy != "no" and rows % self.num_generations_eval:
            raise ValueError(
                f"per_device_eval_batch_size={rows} is not divided by groups of {self.num_generations_eval}: a group must "
                "not be split"
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        sampled = output.get("sampling_per_token_logps")
        if sampled is None:
            raise ValueError("the rollouts carry no log-probs: use EngineRollouts as rollout_func")
        output["old_per_token_logps"] = sampled.to(dtype=torch.float32)
        if self.advantages is not None:
            output["advantages"] = self._own_advantages(len(inputs))
        trained = (output["completion_mask"] * output["tool_mask"]).any(dim=1)
        rows = torch.stack([trained.sum(), trained.new_tensor(len(trained), dtype=torch.long)])
        kept, total = self.accelerator.reduce(rows, "sum")
        output["row_scale"] = total / kept.clamp(min=1)
        return output

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        each = super()._calculate_rewards(
            *args, **kwargs
        )  # of all processes, one column a function
        total = (each * self.reward_weights.to(each.device)).nansum(dim=1)
        self._rewards = total.masked_fill(each.isnan().all(dim=1), torch.nan)
        return each

    def _own_advantages(self, rows: int) -> torch.Tensor:
        group = self.num_generations if self.model.training else self.num_generations_eval
        advantages = self.advantages(self._rewards, group)
        logged = self._logs["advantages"]
        for _ in range(min(len(logged), len(advantages))):
            logged.pop()  # TRL's
        logged.extend(advantages.tolist())
        first = self.accelerator.process_index * rows
        return advantages[first : first + rows]

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._trained_logps = result[0].detach()
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._trained_logps = None
        beta = self.beta
        if self.loss_type in _BY_ROWS and "row_scale" in inputs:
            # Not the loss itself: the entropy bonus in it is a mean over tokens.
            inputs = {**inputs, "advantages": inputs["advantages"] * inputs["row_scale"]}
            self.beta = beta and beta * inputs["row_scale"].item()
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        if self.model.training and self._trained_logps is not None:
            self._log_distance(self._trained_logps, inputs)
        return loss

    @torch.no_grad()
    def _log_distance(self, trained: torch.Tensor, inputs: dict[str, Any]) -> None:
        mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        difference = (trained.float() - inputs["old_per_token_logps"])[mask]
        ratio = difference.exp()
        most = difference.abs().max() if difference.numel() else difference.new_zeros(())
        figures = [difference.abs(), ratio - 1 - difference, ratio, ratio.square(), mask.float()]
        own = torch.stack([most, *(each.sum() for each in figures)])
        if self._distance is not None:
            own[0] = own[0].maximum(self._distance[0])
            own[1:] += self._distance[1:]
        self._distance = own
        if not self.accelerator.sync_gradients:
            return  # more of this step's passes are to come
        self._distance = None
        everywhere = self.accelerator.gather(own[None])
        total, kl, weight, squares, tokens = everywhere[:, 1:].sum(0).tolist()
        metrics = self._metrics["train"]
        metrics["offpolicy/difference_max"].append(everywhere[:, 0].max().item())
        if tokens:
            metrics["offpolicy/difference"].append(total / tokens)
            metrics["offpolicy/kl"].append(kl / tokens)
            metrics["offpolicy/weight"].append(weight / tokens)
            metrics["offpolicy/effective_tokens"].append(weight**2 / squares / tokens)
