"""Passes of TRL's `GRPOTrainer` without padding, and with a budget of tokens in place of episodes.

With a budget, TRL sees one micro batch an optimizer step. Its episodes are planned and exchanged
over all processes (see `retool_env.training.exchange`). TRL's loss runs once a pass, and each term
is weighed so that the sum over passes and processes is the loss of all episodes in one batch.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested
from trl import GRPOConfig, GRPOTrainer

from retool_env.errors import SettingsError
from retool_env.training.exchange import Column, Exchange, one_pass
from retool_env.training.packing import keeps_apart, pack, score

logger = logging.getLogger(__name__)

BY_ROWS = ("grpo", "dr_grpo", "luspo", "sapo")
"""TRL's losses that divide by the number of all rows, with or without a token to train on."""
_BY_TOKENS = ("bnpo",)
"""TRL's losses that divide by the tokens of a pass. The others divide by the batch's tokens."""

_LEFT_OUT = ("policy_loss", "vespo/phi_seq_mean")
"""Figures that can't be joined: their weights differ among processes, or they count the rows that
fill a pass. `policy_loss` is computed from the joined loss and entropy instead."""


class PackedGRPOTrainer(GRPOTrainer):
    """TRL's trainer on packed rows; see `EngineGRPOTrainer`, which sets the attributes."""

    args: GRPOConfig
    model: PreTrainedModel
    packs: bool | None = None
    """Whether the trainer packs rows; `None` until the first pass has tried the model."""
    shares_prompts = True
    """Whether episodes in a packed row share their prompt."""
    tokens = 0
    """The budget of a pass of one process in tokens; 0: a micro batch is one pass."""
    _trained_logps: torch.Tensor | None = None

    def can_pack(self, model: Any) -> bool:
        """Whether the model takes packed rows; the first call tries it (see `keeps_apart`).

        Raises:
            SettingsError: If it does not, and the passes have a budget of tokens.
        """
        if self.packs is None:
            plain, device = self.accelerator.unwrap_model(self.model), self.accelerator.device
            with self.accelerator.autocast():
                self.packs = keeps_apart(model, plain, device, shared=False)
                self.shares_prompts &= self.packs and keeps_apart(model, plain, device, shared=True)
            if not self.packs and not self.tokens:
                logger.warning(
                    "%s lets episodes in one row see each other, so its rows are padded, "
                    "which is slower",
                    type(plain).__name__,
                )
        if self.tokens and not self.packs:
            raise SettingsError(
                f"tokens={self.tokens} needs packed rows, and this model or its attention lets "
                "episodes in one row see each other: set tokens=0 and micro_batch"
            )
        return self.packs

    def packed_logps(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        completion: int,
        batch_size: int | None,
        with_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Log-probs and entropies of the completions, as TRL's method returns them.

        Args:
            model: The model, with TRL's fused head.
            input_ids: Token ids, shape `(B, P + C)`.
            attention_mask: 1 at real tokens, shape `(B, P + C)`.
            completion: The number `C` of columns of completions.
            batch_size: The episodes of a pass, or with a budget of tokens the episodes that are
                planned together; `None`: the rows are one pass already.
            with_entropy: Whether the entropies are wanted.
        """
        logps, entropies = [], []
        size = batch_size or len(input_ids)
        planned = bool(self.tokens and batch_size)
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            scored = mask.clone()
            scored[:, :-completion] = 0
            found = (self._planned if planned else self._scored)(model, ids, mask, scored)
            logps.append(found[0][:, -completion:])
            if with_entropy:
                assert found[1] is not None  # the trained model returns it
                entropies.append(found[1][:, -completion:])
        return torch.cat(logps), torch.cat(entropies) if with_entropy else None, None

    def _scored(
        self, model: Any, ids: torch.Tensor, mask: torch.Tensor, scored: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probs and, if the model returns them, entropies, each of shape `(B, P + C)`."""
        one_row = is_flash_attention_requested(self.model.config.get_text_config())
        packed = pack(ids, mask, scored, one_row, self.shares_prompts)
        with self.accelerator.autocast():
            output = score(model, packed)
        entropy = None if output.entropy is None else packed.unpacked(output.entropy)
        return packed.unpacked(output.log_probs), entropy

    def _planned(
        self, model: Any, ids: torch.Tensor, mask: torch.Tensor, scored: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """The log-probs, computed in planned passes without a gradient, shape `(B, P + C)`."""
        tokens = Exchange(self.accelerator, mask.sum(1), self.tokens).tokens(mask)
        columns = tokens.out(ids), tokens.real, tokens.out(scored)
        logps = [self._scored(model, *part)[0] for part in zip(*columns, strict=True)]
        return tokens.back(logps), None

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a micro batch; with a budget of tokens, all passes but the last are done.

        The result has the value of all passes, and the graph of the last pass, which the caller
        runs backward.

        Args:
            model: The model, with TRL's fused head.
            inputs: The micro batch of this process.
            return_outputs: See TRL; only without a budget.
            num_items_in_batch: See TRL; with a budget it is counted anew.
        """
        if not self.tokens or not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        parts, weights, completions = self._divided(inputs)
        known = {name: len(values) for name, values in self._metrics["train"].items()}
        synced, total, logps = self.accelerator.sync_gradients, 0.0, []
        bonus = self._bonus()
        for number, (part, weight) in enumerate(zip(parts, weights, strict=True)):
            last = number + 1 == len(parts)
            with one_pass(self.accelerator, last and synced, model):
                loss = super().compute_loss(model, part) * weight
                if not last:
                    self.accelerator.backward(loss)
                    # A callback may end the step here, as between two micro batches of TRL.
                    self.callback_handler.on_substep_end(self.args, self.state, self.control)
            assert self._trained_logps is not None  # the loss has set it
            logps.append(self._trained_logps)
            total = total + loss.detach()
        self._join_figures(known, parts, len(inputs["prompt_ids"]))
        if self._entropy_bonus_enabled and self.top_entropy_quantile == 1:
            mean, figures = self.accelerator.reduce(total, "mean").item(), self._metrics["train"]
            figures["policy_loss"].append(mean + bonus * figures["entropy"][-1])
        self.after_passes(inputs, completions.back(logps))
        return loss + (total - loss.detach())

    def after_passes(self, inputs: dict[str, Any], logps: torch.Tensor) -> None:
        """Called after the passes of a micro batch.

        Args:
            inputs: The micro batch, with the episodes of this process.
            logps: The trained model's log-probs of the completions, shape `(B, C)`.
        """

    def _bonus(self) -> float:
        """The coefficient of the entropy bonus in this step; TRL may adapt it after the step."""
        adaptive = self.use_adaptive_entropy
        if adaptive and self._last_world_entropy > self.args.entropy_target:
            return 0.0
        return self.entropy_coef

    def _divided(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], list[float], Column]:
        """The inputs of each pass, its weight, and the columns of the completions."""
        prompt, completion = inputs["prompt_mask"], inputs["completion_mask"]
        exchange = Exchange(self.accelerator, prompt.sum(1) + completion.sum(1), self.tokens)
        prompts, completions = exchange.tokens(prompt, left=True), exchange.tokens(completion)
        episodes = exchange.episodes()
        parts: list[dict[str, Any]] = [
            {"prompt_mask": one.long(), "completion_mask": other.long()}
            for one, other in zip(prompts.real, completions.real, strict=True)
        ]
        for name, column in inputs.items():
            if name in ("row", "prompt_mask", "completion_mask"):
                continue  # the row's number is of use on its own process only
            if column.dim() == 0:
                passes = [column] * len(parts)
            elif column.dim() == 1:
                passes = [rows[:, 0] for rows in episodes.out(column[:, None])]
            else:
                passes = (prompts if name.startswith("prompt") else completions).out(column)
            for part, rows in zip(parts, passes, strict=True):
                part[name] = rows
        mask = completion * inputs["tool_mask"]
        trained = self.accelerator.reduce(mask.sum(), "sum").clamp(min=1)
        share = trained / self.accelerator.num_processes
        weights = []
        for part in parts:
            # An entropy bonus is a mean over the tokens of a pass, and `bnpo` is so as a whole.
            tokens = (part["completion_mask"] * part["tool_mask"]).sum().clamp(min=1)
            weight = tokens / share
            if self.loss_type in BY_ROWS:
                scale = len(part["advantages"]) / exchange.each / weight
            else:
                scale = 1.0 if self.loss_type in _BY_TOKENS else 1.0 / weight
            part["policy_scale"] = inputs.get("policy_scale", 1.0) * scale
            weights.append(weight)
        return parts, weights, completions

    def _join_figures(
        self, known: dict[str, int], parts: list[dict[str, Any]], episodes: int
    ) -> None:
        """Join the figures of the passes to one value each.

        TRL takes their mean over passes, whatever the number of their tokens.

        Args:
            known: The number of values of each figure before the passes.
            parts: The inputs of each pass.
            episodes: The episodes of each process.
        """
        trained = [(part["completion_mask"] * part["tool_mask"]).sum() for part in parts]
        tokens = self.accelerator.reduce(torch.stack(trained), "sum").tolist()
        # Of a sequence there is one value a row. Rows without tokens are never clipped.
        rows = [float(len(part["advantages"])) for part in parts]
        by_rows = self.importance_sampling_level == "sequence"
        for name, values in list(self._metrics["train"].items()):
            new = values[known.get(name, 0) :]
            if len(new) != len(parts):
                continue  # a figure of the whole step
            del values[known.get(name, 0) :]
            valid = [value for value in new if not math.isnan(value)]
            if name.endswith(("_min", "_max")):
                values += [(min if name.endswith("_min") else max)(valid, default=math.nan)]
            elif by_rows and name.startswith("clip_ratio"):
                values.append(sum(a * b for a, b in zip(new, rows, strict=True)) / episodes)
            elif name in _LEFT_OUT:
                del self._metrics["train"][name]
            else:
                weighed = sum(a * b for a, b in zip(new, tokens, strict=True) if b)
                values.append(weighed / sum(tokens) if any(tokens) else new[-1])
