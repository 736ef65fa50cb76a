"""Fields: the settings that several algorithms share, each defined and described once.

An algorithm's `Settings` inherit from one of these classes. Settings are flat: presets, `key=value`
pairs and `config.json` name a setting without its class. A subclass changes a default with an
annotated assignment (`clip_high: float = 0.2`) and keeps the help text.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from agents.base.settings import SettingsError, check_least, setting
from retool_env.training.correction import Correction
from retool_env.training.rows import ResampleBy

Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"]
"""Kernels of attention, by transformers' names. The names are listed, because transformers makes no
mask for a name that it does not know."""

ExportType = Literal["auto", "bfloat16"]
"""Data types of saved models."""


@dataclass(frozen=True)
class RunSettings:
    """Settings of every run. Each algorithm's subclass gives `name` a default."""

    name: str = dataclasses.field(metadata={"help": "the run's folder is runs/<name>"})
    env: dict[str, Any] = setting(
        {"id": "ReTool-Arithmetic-v0"}, "the environment's id and settings"
    )
    sandbox: str | dict[str, Any] = setting(
        "nsjail",
        "where programs run: nsjail, unsafe, a server's URL (http://...), or a mapping of "
        "make_sandbox's arguments",
    )
    seed: int = setting(0, "random seed of new weights, the problems, their order and sampling")

    def frozen_figures(self, processes: int) -> dict[str, int]:
        """Figures that decide the training and follow from several settings, by their names.

        A resumed run must have the figures of its start, see `changes`.

        Args:
            processes: The number of the run's processes.
        """
        return {}


@dataclass(frozen=True)
class ModelSettings(RunSettings):
    """Settings of a run that starts with a model and reports its figures."""

    model: str = setting("runs/sft/checkpoint", "the initial model: a folder or a Hub id")
    dtype: str = setting("float32", "data type of the weights: float32, or bfloat16 with LoRA")
    report_to: str | list[str] = setting(
        "none",
        "where figures are reported besides metrics.jsonl: none, tensorboard, trackio, wandb, or a "
        "list of them",
    )


@dataclass(frozen=True)
class TuningSettings(ModelSettings):
    """Settings of a run that trains the model."""

    lora_rank: int = setting(0, "rank of the LoRA adapters; 0: train all weights")
    attention: Attention = setting(
        "auto",
        "kernels of attention in training: auto, transformers' choice; sdpa; eager; or "
        "flash_attention_2 or flash_attention_3, which need a GPU and compute each packed episode "
        "at its own length",
    )
    gradient_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, more time"
    )
    export_dtype: ExportType = setting(
        "auto",
        "data type of the saved models, checkpoint/ and checkpoints/<step>: auto: of the trained "
        "weights (float32 with LoRA); bfloat16: half the size, rounded as vLLM serves them",
    )
    allow_high_learning_rate: bool = setting(
        False, "accept learning rates that are far too high for the size of the model"
    )


@dataclass(frozen=True)
class RolloutSettings(TuningSettings):
    """Settings of a run that samples episodes."""

    engine: str | dict[str, Any] = setting(
        "transformers",
        "the policy that samples: transformers (the trained model itself; a copy if it is sharded "
        "or staleness > 0), vllm, the URLs of vLLM servers, or a mapping with one of them as "
        "`name` and arguments of the policy",
    )
    sample_batch: int = setting(
        128, "largest number of sequences that the engine transformers decodes together"
    )
    in_flight: int = setting(256, "largest number of episodes in flight in one process")
    temperature: float = setting(1.0, "temperature of sampling")
    eval_every: int = setting(
        0,
        "optimizer steps (rft: rounds) between evaluations on held-out problems, besides those "
        "before the first and after the last; 0: never",
    )
    eval_problems: int = setting(50, "held-out problems of an evaluation, from the first on")
    eval_k: int = setting(1, "episodes of each held-out problem")
    eval_env: dict[str, Any] = setting(
        {}, "settings of env that differ in evaluation; by default, the split is `test`"
    )


