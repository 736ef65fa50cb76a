"""GRPO (arXiv 2402.03300, section 4.1) in the environment, on TRL's `GRPOTrainer`.

The reward is the environment's; interpreter tokens carry no loss, no advantage and don't count in a length
normalisation; the old log-probs are those that the engine sampled with.

Other algorithms without a critic are this one with other settings, and where that does not do with other advantages, a
bonus on the reward or other arguments of TRL's: see `train`, and `dr_grpo.py` for the shortest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOConfig

from agents.advantages import group_normalised
from agents.base.board import Bar, BarCallback, console
from agents.base.model import (
    HIGH_RATE,
    Export,
    check_dtype,
    check_learning_rate,
    disable_dropout,
    load_model,
    lora_config,
    save_checkpoint,
)
from agents.base.reporting import PROJECT, REPORT_TO, check_report_to
from agents.base.run import Run, RunLogger, processes
from agents.base.sampler import ENGINE, check_engine, make_policy
from agents.base.selection import CURRICULUM, CleanRollouts, chosen_ids, only, without_void_turns
from agents.base.settings import (
    SANDBOX,
    SettingsError,
    check_least,
    check_trl,
    find_sandbox,
    find_task,
    largest_divisor,
    nearest,
    setting,
    task_of,
    trl_config,
)
from agents.base.sharding import accelerator_config
from agents.base.stopping import StopCallback
from retool_env.integrations.trl import (
    Advantages,
    EngineGRPOTrainer,
    EngineRollouts,
    Normalisation,
    episode_reward,
)
from retool_env.problem import ProblemSource
from retool_env.rollout import RolloutEngine
from retool_env.rollout.progress import Progress, shown
from retool_env.rules import Rules
from retool_env.training.correction import Correction
from retool_env.training.rollouts import ResampleBy
from retool_env.training.rows import is_trainable
from retool_env.transcript import Transcript

os.environ.setdefault(
    "TRL_EXPERIMENTAL_SILENCE", "1"
)  # rollout_func's interface is pinned by setup.cfg

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""TRL's losses that clip the ratio on both sides, and bound it by `delta`."""
CORRECTION = (
    "what the engine's log-probs are: ratio, the old ones of the ratio; token or geometric, what truncated "
    "weights of the tokens, or rejection of episodes by the geometric mean of their ratios, correct"
)
"""What the setting `correction` is."""
CORRECTION_LOW = "smallest geometric mean of an episode's ratios that correction=geometric keeps"
"""What the setting `correction_low` is."""
CORRECTION_HIGH = "largest geometric mean of an episode's ratios that correction=geometric keeps"
"""What the setting `correction_high` is."""
RESAMPLE_BY = (
    "groups that teach nothing: accuracy, all right or all wrong; reward, all of equal reward"
)
"""What the setting `resample_by` is."""
OURS = ("scale_rewards", "multi_objective_aggregation")
"""Fields of TRL's that have no effect here: advantages are the algorithm's, and there is one reward."""

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

Bonus = Callable[[Transcript, int], float]
"""What is added to an episode's reward, given its token budget."""


