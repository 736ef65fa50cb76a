"""Chains: the model that does not end a turn, and checked tool times."""

import asyncio

import pytest
import torch

from benchmarks.parts.chains import (
    CHAIN_RULES,
    ChainPolicy,
    ChainTool,
    ToolTimes,
    Turn,
    endless,
    make_chat_model,
    make_problems,
)
from retool_env.protocol.tags import closing_tags
from retool_env.rollout import RolloutEngine
from retool_env.rollout.simulated import Habits, SimulatedPolicy, Speed
from retool_env.rollout.transformers.policy import TransformersPolicy

CHAINS = [
    (Turn(40, 0.05), Turn(25, 0.05), Turn(20, None)),
    (Turn(30, 0.05), Turn(50, None)),
    (Turn(24, None),),
]


CHAT = make_chat_model(0)[1]


def test_a_model_that_ends_a_turn_early_is_refused() -> None:
    policy = SimulatedPolicy(CHAT, Speed(1e-6, 0, 0), Habits(20, spread=0))
    with pytest.raises(RuntimeError, match="early"):
        RolloutEngine(ChainPolicy(policy, CHAINS), CHAIN_RULES, ChainTool(CHAINS)).run(
            make_problems(CHAINS)
        )


def test_tool_times_are_checked() -> None:
    with pytest.raises(ValueError, match="median"):
        ToolTimes(3.0, 0.05, 5.0)


def test_the_endless_model_does_not_end_a_turn() -> None:
    model, tokenizer = make_chat_model(0)
    ids = tokenizer.encode("episode 1", return_tensors="pt")
    with torch.no_grad():
        before = model(ids).logits
        after = endless(model, tokenizer)(ids).logits
    barred = [i for i in range(len(tokenizer)) if (after - before)[0, 0, i] < -9e3]
    texts = {tokenizer.decode([i]) for i in barred}
    assert {"<", "<|end|>", "<|im_end|>", "<tool_call>", "\n```\n</code>"} <= texts
    assert "a" not in texts and ">" not in texts and len(barred) < 30
    free = [i for i in range(len(tokenizer)) if i not in barred]
    assert torch.equal(after[..., free], before[..., free])
    policy = TransformersPolicy(model, tokenizer)
    generation = asyncio.run(policy.act(ids[0].tolist(), closing_tags(True), 300, 0))
    assert (len(generation.token_ids), generation.stop_reason) == (300, "length")
