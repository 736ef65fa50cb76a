"""Shared parts of the vLLM tests: a tiny model, and the results of transformers for it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from agents.models.tiny import TAGS, make_checkpoint, make_model
from retool_env.episode import Generation
from retool_env.problems import Problem
from retool_env.rollout import RolloutEngine, ScriptedPolicy
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.rules import Rules

needs_vllm = pytest.mark.skipif(
    # `make test-vllm` sets this variable, so that the tests fail there without vLLM.
    importlib.util.find_spec("vllm") is None and "RETOOL_TEST_VLLM" not in os.environ,
    reason="vLLM is not installed: make test-vllm",
)

ENGINE = {"dtype": "float32", "gpu_memory_utilization": 0.1, "max_num_batched_tokens": 32_768}
"""Settings of vLLM: exact, and small enough for several engines on one machine.

vLLM's build for the CPU ends with an error when it reads the prompt of a request with a seed in
parts, so all prompts of a test fit into one pass.
"""

PROMPTS = [f"Compute {i} + {i * 7}: " * (1 + i % 4) for i in range(9)]

RULES = Rules(max_tokens=200, prompt_template="{query}\n")
CALLS = [Problem(id=str(i), question=f"Compute {i}", answer="42") for i in range(10, 18)]
"""The problems that the model of `make_writer` solves: even numbers with one call, odd numbers with
two calls whose closing tags end inside a token."""

_TAG_AND_MORE = "</code>\nSo "


def make_tagging_checkpoint(folder: Path, seed: int) -> Path:
    """A tiny model that has a token with the end of a tag inside."""
    with mock.patch("agents.models.tiny.TAGS", (*TAGS[:-1], _TAG_AND_MORE)):
        return make_checkpoint(folder, seed)


def make_writer(tokenizer, sandbox):
    """A tiny model that has learned to solve `CALLS` with programs."""

    def turn(text: str) -> str:
        number = int(text.split()[1])
        if text.count("<interpreter>") == 1 + number % 2:
            return "<answer>\n\\boxed{42}\n</answer>"
        if number % 2:
            return f"<code>\nprint(42)  # {number}\n{_TAG_AND_MORE}"
        return f"<code>\n```python\nprint(42)  # {number}\n```\n</code>"

    engine = RolloutEngine(ScriptedPolicy(turn, tokenizer), RULES, sandbox)
    episodes = [[*t.prompt_ids, *t.completion_ids] for [t] in engine.run(CALLS)]
    longest = max(map(len, episodes))
    padding = tokenizer.pad_token_id
    ids = torch.tensor([[*tokens, *[padding] * (longest - len(tokens))] for tokens in episodes])
    labels = ids.masked_fill(ids == padding, -100)
    model = make_model(0)[0]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.95))
    for _ in range(40):
        model(ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def turns_of(policy, prompts, stop=(), budget=40, seeds=None) -> list[Generation]:
    """Sample one turn for each prompt, all at the same time.

    Args:
        policy: The policy.
        prompts: The token ids of the prompts.
        stop: The stop strings.
        budget: The token budget of a turn.
        seeds: A seed for each prompt; `None`: its index.
    """

    async def turns():
        seeded = zip(prompts, seeds or range(len(prompts)), strict=True)
        return await asyncio.gather(*(policy.act(ids, stop, budget, s) for ids, s in seeded))

    return asyncio.run(turns())


def greedy(model, tokenizer, prompts, **settings) -> list[tuple[int, ...]]:
    """The token ids that transformers samples greedily.

    Args:
        model: The model.
        tokenizer: The model's tokenizer.
        prompts: The token ids of the prompts.
        **settings: Further arguments of `turns_of`.
    """
    policy = TransformersPolicy(model, tokenizer, temperature=0)
    return [turn.token_ids for turn in turns_of(policy, prompts, **settings)]


def logprobs_of(
    model, prompt: Sequence[int], turn: Generation, temperature: float = 1.0, top_p: float = 1.0
) -> torch.Tensor:
    """The log-probs of a turn's tokens under the right sampling distribution, shape `(T,)`.

    Args:
        model: The model.
        prompt: The token ids of the prompt, shape `(P,)`.
        turn: The turn.
        temperature: The temperature of the distribution.
        top_p: The nucleus of the distribution.
    """
    sequence = torch.tensor([[*prompt, *turn.token_ids]])
    with torch.no_grad():
        logits = model(sequence).logits[0, len(prompt) - 1 : -1].float() / temperature
    probs = logits.softmax(-1)
    ordered, order = probs.sort(descending=True)
    outside = (ordered.cumsum(-1) - ordered) >= top_p
    probs = torch.zeros_like(probs).scatter(-1, order, ordered.masked_fill(outside, 0.0))
    probs /= probs.sum(-1, keepdim=True)
    return probs.gather(-1, sequence[0, len(prompt) :, None])[:, 0].log()


def turns_under_updates(policy, prompts, updates: Sequence, budget: int) -> list[Generation]:
    """Sample one turn for each prompt while new weights come.

    Args:
        policy: The policy.
        prompts: The token ids of the prompts.
        updates: The arguments of `update_weights` after the version, in turn. The first update has
            the version 1 above the policy's.
        budget: The token budget of a turn.
    """

    async def turns():
        acts = [
            asyncio.create_task(policy.act(ids, (), budget, i)) for i, ids in enumerate(prompts)
        ]
        seconds = 0.02
        while not all(act.done() for act in acts):
            await asyncio.sleep(seconds)
            version = policy.weight_version + 1
            await policy.update_weights(version, *updates[version % len(updates)])
            seconds *= 1.5  # so that turns end on a slow machine, too
        return await asyncio.gather(*acts)

    return asyncio.run(turns())


def assert_own_logprobs(models: Callable[[int], Any], prompts, turns) -> None:
    """Check that each token has the log-prob of the version that sampled it, recomputed.

    Args:
        models: Returns the model of a version.
        prompts: The token ids of the turns' prompts.
        turns: The turns.
    """
    for prompt, turn in zip(prompts, turns, strict=True):
        runs = turn.weight_runs or ((turn.weight_version, len(turn.token_ids)),)
        start = 0
        for version, length in runs:
            own = slice(start, start + length)
            expected = logprobs_of(models(version), prompt, turn)[own]
            got = torch.tensor(turn.logprobs[own])
            torch.testing.assert_close(got, expected, atol=2e-3, rtol=0)
            start += length
        assert start == len(turn.token_ids)
