"""Actor-critic: the models of an algorithm with a critic, their optimizers and checkpoints."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested
from trl.trainer.utils import add_fused_lm_head

from agents.base.critic import Critic, ValueHead
from agents.base.fields import PolicySettings
from agents.base.minibatch import Batch, Passes
from agents.base.model import disable_dropout, load_model, lora_config
from agents.base.records import write_atomically
from agents.base.resuming import loading
from agents.base.saving import Saving
from agents.base.settings import SettingsError, setting, task_of
from agents.base.sharding import shard_frozen, sharded_apart
from retool_env.integrations.fused_head import skip_unwanted
from retool_env.training.exchange import Exchange
from retool_env.training.packing import Packed, keeps_apart, pack, score
from retool_env.training.rows import with_trained_logprobs
from retool_env.transcript import Transcript

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActorCriticSettings(PolicySettings):
    """Settings of a run that trains an actor and a critic."""

    critic_learning_rate: float = setting(2e-6, "learning rate of the critic, constant")
    weight_decay: float = setting(0.0, "weight decay of AdamW")


class ActorCritic:
    """A policy, a critic and, if the loss has a KL term, a reference model.

    Each process has a part of every batch. Sums and means are over the parts of all processes.

    Args:
        settings: The run's settings.
        actor: The policy's model, which is trained.
    """

    first_logps: torch.Tensor
    """The actor's log-probs of a step's episodes in their first pass, shape `(B, T)`.

    The algorithm sets them to NaN at the beginning of a step."""

    def __init__(self, settings: ActorCriticSettings, actor: PreTrainedModel) -> None:
        self.settings = settings
        self.task = task_of(settings.env)
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self.processes = self.accelerator.num_processes
        torch.manual_seed(settings.seed)  # equal random adapters on all processes
        add_fused_lm_head(actor, settings.temperature, outputs=("log_probs", "entropy"))
        skip_unwanted(actor)
        if settings.lora_rank:
            actor = get_peft_model(actor, lora_config(settings.lora_rank))
        self.actor, self.actor_optimizer = self._prepare(actor, actor, settings.learning_rate)
        self.model = self.accelerator.unwrap_model(self.actor)
        # Load it after the actor is sharded, so that the host never holds two whole models.
        source = settings.model, settings.dtype, settings.attention
        base = load_model(*source)[0]
        critic = Critic(base, lora_config(settings.lora_rank))
        # In a unit with other layers the head's weights would be gathered in bfloat16.
        with sharded_apart(self.accelerator, ValueHead.__name__):
            self.critic, self.critic_optimizer = self._prepare(
                critic, critic.trunk, settings.critic_learning_rate
            )
        self._one_row = is_flash_attention_requested(base.config.get_text_config())
        self.reference = None
        if settings.kl and not settings.lora_rank:
            reference = load_model(*source)[0].eval()
            add_fused_lm_head(reference, settings.temperature)
            skip_unwanted(reference)
            if self.accelerator.is_fsdp2:
                self.reference = shard_frozen(reference, self.accelerator)
            else:
                self.reference = reference.requires_grad_(False).to(self.accelerator.device)

    def _prepare(self, model: torch.nn.Module, trunk: Any, learning_rate: float) -> tuple[Any, Any]:
        disable_dropout(trunk)
        if self.settings.gradient_checkpointing:
            # Newer releases of transformers have another name for this method.
            enable = getattr(trunk, "activation_checkpointing_enable", None)
            (enable or trunk.gradient_checkpointing_enable)({"use_reentrant": False})
        # Nothing else refers to the parameters, so that `prepare` frees each when it is sharded.
        trained = (p for p in model.parameters() if p.requires_grad)
        decay = self.settings.weight_decay
        optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=decay)
        # FSDP2 takes one model at a time.
        return self.accelerator.prepare(model, optimizer)

    def values(self, batch: Batch) -> torch.Tensor:
        """The critic's values of a batch, shape `(B, T)`."""
        return self._by_pass(self.critic, batch)

    def logps(self, batch: Batch) -> torch.Tensor:
        """The actor's log-probs of a batch, shape `(B, T)`."""
        return self._by_pass(lambda rows: self.score(self.actor, rows)[0], batch)

    @torch.no_grad()
    def _by_pass(self, compute: Callable[[Packed], torch.Tensor], batch: Batch) -> torch.Tensor:
        passes = self.passes(batch)
        return passes.back([compute(self.rows(part)) for part in passes.parts])

    def keep_logps(self, batch: Batch, logps: torch.Tensor) -> None:
        """Keep the log-probs of a part of the step, unless an earlier epoch has set them.

        Args:
            batch: The part.
            logps: The actor's log-probs, shape `(B, T)`.
        """
        assert batch.numbers is not None  # `Batch.of` made them
        first = self.first_logps[batch.numbers, : logps.shape[1]]
        kept = torch.where(first.isnan(), logps, first)
        self.first_logps[batch.numbers, : logps.shape[1]] = kept

    def with_logps(self, rows: Mapping[str, Sequence[Any]], batch: Batch) -> list[Transcript]:
        """The step's transcripts; trained ones have the actor's log-probs of the first pass.

        Args:
            rows: The rows of `Rollouts.collect`.
            batch: The same episodes as tensors.
        """
        trained = batch.mask.any(1).tolist()
        transcripts = list(rows["transcript"])
        for number, transcript in enumerate(transcripts):
            if trained[number]:
                first = len(rows["prompt_ids"][number]) - 1
                logps = self.first_logps[number, first:].tolist()
                transcripts[number] = with_trained_logprobs(transcript, logps)
        return transcripts

    def passes(self, batch: Batch) -> Passes:
        """Divide a batch into forward and backward passes. All processes must call it.

        Args:
            batch: The episodes of this process.
        """
        tokens = self.settings.tokens
        if not tokens:
            return batch.parts(self.settings.micro_batch)
        return batch.balanced(Exchange(self.accelerator, batch.attention.sum(1), tokens))

    def rows(self, batch: Batch) -> Packed:
        """The batch's episodes, packed into rows without padding; see `training.packing`."""
        scored = torch.nn.functional.pad(batch.mask, (1, 0))  # the fused head skips other tokens
        packs, shares = self.packing
        return pack(batch.ids, batch.attention, scored, self._one_row, shares, apart=not packs)

    @functools.cached_property
    def packing(self) -> tuple[bool, bool]:
        """Whether episodes can be packed into one row, and whether they can also share a prompt.

        A model supports packing if the episodes in a row do not see each other. All processes read
        this property together.

        Raises:
            SettingsError: If it does not, and the passes have a budget of tokens.
        """
        with self.accelerator.autocast():
            packs, shares = (
                keeps_apart(self.actor, self.model, self.accelerator.device, shared)
                for shared in (False, True)
            )
        if self.settings.tokens and not packs:
            raise SettingsError(
                f"tokens={self.settings.tokens} needs packed rows, and {type(self.model).__name__} "
                "lets episodes in one row see each other: set tokens=0 and micro_batch"
            )
        if not packs:
            _log.warning(
                "%s lets episodes in one row see each other, so each episode has a separate row, "
                "which takes longer",
                type(self.model).__name__,
            )
        return packs, packs and shares

    def score(self, model: torch.nn.Module, rows: Packed) -> list[torch.Tensor]:
        """Compute log-probs and, if the model returns them, entropies of the sampled tokens.

        Args:
            model: The actor or the reference model.
            rows: The packed episodes.

        Returns:
            The log-probs and the entropies, each of shape `(B, T)`, 0 on other tokens.
        """
        with self.accelerator.autocast():
            output = score(model, rows)
        outputs = (output.log_probs, output.entropy)
        return [rows.unpacked(numbers.float())[:, 1:] for numbers in outputs if numbers is not None]

    @torch.no_grad()
    def reference_logps(self, rows: Packed) -> torch.Tensor:
        """Log-probs under the initial model, shape `(B, T)`.

        With LoRA the initial model is the actor without its adapter.
        """
        if self.reference is not None:
            return self.score(self.reference, rows)[0]
        assert isinstance(self.model, PeftModel)
        with self.model.disable_adapter():
            return self.score(self.model, rows)[0]

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        return self.accelerator.reduce(tensor, "sum")

    def save(self, saving: Saving, step: int) -> None:
        """Write a checkpoint for `load`.

        Args:
            saving: Completes the checkpoint.
            step: The number of the optimizer step.
        """
        # With shards, saving and loading give an optimizer that has made no step the state of one
        # that has made one step. The bias correction of its first steps would be wrong.
        optimizers = {"actor": self.actor_optimizer, "critic": self.critic_optimizer}
        fresh = [name for name, optimizer in optimizers.items() if not optimizer.state]
        for optimizer in optimizers.values():
            # With gradients of a pass before the stop, torch would not make a missing state, and
            # the checkpoint could not be loaded.
            optimizer.zero_grad()
        with saving.checkpoint(step) as folder:
            self.accelerator.save_state(str(folder))
            self._begin_anew(fresh)
            if self.accelerator.is_main_process:
                self.task.save(folder)
                state = json.dumps({"global_step": step, "fresh": fresh})
                write_atomically(folder / "trainer_state.json", state)

    def load(self, folder: Path) -> int:
        """Load a checkpoint.

        Args:
            folder: The checkpoint's folder.

        Returns:
            The number of the optimizer step after which the checkpoint was written.

        Raises:
            SettingsError: If the checkpoint can't be loaded.
        """
        with loading(folder):
            self.accelerator.load_state(str(folder))
        state = json.loads((folder / "trainer_state.json").read_text())
        self._begin_anew(state.get("fresh", ()))
        return state["global_step"]

    def _begin_anew(self, names: Iterable[str]) -> None:
        for name in names:
            getattr(self, f"{name}_optimizer").state.clear()