@dataclass(frozen=True)
class PolicySettings(RolloutSettings):
    """Settings of a run that learns from the rewards of its episodes, such as GRPO and PPO."""

    curriculum: str = setting(
        "",
        "a file of transcripts, of a run or of an evaluation of training problems: train only on "
        "problems with both right and wrong transcripts, highest pass rate first; empty: train on "
        "all problems in random order",
    )
    steps: int = setting(60, "optimizer steps; --resume accepts a larger number")
    prompts: int = setting(16, "problems per step")
    rollouts: int = setting(8, "rollouts per problem, which form a group")
    micro_batch: int = setting(128, "episodes in a forward and backward pass of one process")
    tokens: int = setting(
        0,
        "tokens in a forward and backward pass of one process, in place of micro_batch; the passes "
        "are balanced over all processes; 0: micro_batch counts",
    )
    tokens_in_flight: int = setting(
        0, "largest total length of the episodes in flight, in tokens; 0: only the engine's limit"
    )
    staleness: int = setting(
        0, "batches sampled ahead while the trainer trains; 0: sample and train in turn"
    )
    deadline: float = setting(0.0, "seconds after which a batch's episodes are cut; 0: no deadline")
    oversample: float = setting(
        1.0, "rollouts begun for each kept rollout; the first to finish are kept"
    )
    resample: int = setting(
        0, "times that a group which teaches nothing is replaced (dynamic sampling); 0: off"
    )
    resample_by: ResampleBy = setting(
        "accuracy",
        "groups that teach nothing: accuracy, all right or all wrong; reward, all rewards equal",
    )
    spare: float = setting(
        1.0,
        "rollouts sampled for each trained rollout; the cleaner right ones stay (arXiv 2508.20722)",
    )
    mask_void: bool = setting(
        False, "no loss on episodes with a void turn, neither code nor answer (arXiv 2509.02479)"
    )
    mask_overlong: bool = setting(
        False,
        "no loss on episodes that ended at a budget of tokens, characters or seconds (DAPO's "
        "overlong filtering, arXiv 2503.14476, section 3.4)",
    )
    learning_rate: float = setting(1e-4, "learning rate of the policy, constant")
    clip_low: float = setting(0.2, "distance of the ratio's lower clip from 1")
    clip_high: float = setting(0.28, "distance of the ratio's upper clip from 1")
    kl: float = setting(0.0, "coefficient of the KL to the initial model (estimator k3); paper: 0")
    entropy: float = setting(0.0, "coefficient of the entropy bonus")
    correction: Correction = setting(
        "ratio",
        "the use of the engine's log-probs: ratio: they are the old log-probs of the ratio; token: "
        "truncated importance weights of the tokens correct their mismatch; geometric: episodes "
        "are rejected by the geometric mean of their ratios",
    )
    correction_cap: float = setting(2.0, "largest token weight of correction=token")
    correction_low: float = setting(
        0.99, "smallest geometric mean of an episode that correction=geometric keeps"
    )
    correction_high: float = setting(
        1.01, "largest geometric mean of an episode that correction=geometric keeps"
    )
    save_steps: int = setting(10, "steps between checkpoints for resuming")
    export_steps: int = setting(
        0, "steps between models kept in checkpoints/<step> for evaluation; 0: keep the last only"
    )
    transcripts_every: int = setting(1, "minimum steps between batches whose transcripts are kept")


MOST_STALENESS = 100
"""The largest number of batches sampled ahead."""


def check_policy_settings(settings: PolicySettings, processes: int) -> None:
    """Check the ranges of the shared settings, and that each process gets whole problems.

    Args:
        settings: The run's settings.
        processes: The number of processes that share a step's problems.

    Raises:
        SettingsError: If a setting is out of range. The message proposes a value.
    """
    ones = ("steps", "prompts", "rollouts", "micro_batch", "sample_batch", "in_flight")
    least = dict.fromkeys((*ones, "oversample", "spare", "save_steps", "transcripts_every"), 1)
    zeros = ("deadline", "lora_rank", "export_steps", "tokens", "tokens_in_flight")
    check_least(settings, least | dict.fromkeys((*zeros, "staleness", "resample"), 0))
    if settings.staleness > MOST_STALENESS:
        raise SettingsError(
            f"staleness must be at most {MOST_STALENESS}, not {settings.staleness}: batches lie in "
            "memory, and their weights become too old to learn from"
        )
    if not settings.temperature > 0:
        raise SettingsError(f"temperature must be above 0, not {settings.temperature}")
    if not settings.correction_cap >= 1:
        raise SettingsError(f"correction_cap must be at least 1, not {settings.correction_cap}")
    low, high = settings.correction_low, settings.correction_high
    if not 0 <= low < 1 < high:
        raise SettingsError(
            f"correction_low={low} must be at least 0 and below 1, and correction_high={high} must "
            "be above 1"
        )
    if settings.prompts % processes:
        raise SettingsError(
            f"prompts={settings.prompts} problems per step can't be divided among {processes} "
            f"processes: take a multiple of {processes}"
        )


check_policy = check_policy_settings
"""The former name, which algorithms in other repositories import."""
