"""Batches of finished episodes, as a training step takes them: recorded ones, and ones whose lengths are drawn or equal.

Groups stand side by side, in order. In what is not recorded the ids are random, rewards alternate, and log-probs are the model's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
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
"""Of each call's result, where it is not recorded."""


@dataclass(frozen=True)
class Batch:
    """One generation batch."""

    transcripts: tuple[Transcript, ...]
    group: int
    """Rollouts a problem."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each episode, prompt included."""
        return [len(t.prompt_ids) + len(t.completion_ids) for t in self.transcripts]

    @property
    def padding(self) -> float:
        """The share of padding where prompts are padded to the longest, and completions too."""
        wide = max(len(t.prompt_ids) for t in self.transcripts)
        wide += max(len(t.completion_ids) for t in self.transcripts)
        return 1 - sum(self.lengths) / (wide * len(self.transcripts))


def record(checkpoint: str, prompts: int, rollouts: int, seed: int) -> Batch:
    """Sample a batch with a checkpoint, in the environment of the preset `tiny` and its sandbox.

    Raises:
        SandboxUnavailable: If the sandbox can't work here.
    """
    rules, source = find_task(read_preset("tiny")["env"])
    policy = load_policy(checkpoint, "float32", max_batch=prompts * rollouts)
    sandbox = find_sandbox("nsjail", rules)
    try:
        with Bar(f"recording with {checkpoint}", prompts) as bar:
            groups = RolloutEngine(policy, rules, sandbox).run(
                [source[i] for i in range(prompts)], rollouts, seed, lambda *_: bar.advance()
            )
    finally:
        if sandbox is not None:
            sandbox.close()
    return Batch(tuple(itertools.chain(*groups)), rollouts)


def read(path: Path) -> Batch:
    """The last batch of a run's transcripts.

    Raises:
        SettingsError: If it is not made of whole groups of one size.
    """
    every = list(read_transcripts(path))
    last = [t for t in every if t.trained_version == every[-1].trained_version]
    sizes = {len(list(group)) for _, group in itertools.groupby(last, lambda t: t.problem.id)}
    if len(sizes) != 1:
        raise SettingsError(
            f"the last batch of {path} has groups of {sorted(sizes)}, not of one size"
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
    """A batch of given lengths.

    Args:
        chains: What each episode writes, a group's one after the other.
        prompt_tokens: Of each prompt.
        group: Rollouts a problem.
        model: Whose log-probs they get.
        special: Ids that are not to occur.
        seed: Of the ids.
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
    """Episodes that write as much: a call in the middle, and an answer."""
    half = max(1, (tokens - RESULT_TOKENS) // 2)
    return [(Turn(half, 0.0), Turn(max(1, tokens - RESULT_TOKENS - half), None))] * episodes


def _draw(chance: np.random.Generator, allowed: np.ndarray, size: int) -> tuple[int, ...]:
    return tuple(chance.choice(allowed, size).tolist())


@torch.no_grad()
def _with_logprobs(spans: list[tuple[Author, tuple[int, ...]]], model: Any) -> Iterable[Span]:
    ids = [token for _, part in spans for token in part]
    given = torch.tensor([ids], device=model.device)
    logps = model(input_ids=given).logits[0, :-1].float().log_softmax(-1)
    own = logps.gather(1, given[0, 1:, None])[:, 0].tolist()
    at = 0
    for author, part in spans:
        sampled = tuple(own[at - 1 : at - 1 + len(part)]) if author == "model" else None
        at += len(part)
        yield Span(author, "", part, sampled)
