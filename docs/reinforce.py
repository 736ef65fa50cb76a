"""REINFORCE against the mean of a problem's other rollouts: python -m agents docs/reinforce.py --preset tiny."""

import asyncio
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from agents.advantages import leave_one_out
from agents.base.board import Bar
from agents.base.figures import pooled
from agents.base.model import load_model
from agents.base.run import Run
from agents.base.settings import find_sandbox, find_task, setting, task_of
from retool_env.integrations.trl import episode_reward, problem_dataset
from retool_env.rollout import RolloutEngine
from retool_env.rollout.transformers import TransformersPolicy

ONE_PROCESS = True


@dataclass(frozen=True)
class Settings:
    """What presets and the command line may set."""

    name: str = setting("reinforce", "the run's folder is runs/<name>")
    model: str = setting("runs/sft/checkpoint", "a folder or a Hub id")
    dtype: str = setting("float32", "of the weights")
    env: dict = setting({"id": "ReTool-Arithmetic-v0"}, "the environment's id and settings")
    steps: int = setting(50, "updates, each with rollouts of its own")
    prompts: int = setting(16, "problems a step")
    rollouts: int = setting(8, "rollouts a problem")
    learning_rate: float = setting(1e-4, "AdamW's")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Returns the trained model's folder."""
    run = Run(folder, settings, resume)
    rules, problems = find_task(settings.env)
    model, tokenizer = load_model(settings.model, settings.dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    policy = TransformersPolicy(model, tokenizer)
    ids = problem_dataset(problems, settings.steps * settings.prompts, seed=0)["prompt"]
    with find_sandbox("nsjail", rules) or nullcontext() as sandbox:
        run.start()
        run.resume_point()  # none: it keeps no checkpoints, so --resume begins anew
        engine = RolloutEngine(policy, rules, sandbox)
        with Bar("reinforce", settings.steps, live=engine.progress) as bar:
            for step in range(settings.steps):
                chosen = [
                    problems.get(i) for i in ids[step * settings.prompts :][: settings.prompts]
                ]
                asyncio.run(policy.update_weights(step))  # they are in the model already
                groups = engine.run(chosen, settings.rollouts, seed=(0, step))
                episodes = [replace(t, trained_version=step) for group in groups for t in group]
                run.write(episodes)  # transcripts.jsonl
                logged = defaultdict(list)
                rewards = episode_reward(episodes, lambda name, x, to=logged: to[name].append(x))
                logged["reward"] = [r for r in rewards if r is not None]  # None: the sandbox failed
                rewards = torch.tensor([float("nan") if r is None else r for r in rewards])
                advantages = leave_one_out(rewards, settings.rollouts)
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
    task_of(settings.env).save(run.checkpoint)  # retool.json: evaluation finds the task there
    run.finish()
    return run.checkpoint
