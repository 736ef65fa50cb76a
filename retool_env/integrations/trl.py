"""TRL's `GRPOTrainer` with the rollout engine's episodes, and its log-probs in the loss.

    trainer = EngineGRPOTrainer(
        model=model,
        reward_funcs=episode_reward,
        rollout_func=EngineRollouts(engine, problems),
        train_dataset=problem_dataset(problems, size, seed=0),
        ...
    )

The environment gives the rewards, the transcript gives the loss mask. Names of `__all__` that lie
in `retool_env.training` may also be imported from here.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from trl import GRPOConfig

from retool_env.checkpoint_task import CheckpointTask
from retool_env.errors import SettingsError
from retool_env.integrations.fused_head import skip_unwanted
from retool_env.integrations.passes import BY_ROWS
from retool_env.integrations.resumption import ResumableGRPOTrainer
from retool_env.integrations.rollouts import EngineRollouts, passes_a_batch
from retool_env.training.advantages import Advantages, Normalisation, at_own_tokens
from retool_env.training.correction import (
    LOG_RATIO_BOUND,
    Correction,
    importance_weights,
    weight_figures,
    weight_sums,
)
from retool_env.training.figures import Distance, episode_reward
from retool_env.training.processes import together
from retool_env.training.rollouts import Rollouts
from retool_env.training.rows import problem_dataset, training_rows
from retool_env.transcript import Transcript

logger = logging.getLogger(__name__)

__all__ = [
    "Advantages",
    "EngineGRPOTrainer",
    "EngineRollouts",
    "Normalisation",
    "episode_reward",
    "problem_dataset",
    "training_rows",
]


class EngineGRPOTrainer(ResumableGRPOTrainer):
    """TRL's trainer, with the engine's log-probs as the old log-probs of the loss.

    Unless it runs vLLM itself, TRL takes the trained model's log-probs as old log-probs. Then the
    mismatch of an engine with other arithmetic or older weights is not corrected. Here the ratio in
    the clipped objective is the trained model's probability over the engine's. Each step logs the
    distance between trained model and engine, see `Distance`.

    A row may have no token to train on: the episode failed, was cut by a deadline, or is masked as
    a whole. Such rows also don't count in a loss that divides by the number of rows: policy and KL
    terms are multiplied by the rows of the generation batch over the rows that train.

    The engine's log-probs take no forward pass, also where several steps share a generation batch.
    The passes of the model have no padding, and episodes may share a prompt's tokens (see
    `retool_env.training.packing`): loss and gradient equal TRL's up to rounding. TRL's padded rows
    are used for a model that lets packed episodes see each other, for images, and for a balancing
    loss of experts.

    Args:
        *args: Positional arguments of TRL's `GRPOTrainer`.
        advantages: The hook that makes the advantages, see `Advantages`; `None`: TRL's advantages.
            Advantages of tokens are used at the tokens that are trained on, and nowhere else.
        normalise: The hook that maps advantages of episodes to other advantages, of all processes;
            `None`: they stay as they are. It does not work with advantages of tokens.
        on_trained: Called with the number of the step that sampled a generation batch and with this
            process's transcripts of the batch, after the batch's last pass or when training ends.
            Trained transcripts have the log-probs of their first pass (`Span.trained_logprobs`).
        correction: `"ratio"`: the engine's log-probs are the old log-probs. Otherwise the trainer's
            log-probs before its updates are the old log-probs, and importance weights correct the
            engine's mismatch (see `importance_weights`); this takes another forward pass only where
            several optimizer steps share a generation batch. `weight_figures` lists the figures
            that are logged.
        correction_cap: The largest weight of a token, for `"token"`.
        correction_bounds: The smallest and the largest geometric mean of an episode's ratios that
            is kept, for `"geometric"`.
        packed: Whether padding is left out, if the model keeps packed episodes apart.
        shared_prompts: Whether a prompt is computed once for its episodes in a row, if the model
            can do this (full attention by `sdpa`).
        tokens: The budget of a forward and backward pass of one process, in tokens. TRL's micro
            batch then holds all episodes of a process in an optimizer step; they are exchanged and
            divided into passes, so that no process waits for another. Loss, gradient and figures
            equal one pass over all episodes. 0: a micro batch is a pass.
        task: The task that the model is trained on. The trainer writes it to `retool.json` beside
            each saved model, and evaluations read the protocol, the prompt and the budgets from
            there (see `CheckpointTask.of`). `None`: the rules of the `EngineRollouts` in
            `rollout_func`; `retool.json` then holds only protocol and prompt, without an id.
        **kwargs: Keyword arguments of TRL's `GRPOTrainer`.

    Raises:
        SettingsError: If a process's part of a generation batch is not made of whole groups, or
            `tokens` is set for a model of images or with a balancing loss of experts.
    """

    args: GRPOConfig
    num_generations: int
    num_generations_eval: int

    def __init__(
        self,
        *args: Any,
        advantages: Advantages | None = None,
        normalise: Normalisation | None = None,
        on_trained: Callable[[int, list[Transcript]], None] | None = None,
        correction: Correction = "ratio",
        correction_cap: float = 2.0,
        correction_bounds: tuple[float, float] = (0.99, 1.01),
        packed: bool = True,
        shared_prompts: bool = True,
        tokens: int = 0,
        task: CheckpointTask | None = None,
        **kwargs: Any,
    ) -> None:
        for value in (*args, *kwargs.values()):  # before TRL starts vLLM
            if isinstance(value, GRPOConfig) and value.use_vllm:
                raise SettingsError(
                    "use_vllm makes TRL start its own vLLM and correct the mismatch a second time: "
                    "leave it out, and give EngineRollouts a VLLMPolicy or VLLMServerPolicy"
                )
        super().__init__(*args, on_trained=on_trained, **kwargs)
        for head in (self.model, self.ref_model):
            if head is not None:
                skip_unwanted(head)
        if self.ref_model is not None:  # TRL loads it with transformers' default attention
            self.ref_model.set_attn_implementation(self.model.config._attn_implementation)
        self.check_groups()
        self.advantages = advantages
        self.normalise = normalise
        self._corrects = correction != "ratio"
        self._correction = correction, correction_cap, correction_bounds
        self.packs = None if packed and not self._is_vlm else False
        self.shares_prompts = shared_prompts
        self.tokens = tokens
        if tokens and (self._is_vlm or self.aux_loss_enabled):
            raise SettingsError(
                f"tokens={tokens} needs packed rows, which a model of images and a balancing loss "
                "of experts do not allow: leave tokens out"
            )
        self.task = task
        self._old_are_known = False
        self._rewards: torch.Tensor | None = None
        self._distance = Distance()
        self._weights: torch.Tensor | None = None  # the sums of the importance weights

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        task = self.task
        if task is None and isinstance(self.rollout_func, Rollouts):
            task = CheckpointTask.of_rules(self.rollout_func.engine.rules)
        folder = output_dir or self.args.output_dir
        if task is not None and folder is not None:
            task.save(folder)

    def check_groups(self) -> None:
        """Check that a process samples whole groups.

        Raises:
            SettingsError: If a process's part of a generation batch or evaluation batch splits a
                group.
        """
        steps = self.args.steps_per_generation
        assert steps is not None  # TRL has set it
        rows = self.args.per_device_train_batch_size * steps
        if rows % self.num_generations:
            raise SettingsError(
                f"per_device_train_batch_size * steps_per_generation = {rows}, the rollouts of a "
                f"process, must be a multiple of num_generations={self.num_generations}, so that "
                "no group is split"
            )
        rows = self.args.per_device_eval_batch_size
        if self.args.eval_strategy != "no" and rows % self.num_generations_eval:
            raise SettingsError(
                f"per_device_eval_batch_size={rows} must be a multiple of "
                f"num_generations_eval={self.num_generations_eval}, so that no group is split"
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # If the model changes while a batch is used, TRL computes the old log-probs, and then the
        # reference's.
        computes = self.args.gradient_accumulation_steps % passes_a_batch(self) != 0
        self._old_are_known = computes and not self._corrects
        output = super()._generate_and_score_completions(inputs)
        sampled = output.get("sampling_per_token_logps")
        if sampled is None:
            raise ValueError("the rollouts lack log-probs: use EngineRollouts as rollout_func")
        output["sampling_per_token_logps"] = sampled = sampled.to(dtype=torch.float32)
        if not self._corrects:
            output["old_per_token_logps"] = sampled
        mask = (output["completion_mask"] * output["tool_mask"]).bool()
        if self.advantages is not None:
            output["advantages"] = self.advantages_of(inputs, mask)
        trained = mask.any(dim=1)
        rows = torch.stack([trained.sum(), trained.new_tensor(len(trained), dtype=torch.long)])
        training, total = self.accelerator.reduce(rows, "sum")
        if self.loss_type in BY_ROWS:
            output["policy_scale"] = total / training.clamp(min=1)
        if self.model.training and computes and self._corrects:
            output["old_per_token_logps"] = self._kept_old(output["old_per_token_logps"], mask)
        return output

    def _kept_old(self, logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The log-probs before the updates; of a batch that goes on, the kept ones.

        Args:
            logps: The log-probs with the weights of now, shape `(B, C)`.
            mask: Whether a token of the completions is trained on, shape `(B, C)`.
        """
        rollouts, places = self.rollout_func, mask.cpu().numpy()
        if not isinstance(rollouts, Rollouts) or (kept := rollouts.kept) is None:
            return logps
        request = rollouts.request
        if not self.goes_on:
            values = logps.float().cpu().numpy()
            together(self.accelerator, lambda: kept.save_old(request, values, places))
            return logps
        known = together(self.accelerator, lambda: kept.load_old(request, places))
        return torch.from_numpy(known).to(logps)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        # Of all processes, one column a reward function.
        rewards = super()._calculate_rewards(*args, **kwargs)
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        self._rewards = total.masked_fill(rewards.isnan().all(dim=1), torch.nan)
        return rewards

    def advantages_of(self, inputs: list[dict[str, Any]], mask: torch.Tensor) -> torch.Tensor:
        """The hook's advantages of this process's rows, shape `(B,)` or `(B, C)`; logs the means.

        Args:
            inputs: The rows, with their transcripts.
            mask: Whether a token of the completions is trained on, shape `(B, C)`.
        """
        group = self.num_generations if self.model.training else self.num_generations_eval
        hook, more = self.advantages, {}
        assert hook is not None  # there are no advantages of TRL's to replace
        if "transcripts" in inspect.signature(hook).parameters:
            more["transcripts"] = gather_object([row["transcript"] for row in inputs])
        advantages = hook(self._rewards, group, **more).to(mask.device)
        tokens = mask.sum(dim=1)
        if self.normalise is not None:
            if advantages.dim() != 1:
                raise ValueError(
                    "normalise takes one advantage an episode, but the hook gives one a token: "
                    "leave normalise out"
                )
            advantages = self.normalise(advantages, self.accelerator.gather(tokens))
        first = self.accelerator.process_index * len(mask)
        part, shown = advantages[first : first + len(mask)], advantages
        if advantages.dim() == 2:
            part = at_own_tokens(part, mask)
            shown = self.accelerator.gather(part.sum(dim=1) / tokens.clamp(min=1))
        logged: Any = self._logs["advantages"]
        for _ in range(min(len(logged), len(shown))):
            logged.pop()  # TRL's advantages
        logged.extend(shown.tolist())
        return part

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> Any:
        if self._old_are_known:
            self._old_are_known = False
            unused = input_ids.new_zeros(len(input_ids), logits_to_keep, dtype=torch.float32)
            return unused, None, None
        batch = input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy
        plain = all(value is None or value is False for value in others.values())
        if plain and self.can_pack(model):
            result = self.packed_logps(model, *batch)
        else:
            result = super()._get_per_token_logps_and_entropies(model, *batch, **others)
        self._trained_logps = result[0].detach()
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._trained_logps = None
        beta = self.beta
        inputs = {**inputs}
        if "policy_scale" in inputs:
            # The loss itself is not scaled: the entropy bonus in it is a mean over tokens.
            inputs["advantages"] = inputs["advantages"] * inputs["policy_scale"]
            self.beta = beta and beta * inputs["policy_scale"].item()
        try:
            with self._prepared(inputs):
                loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        self._log_weights()
        if self.model.training and self._trained_logps is not None:
            mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
            self._distance.add(self._trained_logps, inputs["sampling_per_token_logps"], mask)
            if self.accelerator.sync_gradients:  # this is the step's last pass
                self._note(self._distance.figures(self.accelerator.gather))
            if not self.tokens:
                self.after_passes(inputs, self._trained_logps)
        return loss

    @contextmanager
    def _prepared(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Weigh the advantages by the correction, and keep TRL's loss and its gradient finite.

        TRL multiplies by the mask at the end, and an infinite KL of an interpreter token times 0 is
        NaN. So log-probs outside the mask become 0. Where the model sampled the token, the old and
        the reference's log-probs are clamped to within `LOG_RATIO_BOUND` of the trained model's; a
        clamped log-ratio is constant and has no gradient.

        Args:
            inputs: The inputs of TRL's loss. TRL computes the model's log-probs first, then reads
                the advantages and the log-probs of the old policy and of the reference from here.
        """
        mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        name = "_get_per_token_logps_and_entropies"
        original = getattr(self, name)

        def prepared(*args: Any, **kwargs: Any) -> Any:
            logps, entropies, auxiliary = original(*args, **kwargs)
            logps, entropies = logps.masked_fill(~mask, 0.0), entropies.masked_fill(~mask, 0.0)
            low, high = logps - LOG_RATIO_BOUND, logps + LOG_RATIO_BOUND
            # In the first pass after the rollouts these are the log-probs before the updates.
            old = inputs.get("old_per_token_logps", logps.detach()).masked_fill(~mask, 0.0)
            if self._corrects:
                self._weigh(inputs, old, mask)
            inputs["old_per_token_logps"] = old.clamp(low, high)
            if self.beta:
                reference = inputs["ref_per_token_logps"].masked_fill(~mask, 0.0)
                inputs["ref_per_token_logps"] = reference.clamp(max=high)
            return logps, entropies, auxiliary

        # TRL's loss calls the method for the model's log-probs, and then reads the inputs.
        setattr(self, name, prepared)
        try:
            yield
        finally:
            setattr(self, name, original)

    def _weigh(self, inputs: dict[str, Any], old: torch.Tensor, mask: torch.Tensor) -> None:
        """Weigh the advantages by the correction."""
        sampled = inputs["sampling_per_token_logps"]
        weights = importance_weights(old, sampled, mask, *self._correction)
        advantages = inputs["advantages"]
        rows = advantages if advantages.dim() == 2 else advantages[:, None]
        inputs["advantages"] = rows * weights
        sums = weight_sums(weights, mask)
        self._weights = sums if self._weights is None else self._weights + sums

    def _log_weights(self) -> None:
        """Log the importance weights of an optimizer step after its last pass."""
        if self._weights is None or not self.accelerator.sync_gradients:
            return
        sums, self._weights = self.accelerator.reduce(self._weights, "sum"), None
        self._note(weight_figures(sums))

    def _note(self, figures: dict[str, float]) -> None:
        """Log figures that are the same on every process."""
        for name, value in figures.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)
