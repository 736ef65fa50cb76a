"""Finish reasons: the end that each name means, and ends without a name."""

import pytest

from retool_env.protocol.tags import closing_tags
from retool_env.rollout.openai.ends import guessed_end, named_end

STOP = closing_tags(True)


@pytest.mark.parametrize(
    ("end", "names"),
    [
        ("stop", ["stop", "STOP", "stop_sequence", "STOP_SEQUENCE", "end", "COMPLETE"]),
        ("own", ["eos", "eos_token", "end_turn", "EOS"]),
        ("call", ["tool_calls", "tool_call", "tool_use", "function_call"]),
        ("cut", ["length", "max_tokens", "MAX_TOKENS", "model_length"]),
        (
            "broken",
            [
                *("content_filter", "SAFETY", "RECITATION", "refusal", "abort", "error"),
                *("content_filter: PROHIBITED_CONTENT", "PROHIBITED_CONTENT"),
            ],
        ),
        (None, [None, "", "finished", 5, ["stop"], "stopp"]),
    ],
)
def test_the_end_that_a_finish_reason_names(end, names):
    assert [named_end(name) for name in names] == [end] * len(names)


@pytest.mark.parametrize(
    ("text", "written", "end"),
    [
        ("It is <answer>4</answer>", 100, "stop"),  # a closing tag at the end
        ("It is <answer>4</answer>\n", 100, "stop"),
        ("It is <answer>4", 99, "stop"),  # below the budget
        ("It is <answer>4", 100, "cut"),
        ("", 0, "stop"),
        ("", 100, "cut"),  # a reasoning that used the budget
        ("hm " * 99, None, "stop"),  # without counts, a token has three characters
        ("hm " * 100, None, "cut"),
    ],
)
def test_an_end_without_a_name_is_seen_by_the_text_and_the_budget(text, written, end):
    assert guessed_end(text, written, 100, STOP) == end
