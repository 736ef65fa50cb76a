"""Runs TRL's GRPO trainer and three variants of ours on given episodes, without a loop."""

from __future__ import annotations

import ctypes
import gc
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from benchmarks.parts.batches import Batch
from benchmarks.parts.machine import reset_peak, resident_mb
from retool_env.integrations.trl import EngineGRPOTrainer, episode_reward, training_rows

TRL, PADDED, PACKED, OURS = "TRL", "ours, padded", "ours, packed", "ours"
KINDS: dict[str, dict[str, Any]] = {
    PADDED: {"packed": False},
    PACKED: {"shared_prompts": False},
    OURS: {},
}
"""The variants of our trainer by name, with their arguments."""
PASSES = 4
"""The number of micro batches of a generation batch."""


class Steps:
    """A trainer without its training loop.

    Args:
        kind: The name of the trainer: `TRL` or a key of `KINDS`.
        model: The folder of the model.
        batch: The episodes, in place of rollouts.
        updates: The number of optimizer steps per generation batch.
        kl: The coefficient of the KL term; 0: no reference model.
        bf16: Whether activations are in bfloat16. Weights are in float32, as TRL loads them.
        folder: The folder for files of the trainer.
    """

    def __init__(
        self, kind: str, model: str, batch: Batch, updates: int, kl: float, bf16: bool, folder: str
    ) -> None:
        rows = len(batch.transcripts)
        self._rows = [{"prompt": t.problem.id} for t in batch.transcripts]
        self._passes = PASSES // updates
        self._updates = updates
        config = GRPOConfig(
            output_dir=folder,
            max_steps=1,
            per_device_train_batch_size=rows // PASSES,
            gradient_accumulation_steps=self._passes,
            steps_per_generation=PASSES,
            num_generations=batch.group,
            max_completion_length=max(batch.lengths),
            learning_rate=0.0,
            loss_type="dapo",
            epsilon_high=0.28,
            beta=kl,
            bf16=bf16,
            use_cpu=not torch.accelerator.is_available(),
            gradient_checkpointing=False,
            disable_dropout=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        )
        make: Any = GRPOTrainer if kind == TRL else EngineGRPOTrainer
        self.trainer = make(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            reward_funcs=episode_reward,
            args=config,
            train_dataset=Dataset.from_list(self._rows),
            processing_class=AutoTokenizer.from_pretrained(model),
            rollout_func=lambda prompts, trainer: training_rows(
                batch.transcripts, trainer.eos_token_ids
            ),
            **KINDS.get(kind, {}),
        )
        self.trainer.current_gradient_accumulation_steps = self._passes
        self.trainer.model.train()
        self.trainer.create_optimizer()

    def batch(self) -> dict[str, Any]:
        """Prepare the episodes for training, like a trainer after its rollouts."""
        return self.trainer._generate_and_score_completions([dict(row) for row in self._rows])

    def loss_and_gradient(self, batch: dict[str, Any]) -> tuple[float, torch.Tensor]:
        """Compute loss and gradient of a generation batch, as in one optimizer step.

        Args:
            batch: The result of `batch`.

        Returns:
            The loss, and the gradient of all parameters in float64 on the CPU, shape
            `(parameters,)`.
        """
        trainer, rows = self.trainer, len(self._rows)
        trainer.model.zero_grad()
        total = 0.0
        for start in range(0, rows, rows // PASSES):
            part = {
                name: value[start : start + rows // PASSES] if value.dim() else value
                for name, value in batch.items()
            }
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, part)
            loss.backward()
            total += loss.item()
        gradient = [p.grad.flatten().double().cpu() for p in trainer.model.parameters()]
        trainer.model.zero_grad()
        return total, torch.cat(gradient)

    def step(self) -> float:
        """Train on the generation batch, and return the seconds."""
        trainer = self.trainer
        _synchronise()
        began = time.perf_counter()
        for _ in range(self._updates):
            for _ in range(self._passes):
                trainer.training_step(trainer.model, [dict(row) for row in self._rows], None)
            trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
        _synchronise()
        return time.perf_counter() - began

    def peak_mb(self) -> float:
        """The peak memory of a step in megabytes, above the weights and the optimizer's state."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            self.step()
            return round((torch.cuda.max_memory_allocated() - held) / 2**20, 1)
        ctypes.CDLL(None).malloc_trim(0)  # returns memory of earlier steps
        before = resident_mb()
        reset_peak()
        self.step()
        return round(resident_mb(peak=True) - before, 1)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
