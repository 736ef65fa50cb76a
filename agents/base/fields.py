"""Fields: the settings that several algorithms share, each defined and described once.

An algorithm's `Settings` are made from one of these classes. They stay flat: presets, `key=value`
and `config.json` name a setting without its class. A class may give a setting another default by
its name alone (`clip_high: float = 0.2`); the description stays.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from agents.base.settings import SettingsError, check_least, setting
from retool_env.training.correction import Correction


@dataclass(frozen=True)
class RunSettings:
    """Settings of any run. An algorithm's own class gives `name` a default."""

    name: str = dataclasses.field(metadata={"help": "the run's folder is runs/<name>"})
    env: dict[str, Any] = setting(
        {"id": "ReTool-Arithmetic-v0"}, "the environment's id and settings"
    )
    sandbox: str | dict[str, Any] = setting(
        "nsjail",
        "where programs run: nsjail, unsafe, a server's http://..., or a mapping of make_sandbox's "
        "arguments",
    )
    seed: int = setting(0, "of all that is drawn at random: weights, problems, sampling, order")


@dataclass(frozen=True)
class ModelSettings(RunSettings):
    """Settings of a run that begins with a model and reports its figures."""

    model: str = setting("runs/sft/checkpoint", "a folder or a Hub id")
    dtype: str = setting("float32", "of the weights")
    report_to: str | list[str] = setting(
        "none",
        "where figures go beside metrics.jsonl: none, tensorboard, trackio, wandb, or a list of "
        "these",
    )


@dataclass(frozen=True)
class TuningSettings(ModelSettings):
    """Settings of a run that trains this model."""

    lora_rank: int = setting(0, "of adapters on all that is trained; 0: full fine-tuning")
    gradient_checkpointing: bool = setting(False, "less memory, more time")
    allow_high_learning_rate: bool = setting(
        False, "train with a rate far above what a model of this size bears, rather than refuse it"
    )


@dataclass(frozen=True)
class RolloutSettings(TuningSettings):
    """Settings of a run that samples episodes."""

    engine: str | dict[str, Any] = setting(
        "transformers",
        "what samples: transformers (the trained model itself; a copy of it where it is sharded, or "
        "staleness > 0), vllm, vLLM servers' URLs, or a mapping {name: one of these, and arguments "
        "of its policy}",
    )
    sample_batch: int = setting(
        128, "sequences that the engine transformers decodes together, at most"
    )
    in_flight: int = setting(256, "episodes in flight at once, at most, in a process")
    temperature: float = setting(1.0, "of sampling")


@dataclass(frozen=True)
class PolicySettings(RolloutSettings):
    """Settings of a run that learns from the rewards of its episodes: GRPO's and PPO's."""

    curriculum: str = setting(
        "",
        "a file of transcripts (of a run, or of an evaluation of training problems): only problems "
        "that they got right sometimes, but not always, are trained on, and those with the highest "
        "pass rate first; empty: all, in random order",
    )
    steps: int = setting(60, "optimizer steps; with --resume a run may be given more")
    prompts: int = setting(16, "problems a step")
    rollouts: int = setting(8, "rollouts a problem: the group")
    micro_batch: int = setting(128, "episodes a forward and backward pass, of one process")
    deadline: float = setting(0.0, "seconds after which a batch's episodes are cut; 0: none")
    mask_void: bool = setting(
        False, "no loss on episodes with a turn that is neither code nor answer (arXiv 2509.02479)"
    )
    learning_rate: float = setting(1e-4, "of the policy, constant")
    clip_low: float = setting(0.2, "lower clip of the ratio")
    clip_high: float = setting(0.28, "upper clip of the ratio")
    kl: float = setting(0.0, "coefficient of the KL (k3) to the initial model; the paper's is 0")
    entropy: float = setting(0.0, "coefficient of the entropy bonus")
    correction: Correction = setting(
        "ratio",
        "what the engine's log-probs are: ratio, the old ones of the ratio; token or geometric, what "
        "truncated weights of the tokens, or rejection of episodes by the geometric mean of their "
        "ratios, correct",
    )
    correction_cap: float = setting(2.0, "largest weight of a token, of correction=token")
    correction_low: float = setting(
        0.99, "smallest geometric mean of an episode's ratios that correction=geometric keeps"
    )
    correction_high: float = setting(
        1.01, "largest geometric mean of an episode's ratios that correction=geometric keeps"
    )
    save_steps: int = setting(10, "steps between checkpoints for resuming")
    export_steps: int = setting(
        0, "steps between models kept in checkpoints/<step>, for evaluation; 0: the last"
    )
    transcripts_every: int = setting(1, "least steps between batches whose transcripts are kept")


def check_policy(settings: PolicySettings, processes: int) -> None:
    """Check the shared numbers, and that each process gets whole problems.

    Args:
        settings: The run's settings.
        processes: The number of processes that share a step's problems.

    Raises:
        SettingsError: If one is out of range; the message says what to write instead.
    """
    ones = ("steps", "prompts", "rollouts", "micro_batch", "sample_batch", "in_flight")
    least = dict.fromkeys((*ones, "save_steps", "transcripts_every"), 1)
    check_least(settings, least | dict.fromkeys(("deadline", "lora_rank", "export_steps"), 0))
    if not settings.temperature > 0:
        raise SettingsError(f"temperature must be above 0, not {settings.temperature}")
    if not settings.correction_cap >= 1:
        raise SettingsError(f"correction_cap must be at least 1, not {settings.correction_cap}")
    low, high = settings.correction_low, settings.correction_high
    if not 0 <= low < 1 < high:
        raise SettingsError(
            f"correction_low={low} must be from 0 to below 1, and correction_high={high} above 1"
        )
    if settings.prompts % processes:
        raise SettingsError(
            f"prompts={settings.prompts} problems a step can't be shared out among {processes} "
            f"processes, each whole: take a multiple of {processes}"
        )
