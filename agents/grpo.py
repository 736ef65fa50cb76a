"""GRPO (arXiv 2402.03300, section 4.1) in the environment, on TRL's `GRPOTrainer`.

The reward is the environment's; interpreter tokens carry no loss, no advantage and don't count in a length
normalisation; the old log-probs are those that the engine sampled with. The KL is weighed by the ratio,
and the entropy bonus is the mean of its means over each micro batch's tokens.

Other algorithms without a critic are this one with other settings, and where that does not do with other advantages, a
bonus on the reward or other arguments of TRL's: see `train`, and `dr_grpo.py` for the shortest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOConfig

from agents.advantages import group_normalised
from agents.base.board import BarCallback
from agents.base.fields import PolicySettings, check_policy
from agents.base.model import check_dtype, check_learning_rate, disable_dropout, lora_config
from agents.base.run import RunLogger
from agents.base.selection import CleanRollouts
from agents.base.session import Export, RolloutSession
from agents.base.settings import SettingsError, check_least, largest_divisor, setting
from agents.base.sharding import processes
from agents.base.stopping import StopCallback
from agents.base.trl import trl_config
from retool_env.integrations.trl import (
    Advantages,
    EngineGRPOTrainer,
    EngineRollouts,
    Normalisation,
    episode_reward,
)
from retool_env.training.rollouts import ResampleBy
from retool_env.training.rows import is_trainable
from retool_env.transcript import Transcript

os.environ.setdefault(
    "TRL_EXPERIMENTAL_SILENCE", "1"
)  # rollout_func's interface is pinned by setup.cfg

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""TRL's losses that clip the ratio on both sides, and bound it by `delta`."""

Bonus = Callable[[Transcript, int], float]
"""What is added to an episode's reward, given its token budget."""


