"""The parts of an answer: reasoning, calls, counts and the names of the model."""

from types import SimpleNamespace as Values

import pytest

from retool_env.protocol.tags import closing_tags
from retool_env.rollout.openai.answers import answered_as, stands_in_reasoning, usage_of
from retool_env.rollout.policy import AnsweredAs, Usage

STOP = closing_tags(True)
TAGGED = "It is <answer>4</answer>."


def choice(content, **extra):
    return Values(message=Values(content=content, model_extra=extra))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (choice("", reasoning_content=TAGGED), True),
        (choice(None, reasoning=TAGGED), True),
        (choice("I am done.", reasoning=TAGGED), True),
        (choice("", reasoning="So <tool_call>{}</tool_call>"), True),
        (choice("", reasoning="So <answer>4"), True),  # the stop string is cut off
        (choice("I am done.", reasoning="They want <answer> at the end."), False),
        (choice(TAGGED, reasoning=TAGGED), False),
        (choice("<code>1", reasoning=TAGGED), False),
        (choice("", reasoning="Hm."), False),
        (choice("", reasoning=5), False),
        (choice("", reasoning=None), False),
        (choice(7, reasoning=TAGGED), False),
        (choice([{"type": "thinking", "thinking": [{"text": TAGGED}]}]), True),
        (choice([{"type": "thinking", "thinking": TAGGED}, {"type": "text", "text": ""}]), True),
        (Values(message="x"), False),
        (Values(), False),
    ],
)
def test_an_answer_in_the_reasoning_alone_is_seen(given, expected):
    assert stands_in_reasoning(given, STOP) is expected


def test_a_native_call_beside_the_reasoning_is_a_call():
    given = choice("", reasoning=TAGGED)
    given.message.tool_calls = [{"id": "a"}]
    assert not stands_in_reasoning(given, STOP)


@pytest.mark.parametrize(
    ("fields", "cached"),
    [
        ({"prompt_tokens_details": Values(cached_tokens=3)}, 3),
        ({"prompt_tokens_details": Values(cached_tokens=None), "prompt_cache_hit_tokens": 4}, 4),
        ({"prompt_tokens_details": None, "cached_tokens": 5}, 5),
        ({"cache_read_input_tokens": 6}, 6),
        ({"cache_read_input_tokens": 99}, 10),  # no more than were read
        ({"cached_tokens": "7"}, 0),
        ({}, 0),
    ],
)
def test_cached_tokens_are_read_in_every_form(fields, cached):
    used = Values(prompt_tokens=10, completion_tokens=2, **fields)
    assert usage_of(Values(usage=used)) == Usage(1, 10, 2, 0, cached)


def test_the_names_of_a_model_hold_no_key():
    key = "sk-123456789"
    reply = Values(model=f"m for {key}", system_fingerprint="f" * 999)
    assert answered_as(reply, key) == AnsweredAs("m for [redacted]", "f" * 200)
    assert answered_as(Values(model="", system_fingerprint=5), None) is None
