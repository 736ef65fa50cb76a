"""REINFORCE against the mean of a problem's other rollouts: python -m agents docs/reinforce.py --preset tiny."""

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
class Settings(RunSettings):  # which have env, sandbox and seed
    """What presets and the command line may set."""

    name: str = "reinforce"
    model: str = setting("runs/sft/checkpoint", "a folder or a Hub id")
    dtype: str = setting("float32", "of the weights")
    steps: int = setting(50, "updates, each with rollouts of its own")
    prompts: int = setting(16, "problems a step")
    rollouts: int = setting(8, "rollouts a problem")
    learning_rate: float = setting(1e-4, "AdamW's")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Returns the trained model's folder."""
    seed, prompts = settings.seed, settings.prompts
    with Session(settings, folder, resume) as run:
        if run.finished:
            return run.checkpoint
        model, tokenizer = load_model(settings.model, settings.dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
        policy = TransformersPolicy(model, tokenizer)
        ids = problem_dataset(run.problems, settings.steps * prompts, seed)["prompt"]
        engine = RolloutEngine(policy, run.rules, run.open_sandbox())
        run.start()  # all is checked: from here on there is a folder
        run.resume_point()  # none: it keeps no checkpoints, so --resume begins anew
        with Bar("reinforce", settings.steps, live=engine.progress) as bar:
            for step in range(settings.steps):
                # Rollouts: prompts * rollouts episodes, those of a problem side by side.
                chosen = [run.problems.get(i) for i in ids[step * prompts :][:prompts]]
                asyncio.run(policy.update_weights(step))  # they are in the model already
                groups = engine.run(chosen, settings.rollouts, seed=(seed, step))
                episodes = [replace(t, trained_version=step) for group in groups for t in group]
                run.write(episodes)  # transcripts.jsonl
                # Advantages, one an episode.
                logged = defaultdict(list)
                rewards = episode_reward(episodes, lambda name, x, to=logged: to[name].append(x))
                logged["reward"] = [r for r in rewards if r is not None]  # None: the sandbox failed
                rewards = torch.tensor([float("nan") if r is None else r for r in rewards])
                advantages = leave_one_out(rewards, settings.rollouts)
                # Loss, on the tokens that the model wrote; update.
                tokens = sum(sum(t.loss_mask) for t in episodes)
                for t, advantage in zip(episodes, advantages, strict=True):
                    row = torch.tensor([t.prompt_ids + t.completion_ids])
                    logps = model(row).logits[0, :-1].log_softmax(-1).gather(-1, row[0, 1:, None])
                    own = torch.tensor(t.loss_mask)  # 1 on what the model wrote, 0 on results
                    response = logps[len(t.prompt_ids) - 1 :, 0]
                    (-advantage * (response * own).sum() / tokens).backward()
                optimizer.step()
                optimizer.zero_grad()
                figures = pooled([logged])
                run.log({"step": step + 1, **figures})  # metrics.jsonl, and curves.png now and then
                bar.show(step + 1, figures)
        model.save_pretrained(run.checkpoint)
        tokenizer.save_pretrained(run.checkpoint)
        run.task.save(run.checkpoint)  # retool.json: evaluation finds the task there
    return run.checkpoint