@dataclass(frozen=True)
class Settings(PolicySettings):
    """Settings of the training run."""

    name: str = "grpo"
    tokens_in_flight: int = setting(
        0,
        "tokens that the episodes in flight may grow to together; 0: no bound but the engine's own",
    )
    staleness: int = setting(
        0, "batches sampled ahead while the trainer trains; 0: they take turns"
    )
    oversample: float = setting(
        1.0, "rollouts begun for each that is kept: the first to finish are"
    )
    resample: int = setting(
        0, "rounds that replace groups that teach nothing (DAPO's dynamic sampling); 0: none"
    )
    resample_by: ResampleBy = setting(
        "accuracy",
        "groups that teach nothing: accuracy, all right or all wrong; reward, all of equal reward",
    )
    spare: float = setting(
        1.0,
        "rollouts sampled for each trained on; of right ones the cleaner stay (arXiv 2508.20722)",
    )
    loss: str = setting("dapo", "TRL's loss_type: dapo, grpo, dr_grpo, ...")
    ratio_cap: float = setting(
        0.0,
        "largest ratio that weighs a negative advantage, which no clip bounds (TRL's delta); 0: none",
    )
    trl: dict[str, Any] = setting({}, "any other field of TRL's GRPOConfig")


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
    """Run GRPO, or what differs from it by the last four.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Go on where the run in that folder was.
        advantages: Makes the advantages of the rewards, and of the transcripts, if it has a
            parameter of that name; see `retool_env.training.advantages.Advantages`.
        normalise: Makes others of these advantages and the numbers of tokens.
        bonus: What is added to the environment's reward.
        arguments: Further fields of TRL's `GRPOConfig`, which no setting overrides.

    Returns:
        The folder of the trained model.

    Raises:
        SettingsError: If a setting names nothing there is, a step's episodes can't be divided into
            micro batches, or a prompt does not fit the model.
        SandboxUnavailable: If the sandbox can't work here.
    """
    passes = check_batch(settings, processes().num_processes)
    with RolloutSession(settings, folder, resume) as run:
        if run.finished:
            return run.checkpoint
        disable_dropout(run.model)
        check_learning_rate(settings, run.model.num_parameters())
        config = grpo_config(run, passes, arguments or {})
        run.begin("rl")
        stop = StopCallback(run.task, run.stopping)
        # Advantages of shape (N,), one an episode, or (N, T), one a token; loss over the tokens that the model sampled.
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
            on_trained=Every(settings.transcripts_every, run.write),
            correction=settings.correction,
            correction_cap=settings.correction_cap,
            correction_bounds=(settings.correction_low, settings.correction_high),
            task=run.task,
        )
        trainer.rollout_func = run.make_rollouts(
            partial(CleanRollouts, settings.spare) if settings.spare > 1 else EngineRollouts,
            trainer.model,
            trainer.accelerator.device,
            apart=settings.staleness > 0 or trainer.is_fsdp_enabled,
            tokens_in_flight=settings.tokens_in_flight,
            staleness=settings.staleness,
            oversample=settings.oversample,
            resample=settings.resample,
            resample_by=settings.resample_by,
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        if settings.export_steps:
            trainer.add_callback(Export(trainer, run, settings.export_steps))
        stop.train(trainer, run.point)
        run.save(trainer)
    return run.checkpoint


class Every:
    """Keeps the transcripts of a batch now and then.

    Args:
        steps: Between batches that are kept, at least: a batch may serve several steps, and the first may be at any.
        write: Keeps them.
    """

    def __init__(self, steps: int, write: Callable[[list[Transcript]], None]) -> None:
        self._steps, self._write = steps, write
        self._last: int | None = None

    def __call__(self, step: int, transcripts: list[Transcript]) -> None:
        """Called with each batch and the step that sampled it."""
        if self._last is None or step - self._last >= self._steps:
            self._last = step
            self._write(transcripts)


def check_batch(settings: Settings, processes: int) -> int:
    """Check the numbers, and that a step's episodes can be shared out.

    Returns:
        Forward and backward passes of a process for an optimizer step.

    Raises:
        SettingsError: If a number is out of range, or the episodes can't be shared out.
    """
    check_policy(settings, processes)
    least = dict.fromkeys(("staleness", "resample", "tokens_in_flight"), 0)
    check_least(settings, {**least, "oversample": 1, "rollouts": 2})
    if settings.ratio_cap and settings.loss not in CLIPPED:
        raise SettingsError(
            f"ratio_cap has no part in loss={settings.loss}; it has in {', '.join(CLIPPED)}"
        )
    if 0 < settings.ratio_cap <= 1 + settings.clip_high:
        raise SettingsError(
            f"ratio_cap={settings.ratio_cap} must be above 1 + clip_high={settings.clip_high}; 0 is no cap"
        )
    check_dtype(settings.dtype, settings.lora_rank, settings.trl)
    episodes = settings.prompts * settings.rollouts // processes
    passes, rest = divmod(episodes, settings.micro_batch)
    if rest:
        each = " for each process" if processes > 1 else ""
        raise SettingsError(
            f"a step has prompts * rollouts = {episodes} episodes{each}, which "
            f"micro_batch={settings.micro_batch} does not divide: take "
            f"micro_batch={largest_divisor(episodes, settings.micro_batch)}"
        )
    return passes


def reward_functions(
    bonus: Bonus | None, budget: int | None
) -> list[Callable[..., list[float | None]]]:
    """TRL's reward functions: the environment's reward and, of episodes that are trained on, the bonus."""
    if bonus is None:
        return [episode_reward]
    assert budget is not None  # a run has one

    def episode_bonus(transcript: Sequence[Transcript], **_: Any) -> list[float | None]:
        return [bonus(each, budget) if is_trainable(each) else None for each in transcript]

    return [episode_reward, episode_bonus]


OURS = ("scale_rewards", "multi_objective_aggregation")
"""Fields without effect here: advantages are the algorithm's, and there is one reward."""

_SAMPLING = "set temperature, and arguments of the policy in engine; log-probs are those of the whole distribution"
_ENGINE = "set engine, a mapping {name: ..., and arguments of its policy}, and sample_batch"
_ORDER = "problems are drawn by seed and curriculum"
WITHOUT_EFFECT = {
    **dict.fromkeys(
        ("top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs"), _SAMPLING
    ),
    **{
        field.name: _ENGINE
        for field in fields(GRPOConfig)
        if field.name.startswith(("vllm_", "use_transformers_", "transformers_"))
    },
    **dict.fromkeys(("use_vllm", "cache_implementation", "ds3_gather_for_generation"), _ENGINE),
    **{
        field.name: "set correction and correction_cap"
        for field in fields(GRPOConfig)
        if field.name.startswith("vllm_importance_sampling_")
    },
    "chat_template_kwargs": "set env.protocol and env.prompt_template",
    "max_tool_calling_iterations": "set env.max_calls",
    "disable_dropout": "there is never any dropout",
    "num_train_epochs": "set steps",
    "log_multimodal": "episodes are text; transcripts_every keeps them",
    "label_smoothing_factor": "the loss is the algorithm's (loss)",
    **dict.fromkeys(("data_seed", "train_sampling_strategy", "length_column_name"), _ORDER),
}
"""Fields of TRL's that have no effect with rollouts and a loss of our own, and of each what has."""
OF_LOSSES = {"sapo_": "sapo", "vespo_": "vespo"}
"""How the fields begin that one of TRL's losses has."""


def grpo_config(
    run: RolloutSession[Settings], passes: int, arguments: Mapping[str, Any]
) -> GRPOConfig:
    """TRL's configuration.

    Args:
        run: The run.
        passes: Forward and backward passes of a process for an optimizer step.
        arguments: Fields that the algorithm sets.

    Raises:
        SettingsError: If the setting `trl` has a field that it can't have.
    """
    settings = run.settings
    ours = {
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": passes,
        "num_generations": settings.rollouts,
        "max_completion_length": run.rules.max_tokens,
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
        key: f"it is for loss={loss}"
        for key in settings.trl
        for start, loss in OF_LOSSES.items()
        if key.startswith(start) and ours["loss_type"] != loss
    }
    return trl_config(GRPOConfig, run, ours, defaults, {**WITHOUT_EFFECT, **others}, OURS)


def _not_yet(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Stands in until the trainer has made the model (LoRA and all) that the policy samples from."""
    raise RuntimeError("no rollouts before the policy is set")
