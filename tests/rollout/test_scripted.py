"""Scripted turns: where they end, and their limits."""

import asyncio

import pytest

from agents.models.tiny import make_tokenizer
from retool_env.rollout import ScriptedPolicy
from retool_env.tokens import decode

STOP = ("</code>", "</answer>")


def turn(text: str, budget: int = 1000):
    policy = ScriptedPolicy(lambda so_far: text, make_tokenizer())
    written = asyncio.run(policy.act([], STOP, budget, 0))
    return written, decode(policy.tokenizer, written.token_ids)


def test_a_turn_ends_with_its_first_closing_tag():
    written, text = turn("<code>1</code> and <answer>2</answer>")
    assert text == "<code>1</code>" and written.stop_reason == "tag"
    assert written.logprobs == (0.0,) * len(written.token_ids)


@pytest.mark.parametrize("text", ["hm", ""])
def test_a_turn_without_a_tag_ends_the_sequence(text):
    written, _ = turn(text)
    assert written.stop_reason == "eos"
    assert written.token_ids[-1] == make_tokenizer().eos_token_id


def test_a_budget_cuts_a_turn():
    written, _ = turn("<code>1</code>", budget=3)
    assert written.stop_reason == "length" and len(written.token_ids) == 3


def test_the_script_sees_the_transcript_and_the_version_is_noted():
    tokenizer = make_tokenizer()
    policy = ScriptedPolicy(str.upper, tokenizer)
    written = asyncio.run(policy.act(tokenizer.encode("abc"), STOP, 10, 0))
    assert decode(tokenizer, written.token_ids[:-1]) == "ABC"
    asyncio.run(policy.update_weights(3))
    assert policy.weight_version == 3
