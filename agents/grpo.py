"""GRPO (arXiv 2402.03300, section 4.1) in the environment, on TRL's `GRPOTrainer`.

The reward is the environment's; interpreter tokens carry no loss, no advantage and don't count in a length
normalisation; the old log-probs are those that the engine sampled with.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOConfig

from agents.curves import draw_curves
from agents.model import load_model, lora_config, save_checkpoint
from agents.progress import Bar, BarCallback
from agents.run import Run, RunLogger
from agents.settings import SANDBOX, SettingsError, check_trl, find_sandbox, find_task, setting
from retool_env.episode import Rules, encode_prompt
from retool_env.integrations.trl import (
    EngineGRPOTrainer,
    EngineRollouts,
    episode_reward,
    problem_dataset,
)
from retool_env.problems import ProblemSource
from retool_env.rollout import RolloutEngine
from retool_env.rollout.transformers import TransformersPolicy

os.environ.setdefault(
    "TRL_EXPERIMENTAL_SILENCE", "1"
)  # rollout_func's interface is pinned by setup.cfg


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
    sample_batch: int = setting(128, "episodes sampled together, at most")
    learning_rate: float = setting(1e-4, "constant")
    loss: str = setting("dapo", "TRL's loss_type: grpo, bnpo, dr_grpo, dapo, ...")
    clip_low: float = setting(0.2, "lower clip of the ratio")
    clip_high: float = setting(0.28, "upper clip of the ratio")
    kl: float = setting(0.0, "coefficient of the KL to the initial model; the paper's is 0")
    temperature: float = setting(1.0, "of sampling")
    lora_rank: int = setting(0, "0: full fine-tuning")
    gradient_checkpointing: bool = setting(False, "less memory, more time")
    save_steps: int = setting(10, "optimizer steps between checkpoints for resuming")
    transcripts_every: int = setting(1, "steps between those whose transcripts are kept")
    trl: dict[str, Any] = setting({}, "any other field of TRL's GRPOConfig")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run GRPO.

    Returns:
        The folder of the trained model.

    Raises:
        SettingsError: If a setting names nothing there is, a step's episodes can't be divided into micro batches, or a prompt
            does not fit the model.
        SandboxUnavailable: If the sandbox can't work here.
    """
    episodes = settings.prompts * settings.rollouts
    if episodes % settings.micro_batch:
        raise SettingsError(
            f"a step has prompts * rollouts = {episodes} episodes, which micro_batch={settings.micro_batch} does not "
            "divide"
        )
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
        "gradient_accumulation_steps": episodes // settings.micro_batch,
        "num_generations": settings.rollouts,
        "max_completion_length": rules.max_tokens,
        "learning_rate": settings.learning_rate,
        "loss_type": settings.loss,
        "epsilon": settings.clip_low,
        "epsilon_high": settings.clip_high,
        "beta": settings.kl,
        "temperature": settings.temperature,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "save_steps": settings.save_steps,
        "seed": settings.seed,
    }
    check_trl(GRPOConfig, ours, settings.trl)
    config = GRPOConfig(
        **ours,
        **{
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_total_limit": 1,
            "bf16": False,
            "dataloader_pin_memory": torch.cuda.is_available(),
            "shuffle_dataset": False,
            "report_to": "none",
            "disable_tqdm": True,
            **settings.trl,
        },
    )
    sandbox = find_sandbox(settings.sandbox, rules)
    run.start()
    try:
        with Bar("rl" if rules.interpreter else "rl, text only", settings.steps) as bar:
            point = run.resume_point()
            trainer = EngineGRPOTrainer(
                model=model,
                reward_funcs=episode_reward,
                args=config,
                train_dataset=dataset,
                processing_class=tokenizer,
                peft_config=lora_config(settings.lora_rank),
                callbacks=[
                    RunLogger(run),
                    BarCallback(
                        bar,
                        {
                            "env/accuracy": "accuracy",
                            "env/code_ratio": "with code",
                            "env/call_pass_rate": "calls ok",
                            "completions/mean_length": "tokens",
                        },
                    ),
                ],
                rollout_func=_not_yet,
            )
            policy = TransformersPolicy(
                trainer.model,
                tokenizer,
                temperature=settings.temperature,
                max_batch=settings.sample_batch,
            )
            trainer.rollout_func = EngineRollouts(
                RolloutEngine(policy, rules, sandbox),
                problems,
                settings.seed,
                lambda step, ts: None if step % settings.transcripts_every else run.write(ts),
            )
            for callback in (PrinterCallback, ProgressCallback):
                trainer.remove_callback(callback)
            trainer.train(resume_from_checkpoint=point)
    finally:
        if sandbox is not None:
            sandbox.close()
    save_checkpoint(trainer, tokenizer, run.checkpoint)
    draw_curves({settings.name: run.metrics()}, run.folder / "curves.png")
    run.finish()
    return run.checkpoint


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


def _not_yet(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Stands in until the trainer has made the model (LoRA and all) that the policy samples from."""
    raise RuntimeError("no rollouts before the policy is set")
