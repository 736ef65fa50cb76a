"""GRPO (arXiv 2402.03300, section 4.1) in the environment, on TRL's `GRPOTrainer`.

The environment gives the reward. Interpreter tokens have no loss and no advantage, and don't count
in a length normalisation. The engine's log-probs are the old log-probs. The KL is weighed by the
ratio. The entropy bonus is a mean over the tokens of each micro batch, then over micro batches.

Other algorithms without a critic are GRPO with other settings. Some also change the advantages, add
a bonus to the reward, or set other arguments of TRL: see `train`. `dr_grpo.py` is the shortest.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOConfig

from agents.advantages import group_normalised
from agents.base.board import BarCallback
from agents.base.fields import PolicySettings, check_policy_settings
from agents.base.held_out import HeldOutCallback
from agents.base.model import check_dtype, check_learning_rate, disable_dropout, lora_config
from agents.base.objective import Bonus, Objective, offer
from agents.base.reporting import TrainerReporter
from agents.base.resuming import last_version
from agents.base.run import RunLogger
from agents.base.selection import CleanEngineRollouts
from agents.base.session import Export, RolloutSession
from agents.base.settings import (
    SettingsError,
    check_least,
    largest_divisor,
    nearest,
    setting,
)
from agents.base.sharding import processes, reference_of
from agents.base.stopping import StopCallback
from agents.base.trl import trl_config
from agents.rewards import reward_functions
from retool_env.integrations.trl import (
    Advantages,
    EngineGRPOTrainer,
    EngineRollouts,
    Normalisation,
)
from retool_env.training.processes import everywhere
from retool_env.transcript import Transcript

# TRL warns that rollout_func's interface may change; setup.cfg pins TRL's version.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
# TRL still reads a property that transformers has renamed.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

CLIPPED_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""TRL's losses that clip the ratio on both sides and bound it by `delta`."""

LOSSES = (*CLIPPED_LOSSES, "cispo", "sapo", "vespo")
"""TRL's losses. TRL itself refuses another name only after the first rollouts."""


@dataclass(frozen=True)
class Settings(PolicySettings):
    """Settings of the training run."""

    name: str = "grpo"
    loss: str = setting("dapo", "TRL's loss_type: dapo, grpo, dr_grpo, ...")
    ratio_cap: float = setting(
        0.0,
        "largest ratio that weighs a negative advantage, where no clip acts (TRL's delta); 0: off",
    )
    trl: dict[str, Any] = setting({}, "any other field of TRL's GRPOConfig")

    def frozen_figures(self, processes: int) -> dict[str, int]:
        """The episodes of a generation batch; see `RunSettings.frozen_figures`."""
        batch = self.trl.get("generation_batch_size")
        if not batch:
            batch = step = self.prompts * self.rollouts
            if passes := self.trl.get("steps_per_generation"):
                batch = passes * (step if self.tokens else self.micro_batch * processes)
        return {"trl.generation_batch_size": batch}


