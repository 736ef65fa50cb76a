"""For TRL: rollouts for `GRPOTrainer`, and a trainer whose loss sees the engine's log-probs.

    trainer = EngineGRPOTrainer(
        model=model,
        reward_funcs=episode_reward,
        rollout_func=EngineRollouts(engine, problems),
        train_dataset=problem_dataset(problems, size, seed=0),
        ...
    )

Rewards are the environment's; the loss mask is the transcript's. What `__all__` names may be used from here,
wherever in `retool_env.training` it lies.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel, TrainerCallback
from transformers.utils.generic import is_flash_attention_requested
from trl import GRPOConfig, GRPOTrainer

from retool_env.checkpoint_task import CheckpointTask
from retool_env.integrations.fused_head import skip_unwanted
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
from retool_env.training.packing import keeps_apart, pack, score
from retool_env.training.processes import together
from retool_env.training.rollouts import Rollouts
from retool_env.training.rows import problem_dataset, training_rows, with_trained_logprobs
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


_BY_ROWS = ("grpo", "dr_grpo", "luspo", "sapo")
"""TRL's losses that divide by the number of rows, whether there is anything to learn from them or not."""


class EngineGRPOTrainer(GRPOTrainer):
    """TRL's trainer, but the old log-probs of the loss are those that the engine sampled with.

    Stock TRL, unless it runs vLLM itself, takes the trained model's own log-probs for the old ones, so that an engine
    which differs from it (other arithmetic, older weights) goes uncorrected. Here the ratio of the clipped objective is
    the trained model's probability over the engine's.

    Each step logs how far the two are apart, over the tokens that the model sampled: see `Distance`.

    A row without a token to train on (a failed episode; one that a deadline cut; one that is masked as a whole) is as if absent from a loss that divides
    by the number of rows, too: policy and KL terms are scaled by the rows of the generation batch over those that train.

    No forward pass is made for what is known: the engine's log-probs are the old ones, also where several steps share a
    generation batch. Those that are made see no padding, and some prompts once for several episodes (see `packing.py`): the loss
    and its gradient are what they are with padding, but for rounding. A model that would let packed episodes see each other, and
    one with images or a balancing loss of its experts, is given padded rows, as in TRL.

    Args:
        advantages: In place of TRL's: see `Advantages`. One a token reaches the tokens that the model sampled
            and that are trained on, and no other.
        normalise: Called with these advantages, if they are one an episode, and with the number of tokens of each
            episode, of all processes.
        on_trained: Called with the number of the step that sampled it and this process's transcripts of a generation batch, once
            all of them have been through the model, or training ends before: those that were trained on with the log-probs of
            that pass (`Span.trained_logprobs`).
        correction: What the old log-probs are: the engine's (`"ratio"`), or the trainer's own, and what the engine's differ from
            these weighs the loss (see `importance_weights`). The trainer's own take a pass more only where several optimizer
            steps share a generation batch: a first step's are those that it computes anyway. The mean weight is logged as
            `correction/weight`, and the share of the tokens that so weighted ones are worth as `correction/effective_tokens`.
        correction_cap: The largest weight of a token (`"token"`).
        correction_bounds: The geometric means of an episode's ratios that are kept (`"geometric"`); the share of the episodes
            outside of them is logged as `correction/rejected`.
        packed: Leave out the padding where the model can do without.
        task: What the model is trained on. `retool.json` says so beside each model that the trainer saves, so that an evaluation
            finds the protocol, the prompt and the budgets there (see `CheckpointTask.of`). By default what the rules of
            `rollout_func` say, if that is `EngineRollouts`: their environment has no id then, and only protocol and prompt are
            taken from there.
        shared_prompts: Compute a prompt once for those of its episodes that fit into one row, where the model can (full attention,
            by `sdpa`).

    Raises:
        ValueError: If a process's part of a generation batch is not made of whole groups.
    """

    args: GRPOConfig
    model: PreTrainedModel
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
        task: CheckpointTask | None = None,
        **kwargs: Any,
    ) -> None:
        for each in (*args, *kwargs.values()):  # before TRL starts it
            if isinstance(each, GRPOConfig) and each.use_vllm:
                raise ValueError(
                    "use_vllm makes TRL start or ask a vLLM of its own, and correct a second time: leave it out, and give "
                    "EngineRollouts a VLLMPolicy or VLLMServerPolicy"
                )
        super().__init__(*args, **kwargs)
        for each in (self.model, self.ref_model):
            if each is not None:
                skip_unwanted(each)
        self.add_callback(_AtTheEnd(self))
        self.check_groups()
        self.advantages = advantages
        self.normalise = normalise
        self.on_trained = on_trained
        self._correction: Correction = correction
        self._correction_cap = correction_cap
        self._correction_bounds = correction_bounds
        self._untrained: list[Transcript] = []
        self._sampled_at = 0
        self._logps_of: dict[int, list[float] | None] = {}  # None: no token to train on
        self._packs: bool | None = None if packed and not self._is_vlm else False  # not tried yet
        self._shares = shared_prompts
        self.task = task
        self._old_are_known = False
        self._rewards: torch.Tensor | None = None
        self._trained_logps: torch.Tensor | None = None
        self._distance = Distance()
        self._weights: torch.Tensor | None = None  # sums of the correction's

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
            ValueError: If its part of a generation batch, or of a batch of evaluation, splits one.
        """
        steps = self.args.steps_per_generation
        assert steps is not None  # TRL has set it
        rows = self.args.per_device_train_batch_size * steps
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
        # TRL computes the old log-probs, before those of the reference, where the model will have moved from them.
        passes = passes_a_batch(self)
        computes = self.args.gradient_accumulation_steps % passes != 0
        self._old_are_known = computes and self._correction == "ratio"
        output = super()._generate_and_score_completions(inputs)
        sampled = output.get("sampling_per_token_logps")
        if sampled is None:
            raise ValueError("the rollouts carry no log-probs: use EngineRollouts as rollout_func")
        output["sampling_per_token_logps"] = sampled = sampled.to(dtype=torch.float32)
        if self._correction == "ratio":
            output["old_per_token_logps"] = sampled
        mask = (output["completion_mask"] * output["tool_mask"]).bool()
        if self.advantages is not None:
            output["advantages"] = self._own_advantages(self.advantages, inputs, mask)
        trained = mask.any(dim=1)
        rows = torch.stack([trained.sum(), trained.new_tensor(len(trained), dtype=torch.long)])
        kept, total = self.accelerator.reduce(rows, "sum")
        output["row_scale"] = total / kept.clamp(min=1)
        if self.model.training and self.on_trained is not None:
            output["row"] = torch.arange(len(inputs), device=trained.device)  # they are shuffled
            self._untrained, self._logps_of = [row["transcript"] for row in inputs], {}
            self._sampled_at = self.state.global_step
        return output

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        each = super()._calculate_rewards(
            *args, **kwargs
        )  # of all processes, one column a function
        total = (each * self.reward_weights.to(each.device)).nansum(dim=1)
        self._rewards = total.masked_fill(each.isnan().all(dim=1), torch.nan)
        return each

    def _own_advantages(
        self, hook: Advantages, inputs: list[dict[str, Any]], mask: torch.Tensor
    ) -> torch.Tensor:
        """This process's advantages, shape `(B,)` or `(B, C)`. An episode's mean is logged, of all processes."""
        group = self.num_generations if self.model.training else self.num_generations_eval
        more = {}
        if "transcripts" in inspect.signature(hook).parameters:
            more["transcripts"] = gather_object([row["transcript"] for row in inputs])
        advantages = hook(self._rewards, group, **more).to(mask.device)
        tokens = mask.sum(dim=1)
        if advantages.dim() == 1 and self.normalise is not None:
            advantages = self.normalise(advantages, self.accelerator.gather(tokens))
        elif self.normalise is not None:
            raise ValueError("normalise takes one advantage an episode, and here is one a token")
        first = self.accelerator.process_index * len(mask)
        own, shown = advantages[first : first + len(mask)], advantages
        if advantages.dim() == 2:
            own = at_own_tokens(own, mask)
            shown = self.accelerator.gather(own.sum(dim=1) / tokens.clamp(min=1))
        logged: Any = self._logs["advantages"]
        for _ in range(min(len(logged), len(shown))):
            logged.pop()  # TRL's
        logged.extend(shown.tolist())
        return own

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
            return (
                input_ids.new_zeros(len(input_ids), logits_to_keep, dtype=torch.float32),
                None,
                None,
            )
        batch = input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy
        if all(each is None or each is False for each in others.values()) and self._can_pack(model):
            result = self._packed_logps(model, *batch)
        else:
            result = super()._get_per_token_logps_and_entropies(model, *batch, **others)
        self._trained_logps = result[0].detach()
        return result

    def _can_pack(self, model: Any) -> bool:
        if self._packs is None:
            plain, device = self.accelerator.unwrap_model(self.model), self.accelerator.device
            with self.accelerator.autocast():
                self._packs = keeps_apart(model, plain, device, shared=False)
                self._shares &= self._packs and keeps_apart(model, plain, device, shared=True)
            if not self._packs:
                logger.warning(
                    "%s lets episodes in one row see each other, so it is given padded ones, which takes longer",
                    type(plain).__name__,
                )
        return self._packs

    def _packed_logps(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        completion: int,
        batch_size: int | None,
        with_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        one_row = is_flash_attention_requested(self.model.config.get_text_config())
        logps, entropies = [], []
        size = batch_size or len(input_ids)
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            scored = mask.clone()
            scored[:, :-completion] = 0
            packed = pack(ids, mask, scored, one_row, self._shares)
            with self.accelerator.autocast():
                found = score(model, packed)
            logps.append(packed.unpacked(found.log_probs)[:, -completion:])
            if with_entropy:
                entropies.append(packed.unpacked(found.entropy)[:, -completion:])
        return torch.cat(logps), torch.cat(entropies) if with_entropy else None, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._trained_logps = None
        beta = self.beta
        inputs = {**inputs}
        if self.loss_type in _BY_ROWS and "row_scale" in inputs:
            # Not the loss itself: the entropy bonus in it is a mean over tokens.
            inputs["advantages"] = inputs["advantages"] * inputs["row_scale"]
            self.beta = beta and beta * inputs["row_scale"].item()
        try:
            with self._prepared(inputs):
                loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        self._log_weights()
        if self.model.training and self._trained_logps is not None:
            mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
            self._distance.add(self._trained_logps, inputs["sampling_per_token_logps"], mask)
            if self.accelerator.sync_gradients:  # else more of this step's passes are to come
                self._note(self._distance.figures(self.accelerator.gather))
            if self.on_trained is not None and self._untrained:
                self._keep_logps(self._trained_logps, inputs)
        return loss

    @contextmanager
    def _prepared(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Weigh the advantages by the correction, and keep TRL's loss and its gradient finite.

        TRL multiplies by the mask at the end, and an infinite KL of an interpreter token times 0 is not a number. So log-probs
        outside the mask become 0. Where the model sampled the token, the old and the reference's log-probs are clamped to
        within `LOG_RATIO_BOUND` of the trained model's; a clamped log-ratio is constant and has no gradient.

        Args:
            inputs: What TRL's loss is given. TRL reads the advantages, the old log-probs and the reference's from it once it has
                the model's.
        """
        mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        original = self._get_per_token_logps_and_entropies

        def prepared(*args: Any, **kwargs: Any) -> Any:
            logps, entropies, auxiliary = original(*args, **kwargs)
            logps, entropies = (each.masked_fill(~mask, 0.0) for each in (logps, entropies))
            low, high = logps - LOG_RATIO_BOUND, logps + LOG_RATIO_BOUND
            # In the first pass after the rollouts the trainer's log-probs before its updates are these.
            old = inputs.get("old_per_token_logps", logps.detach()).masked_fill(~mask, 0.0)
            if self._correction != "ratio":
                self._weigh(inputs, old, mask)
            inputs["old_per_token_logps"] = old.clamp(low, high)
            if self.beta:
                reference = inputs["ref_per_token_logps"].masked_fill(~mask, 0.0)
                inputs["ref_per_token_logps"] = reference.clamp(max=high)
            return logps, entropies, auxiliary

        # TRL's loss calls the method for the model's log-probs, and then reads the inputs.
        self._get_per_token_logps_and_entropies = prepared  # type: ignore[method-assign]  # for one pass
        try:
            yield
        finally:
            self._get_per_token_logps_and_entropies = original  # type: ignore[method-assign]  # as it was

    def _weigh(self, inputs: dict[str, Any], old: torch.Tensor, mask: torch.Tensor) -> None:
        """Weigh the advantages by the correction."""
        sampled = inputs["sampling_per_token_logps"]
        weights = importance_weights(
            old, sampled, mask, self._correction, self._correction_cap, self._correction_bounds
        )
        advantages = inputs["advantages"]
        inputs["advantages"] = (
            advantages if advantages.dim() == 2 else advantages[:, None]
        ) * weights
        sums = weight_sums(weights, mask)
        self._weights = sums if self._weights is None else self._weights + sums

    def _log_weights(self) -> None:
        """Log the weights of an optimizer step once all of its passes were made."""
        if self._weights is None or not self.accelerator.sync_gradients:
            return
        sums, self._weights = self.accelerator.reduce(self._weights, "sum"), None
        self._note(weight_figures(sums))

    def _note(self, figures: dict[str, float]) -> None:
        """Log figures that are the same on every process."""
        for name, value in figures.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)

    def _keep_logps(self, trained: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Hand the transcripts over once all of them were trained on: on all processes in the same pass."""
        own = (inputs["completion_mask"] * inputs["tool_mask"]).any(dim=1).tolist()
        rows = inputs["row"].tolist()
        self._logps_of |= {
            row: logps if has else None
            for row, logps, has in zip(rows, trained.tolist(), own, strict=True)
        }
        if len(self._logps_of) == len(self._untrained):
            self._hand_over()

    def _hand_over(self) -> None:
        """Hand over what has not been, with the log-probs that there are. All processes call it."""
        if not self._untrained or self.on_trained is None:
            return
        transcripts = []
        for row, transcript in enumerate(self._untrained):
            logps = self._logps_of.get(row)
            transcripts.append(
                transcript if logps is None else with_trained_logprobs(transcript, logps)
            )
        self._untrained, self._logps_of = [], {}
        record = self.on_trained
        together(self.accelerator, lambda: record(self._sampled_at, transcripts))


class _AtTheEnd(TrainerCallback):
    """Has the trainer hand over the transcripts of a generation batch that it was not through with when it ended."""

    def __init__(self, trainer: EngineGRPOTrainer) -> None:
        self._trainer = trainer

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer, on all processes."""
        self._trainer._hand_over()
