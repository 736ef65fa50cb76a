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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOConfig

from agents.advantages import group_normalised
from agents.curves import draw_curves
from agents.engine import ENGINE, check_engine, make_policy
from agents.model import load_model, lora_config, save_checkpoint
from agents.progress import Bar, BarCallback, console
from agents.run import Run, RunLogger, processes
from agents.selection import CleanRollouts, without_void_turns
from agents.settings import SANDBOX, SettingsError, check_trl, find_sandbox, find_task, setting
from retool_env.episode import Rules, encode_prompt
from retool_env.integrations.trl import (
    Advantages,
    EngineGRPOTrainer,
    EngineRollouts,
    episode_reward,
    problem_dataset,
)
from retool_env.problems import ProblemSource
from retool_env.rollout import RolloutEngine
from retool_env.rollout.progress import Progress, shown
from retool_env.transcript import Transcript

os.environ.setdefault(
    "TRL_EXPERIMENTAL_SILENCE", "1"
)  # rollout_func's interface is pinned by setup.cfg

SHOWN = {
    "env/accuracy": "accuracy",
    "env/code_ratio": "with code",
    "env/call_pass_rate": "calls ok",
    "completions/mean_length": "tokens",
}
"""Which of the trainer's logs its bar shows, and under what names."""

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
    steps: int = setting(60, "optimizer steps")
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
        0, "rounds that replace groups of equal rewards (DAPO's dynamic sampling)"
    )
    learning_rate: float = setting(1e-4, "constant")
    loss: str = setting("dapo", "TRL's loss_type: grpo, bnpo, dr_grpo, dapo, ...")
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
    entropy: float = setting(0.0, "coefficient of the entropy bonus, a mean over tokens")
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
    transcripts_every: int = setting(1, "steps between those whose transcripts are kept")
    trl: dict[str, Any] = setting({}, "any other field of TRL's GRPOConfig")


def train(
    settings: Settings,
    folder: Path,
    resume: bool = False,
    *,
    advantages: Advantages = group_normalised,
    bonus: Bonus | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Path:
    """Run GRPO, or what differs from it by the last three.

    Args:
        settings: The run's.
        folder: Of the run.
        resume: Go on where the run in that folder was.
        advantages: Made of the rewards.
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
    if 0 < settings.ratio_cap <= 1 + settings.clip_high:
        raise SettingsError(
            f"ratio_cap={settings.ratio_cap} must be above 1 + clip_high={settings.clip_high}; 0 is no cap"
        )
    engine, options = check_engine(settings.engine, state.num_processes)
    if engine == "transformers":
        options = {"max_batch": settings.sample_batch, **options}
    run = Run(folder, settings, resume)
    if run.finished:
        return run.checkpoint
    rules, problems = find_task(settings.env)
    model, tokenizer = load_model(settings.model, settings.dtype)
    dataset = problem_dataset(problems, settings.steps * settings.prompts, settings.seed)
    check_prompts(dataset["prompt"], problems, rules, tokenizer, model)
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
        **(arguments or {}),
    }
    check_trl(GRPOConfig, ours, settings.trl)
    config = GRPOConfig(
        **ours,
        **{
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_total_limit": 1,
            "bf16": False,
            "use_cpu": not torch.accelerator.is_available(),
            "dataloader_pin_memory": torch.cuda.is_available(),
            "shuffle_dataset": False,
            "report_to": "none",
            "disable_tqdm": True,
            **settings.trl,
        },
    )
    progress = Progress()
    with ExitStack() as resources:
        sandbox = find_sandbox(settings.sandbox, rules)
        if sandbox is not None:
            resources.callback(sandbox.close)
        run.start()
        name = "rl" if rules.interpreter else "rl, text only"
        bar = resources.enter_context(Bar(name, settings.steps, live=progress))
        if run.main and not console.is_terminal:
            resources.enter_context(shown(progress, every=60.0))
        point = run.resume_point()
        trainer = EngineGRPOTrainer(
            model=model,
            reward_funcs=reward_functions(bonus, rules.max_tokens),
            args=config,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=lora_config(settings.lora_rank),
            callbacks=[RunLogger(run), BarCallback(bar, SHOWN)],
            rollout_func=_not_yet,
            advantages=advantages,
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
        if hasattr(policy, "close"):
            resources.callback(policy.close)
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
            problems,
            settings.seed,
            lambda step, ts: None if step % settings.transcripts_every else run.write(ts),
            staleness=settings.staleness,
            deadline=settings.deadline or None,
            oversample=settings.oversample,
            resample=settings.resample,
        )
        resources.callback(rollouts.close)
        trainer.rollout_func = without_void_turns(rollouts) if settings.mask_void else rollouts
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.train(resume_from_checkpoint=point)
        save_checkpoint(trainer, tokenizer, run.checkpoint)
    if run.main:
        draw_curves({settings.name: run.metrics()}, run.folder / "curves.png")
    run.finish()
    return run.checkpoint


def check_batch(settings: Settings, processes: int) -> int:
    """Check that a step's episodes can be shared out.

    Returns:
        How many forward and backward passes a process makes for an optimizer step.

    Raises:
        SettingsError: If they can't.
    """
    episodes = settings.prompts * settings.rollouts
    passes, rest = divmod(episodes, settings.micro_batch * processes)
    if rest:
        several = f" * {processes} processes" if processes > 1 else ""
        raise SettingsError(
            f"a step has prompts * rollouts = {episodes} episodes, which micro_batch={settings.micro_batch}{several} does "
            "not divide"
        )
    least = {
        "staleness": 0,
        "resample": 0,
        "deadline": 0,
        "oversample": 1,
        "spare": 1,
        "tokens_in_flight": 0,
        "in_flight": 1,
        "transcripts_every": 1,
    }
    for name, number in least.items():
        if getattr(settings, name) < number:
            raise SettingsError(f"{name} must be at least {number}, not {getattr(settings, name)}")
    if settings.prompts % processes:
        raise SettingsError(
            f"prompts={settings.prompts} problems a step can't be shared out among {processes} processes, each whole"
        )
    return passes


def check_prompts(
    ids: Iterable[str], problems: ProblemSource, rules: Rules, tokenizer: Any, model: Any
) -> None:
    """Check, before hours are spent, that every prompt leaves room for a response.

    Raises:
        SettingsError: Naming the first problem whose prompt does not.
    """
    context = model.config.get_text_config().max_position_embeddings
    for problem_id in dict.fromkeys(ids):
        size = len(encode_prompt(tokenizer, rules.prompt(problems.get(problem_id))))
        if size >= context:
            raise SettingsError(
                f"the prompt of {problem_id} has {size} tokens, the model's context {context}: take a shorter "
                "env.prompt_template, or leave such problems out"
            )


def reward_functions(bonus: Bonus | None, budget: int) -> list[Callable[..., list[float | None]]]:
    """TRL's reward functions: the environment's reward and, of scored episodes, the bonus."""
    if bonus is None:
        return [episode_reward]

    def episode_bonus(transcript: Sequence[Transcript], **_: Any) -> list[float | None]:
        return [None if each.reward is None else bonus(each, budget) for each in transcript]

    return [episode_reward, episode_bonus]


def _not_yet(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Stands in until the trainer has made the model (LoRA and all) that the policy samples from."""
    raise RuntimeError("no rollouts before the policy is set")
