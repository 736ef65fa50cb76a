"""Batches of finished episodes for a training step: recorded, or made with given lengths.

The rollouts of a group are adjacent. Made episodes have random token ids, alternating rewards, and
log-probs of the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.base.board import Bar
from agents.base.presets import read_preset
from agents.base.settings import SettingsError, find_sandbox, find_task
from benchmarks.parts.chains import Chain, Turn
from retool_env.problem import Problem
from retool_env.rollout import RolloutEngine
from retool_env.rollout.transformers.policy import load_policy
from retool_env.transcript import Author, Span, StopReason, Transcript, read_transcripts

RESULT_TOKENS = 16
"""The number of tokens of each tool result in a made batch."""


@dataclass(frozen=True)
class Batch:
    """One generation batch of finished episodes."""

    transcripts: tuple[Transcript, ...]
    group: int
    """The number of rollouts per problem."""

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each episode, prompt included."""
        return [len(t.prompt_ids) + len(t.completion_ids) for t in self.transcripts]

    @property
    def padding(self) -> float:
        """The share of padding tokens if prompts and completions are padded to the longest."""
        wide = max(len(t.prompt_ids) for t in self.transcripts)
        wide += max(len(t.completion_ids) for t in self.transcripts)
        return 1 - sum(self.lengths) / (wide * len(self.transcripts))


def record(checkpoint: str, prompts: int, rollouts: int, seed: int) -> Batch:
    """Sample a batch with a checkpoint, in the environment of the preset `tiny`.

    Args:
        checkpoint: The folder of the model.
        prompts: The number of problems.
        rollouts: The number of rollouts per problem.
        seed: The sampling seed.

    Raises:
        SandboxUnavailable: If the sandbox does not work on this machine.
    """
    rules, source = find_task(read_preset("tiny")["env"])
    policy = load_policy(checkpoint, "float32", max_batch=prompts * rollouts)
    sandbox = find_sandbox("nsjail", rules)
    with sandbox or nullcontext(), Bar(f"recording with {checkpoint}", prompts) as bar:
        groups = RolloutEngine(policy, rules, sandbox).run(
            [source[i] for i in range(prompts)], rollouts, seed, lambda *_: bar.advance()
        )
    return Batch(tuple(itertools.chain(*groups)), rollouts)


def read(path: Path) -> Batch:
    """Read the last batch of a run's transcripts.

    Raises:
        SettingsError: If the batch does not consist of whole groups of one size.
    """
    transcripts = list(read_transcripts(path))
    last = [t for t in transcripts if t.trained_version == transcripts[-1].trained_version]
    sizes = {len(list(group)) for _, group in itertools.groupby(last, lambda t: t.problem.id)}
    if len(sizes) != 1:
        raise SettingsError(
            f"the last batch of {path} has groups of {sorted(sizes)}, not of one size: "
            "name another file"
        )
    return Batch(tuple(last), sizes.pop())


def make(
    chains: Iterable[Chain],
    prompt_tokens: int,
    group: int,
    model: Any,
    special: Sequence[int],
    seed: int,
) -> Batch:
    """Make a batch of episodes with given lengths.

    Args:
        chains: The lengths of the turns of each episode; the episodes of a group are adjacent.
        prompt_tokens: The number of tokens of each prompt.
        group: The number of rollouts per problem.
        model: The model that computes the log-probs.
        special: Token ids that must not occur.
        seed: The seed of the random token ids.
    """
    chance = np.random.default_rng(seed)
    allowed = np.setdiff1d(np.arange(model.config.get_text_config().vocab_size), special)
    made: list[Transcript] = []
    prompt: tuple[int, ...] = ()
    for number, chain in enumerate(chains):
        if number % group == 0:
            prompt = _draw(chance, allowed, prompt_tokens)
        spans: list[tuple[Author, tuple[int, ...]]] = [("prompt", prompt)]
        for turn in chain:
            spans.append(("model", _draw(chance, allowed, turn.tokens)))
            if turn.tool_seconds is not None:
                spans.append(("env", _draw(chance, allowed, RESULT_TOKENS)))
        reward = 1.0 if number % 2 else -1.0
        made.append(
            Transcript(
                Problem(str(number // group), "?", "1"),
                tuple(_with_logprobs(spans, model)),
                stop_reason=StopReason.ANSWERED,
                correct=reward > 0,
                reward=reward,
            )
        )
    return Batch(tuple(made), group)


def equal(tokens: int, episodes: int) -> list[Chain]:
    """Chains of equal length: one call in the middle, then an answer.

    Args:
        tokens: The number of tokens of each episode, its result included.
        episodes: The number of episodes.
    """
    half = max(1, (tokens - RESULT_TOKENS) // 2)
    return [(Turn(half, 0.0), Turn(max(1, tokens - RESULT_TOKENS - half), None))] * episodes


def _draw(chance: np.random.Generator, allowed: np.ndarray, size: int) -> tuple[int, ...]:
    return tuple(chance.choice(allowed, size).tolist())


@torch.no_grad()
def _with_logprobs(spans: list[tuple[Author, tuple[int, ...]]], model: Any) -> Iterable[Span]:
    ids = [token for _, part in spans for token in part]
    input_ids = torch.tensor([ids], device=model.device)
    logps = model(input_ids=input_ids).logits[0, :-1].float().log_softmax(-1)
    of_ids = logps.gather(1, input_ids[0, 1:, None])[:, 0].tolist()
    at = 0
    for author, part in spans:
        sampled = tuple(of_ids[at - 1 : at - 1 + len(part)]) if author == "model" else None
        at += len(part)
        yield Span(author, "", part, sampled)