@dataclass(frozen=True)
class Settings:
    """Settings of the training run."""

    name: str = setting("grpo", "the run's folder is runs/<name>")
    model: str = setting("runs/sft/checkpoint", "a folder or a Hub id")
    dtype: str = setting("float32", "of the weights")
    env: dict[str, Any] = setting(
        {"id": "ReTool-Arithmetic-v0"}, "the environment's id and settings"
    )
    sandbox: str | dict[str, Any] = setting("nsjail", SANDBOX)
    seed: int = setting(0, "of problems and sampling")
    curriculum: str = setting("", CURRICULUM)
    steps: int = setting(60, "optimizer steps; with --resume a run may be given more")
    prompts: int = setting(16, "problems a step")
    rollouts: int = setting(8, "rollouts a problem: the group")
    micro_batch: int = setting(128, "episodes a forward and backward pass")
    engine: str | dict[str, Any] = setting("transformers", ENGINE)
    sample_batch: int = setting(
        128, "sequences that the engine transformers decodes together, at most"
    )
    in_flight: int = setting(256, "episodes in flight at once, at most, in a process")
    tokens_in_flight: int = setting(
        0, "tokens that these may grow to together; 0: no bound but the engine's own"
    )
    staleness: int = setting(
        0, "batches sampled ahead while the trainer trains; 0: they take turns"
    )
    deadline: float = setting(0.0, "seconds after which a batch's episodes are cut; 0: none")
    oversample: float = setting(
        1.0, "rollouts begun for each that is kept: the first to finish are"
    )
    resample: int = setting(
        0, "rounds that replace groups that teach nothing (DAPO's dynamic sampling); 0: none"
    )
    resample_by: str = setting("accuracy", RESAMPLE_BY)
    learning_rate: float = setting(1e-4, "constant")
    allow_high_learning_rate: bool = setting(False, HIGH_RATE)
    loss: str = setting("dapo", "TRL's loss_type: dapo, grpo, dr_grpo, ...")
    clip_low: float = setting(0.2, "lower clip of the ratio")
    clip_high: float = setting(0.28, "upper clip of the ratio")
    ratio_cap: float = setting(
        0.0,
        "largest ratio that weighs a negative advantage, which no clip bounds (TRL's delta); 0: none",
    )
    kl: float = setting(
        0.0,
        "coefficient of the KL (k3, weighed by the ratio) to the initial model; the paper's is 0",
    )
    entropy: float = setting(
        0.0,
        "coefficient of the entropy bonus, the mean of its means over each micro batch's tokens",
    )
    correction: str = setting("ratio", CORRECTION)
    correction_cap: float = setting(2.0, "largest weight of a token, of correction=token")
    correction_low: float = setting(0.99, CORRECTION_LOW)
    correction_high: float = setting(1.01, CORRECTION_HIGH)
    spare: float = setting(
        1.0,
        "rollouts sampled for each trained on; of right ones the cleaner stay (arXiv 2508.20722)",
    )
    mask_void: bool = setting(
        False, "no loss on episodes with a turn that is neither code nor answer (arXiv 2509.02479)"
    )
    temperature: float = setting(1.0, "of sampling")
    lora_rank: int = setting(0, "0: full fine-tuning")
    gradient_checkpointing: bool = setting(False, "less memory, more time")
    save_steps: int = setting(10, "optimizer steps between checkpoints for resuming")
    export_steps: int = setting(
        0, "optimizer steps between models kept in checkpoints/<step>, for evaluation; 0: the last"
    )
    transcripts_every: int = setting(1, "least steps between batches whose transcripts are kept")
    report_to: str | list[str] = setting("none", REPORT_TO)
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
        settings: The run's.
        folder: Of the run.
        resume: Go on where the run in that folder was.
        advantages: Made of the rewards.
        normalise: Made of these advantages and the numbers of tokens, in their place.
        bonus: Added to the environment's reward.
        arguments: Further fields of TRL's `GRPOConfig`, which no setting overrides.

    Returns:
        The folder of the trained model.

    Raises:
        SettingsError: If a setting names nothing there is, a step's episodes can't be divided into micro batches, or a prompt
            does not fit the model.
        SandboxUnavailable: If the sandbox can't work here.
    """
    state = processes()
    accumulation = check_batch(settings, state.num_processes)
    engine, options = check_engine(settings.engine, state.num_processes)
    if engine == "transformers":
        options = {"max_batch": settings.sample_batch, **options}
    run = Run(folder, settings, resume, "steps")
    if run.finished:
        return run.checkpoint
    rules, problems = find_task(settings.env)
    task = task_of(settings.env)
    model, tokenizer = load_model(settings.model, settings.dtype)
    disable_dropout(model)
    check_learning_rate(
        settings.learning_rate,
        model.num_parameters(),
        settings.lora_rank,
        settings.allow_high_learning_rate,
        settings.trl,
    )
    drawn = settings.steps * settings.prompts
    earlier = [steps * settings.prompts for steps in run.earlier]
    ids = chosen_ids(problems, drawn, settings.seed, settings.curriculum, earlier)
    check_prompts(ids, problems, rules, tokenizer, model)
    ours = {
        "output_dir": str(run.trainer),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "num_generations": settings.rollouts,
        "max_completion_length": rules.max_tokens,
        "learning_rate": settings.learning_rate,
        "loss_type": settings.loss,
        "epsilon": settings.clip_low,
        "epsilon_high": settings.clip_high,
        "delta": settings.ratio_cap or None,
        "beta": settings.kl,
        "entropy_coef": settings.entropy,
        "temperature": settings.temperature,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "save_steps": settings.save_steps,
        "seed": settings.seed,
        "report_to": check_report_to(settings.report_to),
        **(arguments or {}),
    }
    others = {
        key: f"it is for loss={loss}"
        for key in settings.trl
        for start, loss in OF_LOSSES.items()
        if key.startswith(start) and ours["loss_type"] != loss
    }
    check_trl(GRPOConfig, {*ours, *OURS}, settings.trl, {**WITHOUT_EFFECT, **others})
    config = trl_config(
        GRPOConfig,
        **ours,
        **{
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_total_limit": 1,
            "bf16": False,
            "use_cpu": not torch.accelerator.is_available(),
            "dataloader_pin_memory": torch.cuda.is_available(),
            "shuffle_dataset": False,
            "run_name": settings.name,
            "project": PROJECT,
            "disable_tqdm": True,
            "accelerator_config": accelerator_config(),
            **settings.trl,
        },
    )
    progress = Progress()
    with ExitStack() as resources:
        sandbox = find_sandbox(settings.sandbox, rules)
        if sandbox is not None:
            resources.callback(sandbox.close)
        run.start()
        point = run.resume_point()
        name = "rl" if rules.interpreter else "rl, text only"
        past = run.metrics()
        bar = resources.enter_context(Bar(name, settings.steps, live=progress, past=past))
        if run.main and not console.is_terminal:
            resources.enter_context(shown(progress, every=60.0))
        stop = StopCallback(task)
        trainer = EngineGRPOTrainer(
            model=model,
            reward_funcs=reward_functions(bonus, rules.max_tokens),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ids}),
            processing_class=tokenizer,
            peft_config=lora_config(settings.lora_rank),
            callbacks=[RunLogger(run), BarCallback(bar), stop],
            rollout_func=_not_yet,
            advantages=advantages,
            normalise=normalise,
            on_trained=Every(settings.transcripts_every, run.write),
            correction=settings.correction,
            correction_cap=settings.correction_cap,
            correction_bounds=(settings.correction_low, settings.correction_high),
            task=task,
        )
        apart = settings.staleness > 0 or trainer.is_fsdp_enabled
        policy = make_policy(
            engine,
            options,
            trainer.model,
            tokenizer,
            settings.model,
            settings.temperature,
            apart,
            trainer.accelerator.device,
        )
        resources.enter_context(policy)
        kind = partial(CleanRollouts, settings.spare) if settings.spare > 1 else EngineRollouts
        rollouts = kind(
            RolloutEngine(
                policy,
                rules,
                sandbox,
                settings.in_flight,
                settings.tokens_in_flight or None,
                progress=progress,
            ),
            # Of a curriculum's problems, also those that replace others.
            only(problems, ids) if settings.curriculum else problems,
            settings.seed,
            staleness=settings.staleness,
            deadline=settings.deadline or None,
            oversample=settings.oversample,
            resample=settings.resample,
            resample_by=settings.resample_by,
            stopping=stop.stopping.asked,
        )
        resources.callback(rollouts.close)
        trainer.rollout_func = without_void_turns(rollouts) if settings.mask_void else rollouts
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        tags = rules.turn_protocol().stop
        if settings.export_steps:
            trainer.add_callback(
                Export(trainer, tokenizer, run.exports, settings.export_steps, tags, task)
            )
        stop.train(trainer, point)
        save_checkpoint(trainer, tokenizer, run.checkpoint, tags, task)
    run.draw()
    run.finish()
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
    """Check that a step's episodes can be shared out.

    Returns:
        How many forward and backward passes a process makes for an optimizer step.

    Raises:
        SettingsError: If they can't.
    """
    counts = ("steps", "prompts", "micro_batch", "sample_batch", "in_flight", "save_steps")
    least = dict.fromkeys((*counts, "oversample", "transcripts_every"), 1)
    least |= dict.fromkeys(
        ("staleness", "resample", "deadline", "tokens_in_flight", "lora_rank", "export_steps"), 0
    )
    check_least(settings, {**least, "rollouts": 2})
    if not settings.temperature > 0:
        raise SettingsError(f"temperature must be above 0, not {settings.temperature}")
    if settings.ratio_cap and settings.loss not in CLIPPED:
        raise SettingsError(
            f"ratio_cap has no part in loss={settings.loss}; it has in {', '.join(CLIPPED)}"
        )
    if 0 < settings.ratio_cap <= 1 + settings.clip_high:
        raise SettingsError(
            f"ratio_cap={settings.ratio_cap} must be above 1 + clip_high={settings.clip_high}; 0 is no cap"
        )
    check_correction(settings)
    check_choice("resample_by", settings.resample_by, get_args(ResampleBy))
    check_dtype(settings.dtype, settings.lora_rank, settings.trl)
    if settings.prompts % processes:
        raise SettingsError(
            f"prompts={settings.prompts} problems a step can't be shared out among {processes} processes, each whole: take a "
            f"multiple of {processes}"
        )
    episodes = settings.prompts * settings.rollouts // processes
    passes, rest = divmod(episodes, settings.micro_batch)
    if rest:
        each = " for each process" if processes > 1 else ""
        raise SettingsError(
            f"a step has prompts * rollouts = {episodes} episodes{each}, which micro_batch={settings.micro_batch} does not "
            f"divide: take micro_batch={largest_divisor(episodes, settings.micro_batch)}"
        )
    return passes


def check_correction(settings: Any) -> None:
    """Check the settings of the correction, of GRPO or PPO.

    Raises:
        SettingsError: If there is no such correction, or its cap or its bounds would take what needs none.
    """
    check_choice("correction", settings.correction, get_args(Correction))
    if not settings.correction_cap >= 1:
        raise SettingsError(f"correction_cap must be at least 1, not {settings.correction_cap}")
    low, high = settings.correction_low, settings.correction_high
    if not 0 <= low < 1 < high:
        raise SettingsError(
            f"correction_low={low} must be from 0 to below 1, and correction_high={high} above 1"
        )


def check_choice(name: str, given: str, known: Sequence[str]) -> None:
    """Check a setting that is one of a few names.

    Raises:
        SettingsError: If it is not, naming the nearest.
    """
    if given not in known:
        raise SettingsError(f"{name}={given}: there are {', '.join(known)}{nearest(given, known)}")


def check_prompts(
    ids: Iterable[str], problems: ProblemSource, rules: Rules, tokenizer: Any, model: Any
) -> None:
    """Check, before hours are spent, that every prompt leaves room for a response.

    Raises:
        SettingsError: Naming the first problem whose prompt does not; or if the tokenizer's chat template lacks what the
            protocol needs.
    """
    context = model.config.get_text_config().max_position_embeddings
    protocol = rules.turn_protocol()
    for problem_id in dict.fromkeys(ids):
        try:
            _, prompt = protocol.prompt(rules.prompt(problems.get(problem_id)), tokenizer)
        except ValueError as error:
            raise SettingsError(f"env.protocol={rules.protocol}: {error}") from error
        size = len(prompt)
        if size >= context:
            raise SettingsError(
                f"the prompt of {problem_id} has {size} tokens, the model's context {context}: take a shorter "
                "env.prompt_template, or leave such problems out"
            )


def reward_functions(bonus: Bonus | None, budget: int) -> list[Callable[..., list[float | None]]]:
    """TRL's reward functions: the environment's reward and, of episodes that are trained on, the bonus."""
    if bonus is None:
        return [episode_reward]

    def episode_bonus(transcript: Sequence[Transcript], **_: Any) -> list[float | None]:
        return [bonus(each, budget) if is_trainable(each) else None for each in transcript]

    return [episode_reward, episode_bonus]


def _not_yet(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Stands in until the trainer has made the model (LoRA and all) that the policy samples from."""
    raise RuntimeError("no rollouts before the policy is set")
