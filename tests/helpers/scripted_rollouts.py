"""Runs of GRPO and PPO whose model writes a script, and the tokens that they train on.

The question of a problem is the role of its episodes:

    right   a call, then the right answer
    wrong   a call, then one of two wrong answers, whose rewards differ
    mixed   right or wrong; the call of a third of the episodes fails
    void    nothing that counts, or the right answer
    long    text until the token budget, or the right answer
    slow    a turn without an end, or the right answer
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from agents import grpo
from agents.base import session
from agents.base.minibatch import Batch
from agents.base.presets import load_settings
from agents.base.run import Run
from helpers.small_runs import records
from retool_env.episode import Generation
from retool_env.problems import Problem, ProblemList
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import Transcript

ROLES = ("right", "wrong", "mixed", "void", "long")
BUDGET, GROUP = 60, 4


def reward(transcript: Transcript) -> float:
    """1 for a right answer; of the two wrong answers one is better than the other."""
    if transcript.correct:
        return 1.0
    return -0.5 if transcript.spans[-1].text.endswith("3}\n</answer>") else -1.0


RULES = Rules(max_tokens=BUDGET, prompt_template="{query}\n", max_calls=1, reward=reward)


class Box:
    """A sandbox that runs nothing: `print(0)` fails."""

    async def run_async(self, code: str, limits: Any = None, **_: Any) -> Execution:
        failed = "print(0)" in code
        return Execution(Outcome.RUNTIME_ERROR, "", "no") if failed else Execution(Outcome.OK, "7")

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Row:
    """An episode as it reached the loss."""

    transcript: Transcript
    mask: list[bool]
    """Whether a token of the completion is trained on."""
    reward: float | None
    """The reward with its bonus; `None`: the episode is not trained on."""


@dataclass
class Ran:
    """The record of a run."""

    folder: Path
    rows: list[list[Row]]
    """The episodes of each step."""
    others: list[list[Transcript]]
    """The episodes of each step that were sampled and not trained on."""
    most: int = 0
    """The largest number of turns at the same time."""
    temperatures: set[float] = dataclasses.field(default_factory=set)

    @property
    def records(self) -> list[dict[str, Any]]:
        return records(self.folder)

    @property
    def episodes(self) -> list[Transcript]:
        return [row.transcript for rows in self.rows for row in rows]


def check_own_tokens(ran: Ran) -> None:
    """Check that a row trains on all tokens that the model sampled, or on none, and on no other."""
    for row in (row for rows in ran.rows for row in rows):
        own = [bool(each) for each in row.transcript.loss_mask]
        beyond = row.mask[len(own) :] if row.mask[len(own) :] else []
        assert not any(beyond)
        assert row.mask[: len(own)] == own or not any(row.mask)


def _turn(role: str, written: str, seed: int) -> str | None:
    """The text of a turn; `None`: the turn does not end."""
    odd = seed % 2 == 1
    if role == "slow" and odd:
        return None
    if role == "void" and odd:
        return "hm"
    if role == "long" and odd:
        return "o" * BUDGET
    if role in ("void", "long", "slow"):
        return "<answer>\n\\boxed{1}\n</answer>"
    if not written:
        program = 0 if role == "mixed" and seed % 3 == 0 else 7
        return f"<code>\n```python\nprint({program})\n```\n</code>"
    right = role == "right" or (role == "mixed" and odd)
    return f"<answer>\n\\boxed{{{1 if right else 2 + seed % 2}}}\n</answer>"


@contextmanager
def _scripted(ran: Ran) -> Iterator[None]:
    running = 0

    async def act(
        self: Any, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        nonlocal running
        running += 1
        ran.most = max(ran.most, running)
        ran.temperatures.add(self.temperature)
        try:
            version = self.weight_version
            await asyncio.sleep(0.001)
            role, _, written = self.tokenizer.decode(token_ids).partition("\n")
            text = _turn(role, written, seed)
            if text is None:
                await asyncio.Event().wait()
            ids = tuple(self.tokenizer.encode(text))
            end = "eos" if text == "hm" else "tag" if len(ids) < budget else "length"
            ids = ids[:budget]
            logprob = -5.0 if seed % 4 < 2 else -7.0
            return Generation(ids, (logprob,) * len(ids), end, weight_version=version)
        finally:
            running -= 1

    with (
        mock.patch.object(TransformersPolicy, "act", act),
        mock.patch.object(session, "find_sandbox", lambda setting, rules: Box()),
        mock.patch.object(Run, "draw", lambda self: None),
    ):
        yield


@contextmanager
def _watched(ran: Ran) -> Iterator[None]:
    of = Batch.of
    score = grpo.EngineGRPOTrainer._generate_and_score_completions

    def batch_of(rows: Any, device: Any = "cpu", rewards: Any = None) -> Batch:
        batch = of(rows, device, rewards)
        ran.others.append([episode for each in rows["untrained"] for episode in each])
        ran.rows.append([])
        for i, transcript in enumerate(rows["transcript"]):
            first = len(rows["prompt_ids"][i]) - 1
            mask = batch.mask[i, first : first + len(rows["completion_ids"][i])].tolist()
            found = None if rewards[i] is None else batch.rewards[i].item()
            ran.rows[-1].append(Row(transcript, mask, found))
        return batch

    def scored(self: Any, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = score(self, inputs)
        masks = (output["completion_mask"] * output["tool_mask"]).bool().tolist()
        rewards = [None if r != r else r for r in self._rewards.tolist()]  # NaN
        ran.others.append([episode for each in inputs for episode in each["untrained"]])
        parts = zip(inputs, masks, rewards, strict=True)
        ran.rows.append([Row(each["transcript"], mask, r) for each, mask, r in parts])
        return output

    with (
        mock.patch.object(Batch, "of", batch_of),
        mock.patch.object(grpo.EngineGRPOTrainer, "_generate_and_score_completions", scored),
    ):
        yield


def run(name: str, model: str, folder: Path, roles: Sequence[str] = ROLES, **overrides: Any) -> Ran:
    """Train for a step.

    Args:
        name: The algorithm.
        model: The folder of the initial model.
        folder: The run's folder.
        roles: The problems; each step has all of them.
        **overrides: Settings of the algorithm.
    """
    algorithm = importlib.import_module(f"agents.{name}")
    rollouts = overrides.get("rollouts", GROUP)
    values = {
        "model": model,
        "name": name,
        "steps": 1,
        "prompts": len(roles),
        "rollouts": GROUP,
        "micro_batch": len(roles) * rollouts,
        **({"mini_batch": len(roles) * rollouts, "critic_warmup": 0} if name == "ppo" else {}),
        **({"resample": 0} if name == "dapo" else {}),
        **overrides,
    }
    pairs = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    settings = load_settings(algorithm.Settings, name, "tiny", pairs)
    ran = Ran(folder, [], [])
    problems = ProblemList(Problem(role, role, "1") for role in roles)
    task = mock.patch.object(session, "find_task", lambda env: (RULES, problems))
    with task, _scripted(ran), _watched(ran):
        algorithm.train(settings, folder)
    return ran
