"""Fine-tuning: TRL's `SFTTrainer`, with passes that have a budget of tokens.

With a budget, TRL's micro batch holds all traces of a process in an optimizer step. They are
exchanged over all processes and divided into passes (see `retool_env.training.exchange`). The loss
is the mean over the labels of all processes, as TRL computes it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested
from trl import SFTTrainer

from retool_env.training.exchange import Exchange, one_pass
from retool_env.training.packing import pack


class BudgetSFTTrainer(SFTTrainer):
    """TRL's trainer for supervised fine-tuning, with a budget of tokens.

    Args:
        *args: Positional arguments of TRL's `SFTTrainer`.
        tokens: The budget of a forward and backward pass of one process; 0: a micro batch is a
            pass.
        **kwargs: Keyword arguments of TRL's `SFTTrainer`.
    """

    model: PreTrainedModel

    def __init__(self, *args: Any, tokens: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokens = tokens

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
        passes, labels = self._divided(inputs)
        everywhere = self.accelerator.reduce(labels, "sum")
        # TRL multiplies by the number of processes, unless it counts the tokens of each by itself.
        averaged = self.args.average_tokens_across_devices
        scale = 1 if averaged else self.accelerator.num_processes
        seen = self._total_train_tokens + int(
            self.accelerator.reduce(inputs["attention_mask"].sum(), "sum")
        )
        figures = self._metrics["train"]
        known = {name: len(figures[name]) for name in ("entropy", "mean_token_accuracy")}
        synced, total = self.accelerator.sync_gradients, 0.0
        for number, part in enumerate(passes):
            last = number + 1 == len(passes)
            with one_pass(self.accelerator, last and synced, model):
                count = everywhere.sum()
                loss = super().compute_loss(model, part, num_items_in_batch=count) * scale
                if not last:
                    self.accelerator.backward(loss)
                    # A callback may end the step here, as between two micro batches of TRL.
                    self.callback_handler.on_substep_end(self.args, self.state, self.control)
            total = total + loss.detach()
        shares = (everywhere / everywhere.sum().clamp(min=1)).tolist()
        for name, before in known.items():
            new = figures[name][before:]
            figures[name][before:] = [sum(a * b for a, b in zip(new, shares, strict=True))]
        self._total_train_tokens = seen  # TRL has also counted unused places
        figures["num_tokens"] = [seen]
        return loss + (total - loss.detach())

    def _divided(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """The inputs of each pass, and the numbers of this process's labels, shape `(passes,)`."""
        ids, attention, labels = (inputs[k] for k in ("input_ids", "attention_mask", "labels"))
        exchange = Exchange(self.accelerator, attention.sum(1), self.tokens)
        tokens = exchange.tokens(attention)
        one_row = is_flash_attention_requested(self.model.config.get_text_config())
        passes, counts = [], []
        scored = tokens.out(labels != -100)
        for row_ids, real, wanted in zip(tokens.out(ids), tokens.real, scored, strict=True):
            wanted[:, 0] = False  # a first token is not predicted
            packed = pack(row_ids, real, wanted, one_row)
            places = packed.position_ids
            if places is None:
                along = torch.arange(packed.input_ids.shape[1], device=row_ids.device)
                places = along.expand_as(packed.input_ids)
            part = {"input_ids": packed.input_ids, "position_ids": places}
            passes.append({**part, "shift_labels": packed.labels})
            counts.append(wanted.sum())
        return passes, torch.stack(counts)
