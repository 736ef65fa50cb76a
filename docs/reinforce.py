"""REINFORCE with a leave-one-out baseline: the mean reward of the problem's other rollouts.

python -m agents docs/reinforce.py --preset tiny
"""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from agents.advantages import leave_one_out
from agents.base.board import Bar
from agents.base.fields import RunSettings
from agents.base.figures import pooled
from agents.base.model import load_model
from agents.base.session import Session
from agents.base.settings import setting
from retool_env.integrations.trl import episode_reward, problem_dataset
from retool_env.rollout import RolloutEngine
from retool_env.rollout.transformers import TransformersPolicy

ONE_PROCESS = True


@dataclass(frozen=True)
class Settings(RunSettings):  # RunSettings has env, sandbox and seed
    """The settings that presets and the command line may change."""

    name: str = "reinforce"
    model: str = setting("runs/sft/checkpoint", "a folder or a Hub id")
    dtype: str = setting("float32", "type of the weights")
    steps: int = setting(50, "optimizer steps, each with new rollouts")
    prompts: int = setting(16, "problems per step")
    rollouts: int = setting(8, "rollouts per problem")
    learning_rate: float = setting(1e-4, "learning rate of AdamW")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Train, and return the folder of the trained model.

    Args:
        settings: The settings of the run.
        folder: The folder of the run.
        resume: Whether to continue a run that exists in the folder.
    """
    seed, prompts = settings.seed, settings.prompts
    with Session(settings, folder, resume) as run:
        if run.finished:
            return run.checkpoint
        model, tokenizer = load_model(settings.model, settings.dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
        policy = TransformersPolicy(model, tokenizer)
        ids = problem_dataset(run.problems, settings.steps * prompts, seed)["prompt"]
        engine = RolloutEngine(policy, run.rules, run.open_sandbox())
        run.start()  # all checks are done: creates the folder
        run.resume_point()  # without checkpoints, --resume begins anew
        with Bar("reinforce", settings.steps, live=engine.progress) as bar:
            for step in range(settings.steps):
                run.stopping.check()  # after Ctrl-C or SIGTERM the run ends here
                # Rollouts: prompts * rollouts episodes; the episodes of a problem are adjacent.
                chosen = [run.problems.get(i) for i in ids[step * prompts :][:prompts]]
                asyncio.run(
                    policy.update_weights(step)
                )  # the policy shares the model: only a number
                groups = engine.run(chosen, settings.rollouts, seed=(seed, step))
                episodes = [replace(t, trained_version=step) for group in groups for t in group]
                run.write(episodes)  # transcripts.jsonl
                # Advantages: shape (prompts * rollouts,).
                logged = defaultdict(list)
                rewards = episode_reward(episodes, lambda name, x, to=logged: to[name].append(x))
                logged["reward"] = [r for r in rewards if r is not None]  # None: the sandbox failed
                rewards = torch.tensor([float("nan") if r is None else r for r in rewards])
                advantages = leave_one_out(rewards, settings.rollouts)
                # Loss on the sampled tokens; update.
                tokens = sum(sum(t.loss_mask) for t in episodes)
                for t, advantage in zip(episodes, advantages, strict=True):
                    row = torch.tensor([t.prompt_ids + t.completion_ids])
                    logps = model(row).logits[0, :-1].log_softmax(-1).gather(-1, row[0, 1:, None])
                    mask = torch.tensor(t.loss_mask)  # 1 on sampled tokens, 0 on results
                    response = logps[len(t.prompt_ids) - 1 :, 0]
                    (-advantage * (response * mask).sum() / tokens).backward()
                optimizer.step()
                optimizer.zero_grad()
                figures = pooled([logged])
                run.log({"step": step + 1, **figures})  # metrics.jsonl; sometimes curves.png
                bar.show(step + 1, figures)
        model.save_pretrained(run.checkpoint)
        tokenizer.save_pretrained(run.checkpoint)
        run.task.save(run.checkpoint)  # retool.json, for evaluation
    return run.checkpoint