def train(
    settings: Settings,
    folder: Path,
    resume: bool = False,
    *,
    advantages: Advantages = group_normalised,
    normalise: Normalisation | None = None,
    bonus: Bonus | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Path:
    """Run GRPO, or an algorithm that differs from GRPO in the last four arguments.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Whether to continue the run in the folder.
        advantages: The hook that makes the advantages; see
            `retool_env.training.advantages.Advantages`.
        normalise: The hook that changes these advantages, given the episodes' numbers of tokens;
            `None`: they stay as they are.
        bonus: Computes the bonus on the environment's reward; `None`: there is no bonus.
        arguments: Further fields of TRL's `GRPOConfig`, which no setting overrides.

    Returns:
        The folder of the trained model.

    Raises:
        SettingsError: If a setting is out of range or names an unknown thing, a step's episodes
            can't be divided into micro batches, or a prompt does not fit the model.
        SandboxUnavailable: If the sandbox can't work here.
    """
    offer(Objective(settings, advantages, normalise, bonus, arguments or {}))
    micro_batch, passes = check_batch(settings, processes().num_processes)
    with RolloutSession(settings, folder, resume) as run:
        if run.finished:
            return run.checkpoint
        disable_dropout(run.model)
        check_learning_rate(settings, run.model.num_parameters())
        budget = run.rules.max_tokens
        config = grpo_config(settings, run.trainer, budget, micro_batch, passes, arguments or {})
        run.begin("rl")
        # Of the first process: a process that the run did not have before has no file yet.
        last = everywhere(last_version(run.transcripts))[0]
        stop = StopCallback(run.task, run.stopping, run.saving, run.card)
        # Advantages: (N,), one an episode, or (N, T), one a token. Loss: over sampled tokens.
        with reference_of(run.model):
            trainer = EngineGRPOTrainer(
                model=run.model,
                reward_funcs=reward_functions(bonus, run.rules.max_tokens),
                args=config,
                train_dataset=Dataset.from_dict({"prompt": run.ids}),
                processing_class=run.tokenizer,
                peft_config=lora_config(settings.lora_rank),
                callbacks=[RunLogger(run), BarCallback(run.bar), stop],
                rollout_func=_not_yet,
                advantages=advantages,
                normalise=normalise,
                on_trained=Every(settings.transcripts_every, run.write, last),
                correction=settings.correction,
                correction_cap=settings.correction_cap,
                correction_bounds=(settings.correction_low, settings.correction_high),
                tokens=settings.tokens,
                task=run.task,
            )
        rollouts = trainer.rollout_func = run.make_rollouts(
            partial(CleanEngineRollouts, settings.spare) if settings.spare > 1 else EngineRollouts,
            trainer.model,
            trainer.accelerator.device,
            sharded=trainer.is_fsdp_enabled,
        )
        reporter = TrainerReporter(trainer, settings.report_to)
        held_out = run.make_held_out(rollouts, reporter.evaluation)
        trainer.add_callback(HeldOutCallback(trainer, held_out))
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        if settings.export_steps:
            trainer.add_callback(Export(trainer, run, settings.export_steps))
        stop.train(trainer, run.point)
        run.save(trainer)
    return run.checkpoint


class Every:
    """Writes the transcripts of a batch every few steps.

    Args:
        steps: Smallest number of steps between two written batches. A batch may serve several
            steps, and the first batch may come at any step.
        write: Writes the transcripts of a batch.
        last: The step of the last written batch; `None`: no batch has been written.
    """

    def __init__(
        self, steps: int, write: Callable[[list[Transcript]], None], last: int | None = None
    ) -> None:
        self._steps, self._write, self._last = steps, write, last

    def __call__(self, step: int, transcripts: list[Transcript]) -> None:
        """Write a batch if enough steps have passed.

        Args:
            step: The step that sampled the batch.
            transcripts: The batch's transcripts.
        """
        if self._last is None or step - self._last >= self._steps:
            self._last = step
            self._write(transcripts)


def check_batch(settings: Settings, processes: int) -> tuple[int, int]:
    """Check the numbers, and that a step's episodes can be divided among processes.

    Args:
        settings: The run's settings.
        processes: Number of processes of the run.

    Returns:
        The episodes of TRL's micro batch, and the micro batches of a process for an optimizer step.
        With a budget of tokens the micro batch is the whole step, which the trainer divides.

    Raises:
        SettingsError: If a number is out of range, or the episodes can't be divided.
    """
    check_policy_settings(settings, processes)
    check_least(settings, {"rollouts": 2, "kl": 0, "clip_low": 0, "clip_high": 0, "ratio_cap": 0})
    if settings.clip_low > 1:
        raise SettingsError(f"clip_low must be from 0 to 1, not {settings.clip_low}")
    if settings.loss not in LOSSES:
        raise SettingsError(
            f"loss={settings.loss}: choose from {', '.join(LOSSES)}{nearest(settings.loss, LOSSES)}"
        )
    if settings.ratio_cap and settings.loss not in CLIPPED_LOSSES:
        raise SettingsError(
            f"ratio_cap has no effect with loss={settings.loss}: leave ratio_cap out, or take one "
            f"of the losses {', '.join(CLIPPED_LOSSES)}"
        )
    if 0 < settings.ratio_cap <= 1 + settings.clip_high:
        raise SettingsError(
            f"ratio_cap={settings.ratio_cap} must be above 1 + clip_high={settings.clip_high}, or "
            "0 for no cap"
        )
    check_dtype(settings.dtype, settings.lora_rank, settings.trl)
    episodes = settings.prompts * settings.rollouts // processes
    if settings.tokens:
        return episodes, 1
    passes, rest = divmod(episodes, settings.micro_batch)
    if rest:
        per_process = " for each process" if processes > 1 else ""
        raise SettingsError(
            f"a step has prompts * rollouts = {episodes} episodes{per_process}, which "
            f"micro_batch={settings.micro_batch} does not divide: take "
            f"micro_batch={largest_divisor(episodes, settings.micro_batch)}"
        )
    return settings.micro_batch, passes


FIXED_FIELDS = ("scale_rewards", "multi_objective_aggregation")
"""Fields of `GRPOConfig` without effect: the algorithm makes the advantages from one reward."""

_SET_SAMPLING = "set temperature, and arguments of the policy in engine"
_SET_ENGINE = "set engine, a mapping {name: ..., and arguments of its policy}, and sample_batch"
_SET_ORDER = "problems are drawn by seed and curriculum"


def _fields(*prefixes: str) -> list[str]:
    return [field.name for field in fields(GRPOConfig) if field.name.startswith(prefixes)]


WITHOUT_EFFECT = {
    **dict.fromkeys(
        ("top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs"), _SET_SAMPLING
    ),
    **dict.fromkeys(_fields("vllm_", "use_transformers_", "transformers_"), _SET_ENGINE),
    **dict.fromkeys(("use_vllm", "cache_implementation", "ds3_gather_for_generation"), _SET_ENGINE),
    **dict.fromkeys(_fields("vllm_importance_sampling_"), "set correction and correction_cap"),
    "chat_template_kwargs": "set env.protocol and env.prompt_template",
    "max_tool_calling_iterations": "set env.max_calls",
    "disable_dropout": "dropout is always off",
    "mask_truncated_completions": "set mask_overlong",
    "num_train_epochs": "set steps",
    "log_multimodal": "episodes are text; transcripts_every keeps them",
    "label_smoothing_factor": "the algorithm's loss is used (loss)",
    **dict.fromkeys(("data_seed", "train_sampling_strategy", "length_column_name"), _SET_ORDER),
}
"""Fields of `GRPOConfig` without effect on our rollouts and losses, with the settings to use."""
_LOSS_OF_PREFIX = {"sapo_": "sapo", "vespo_": "vespo"}
"""TRL's losses with fields of their own, by the prefixes of these fields."""


def grpo_config(
    settings: Settings,
    output: Path,
    max_tokens: int | None,
    micro_batch: int,
    passes: int,
    arguments: Mapping[str, Any],
) -> GRPOConfig:
    """TRL's configuration.

    Args:
        settings: The run's settings.
        output: The folder of the checkpoints for resuming.
        max_tokens: The token budget of a response.
        micro_batch: The episodes of TRL's micro batch.
        passes: The micro batches of a process for an optimizer step.
        arguments: Fields that the algorithm sets.

    Raises:
        SettingsError: If the setting `trl` has a wrong field or value.
    """
    ours = {
        "max_steps": settings.steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": passes,
        "num_generations": settings.rollouts,
        "max_completion_length": max_tokens,
        "loss_type": settings.loss,
        "epsilon": settings.clip_low,
        "epsilon_high": settings.clip_high,
        "delta": settings.ratio_cap or None,
        "beta": settings.kl,
        "entropy_coef": settings.entropy,
        "temperature": settings.temperature,
        **arguments,
    }
    defaults = {"lr_scheduler_type": "constant", "logging_steps": 1, "shuffle_dataset": False}
    others = {
        key: f"it belongs to loss={loss}"
        for key in settings.trl
        for prefix, loss in _LOSS_OF_PREFIX.items()
        if key.startswith(prefix) and ours["loss_type"] != loss
    }
    idle = {**WITHOUT_EFFECT, **others}
    return trl_config(GRPOConfig, settings, output, ours, defaults, idle, FIXED_FIELDS)


def _not_yet(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """The placeholder until the trainer has made the model from which the policy samples."""
    raise RuntimeError("the trainer asked for rollouts before it had a policy")
