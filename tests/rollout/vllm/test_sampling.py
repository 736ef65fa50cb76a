"""The parameters of a turn for vLLM, and the reason why it ended."""

import pytest

from retool_env.rollout.vllm.sampling import sampling, stop_reason


def test_a_turn_keeps_its_tag_and_reports_the_sampled_tokens_alone():
    settings = sampling(0.7, 0.9, ("</code>",), 24, 2**63 + 5)
    assert (settings["temperature"], settings["top_p"], settings["max_tokens"]) == (0.7, 0.9, 24)
    assert settings["seed"] == 5, "vLLM takes seeds of 63 bits"
    assert settings["stop"] == ["</code>"] and settings["include_stop_str_in_output"]
    assert settings["skip_special_tokens"] is False and settings["logprobs"] == 0


@pytest.mark.parametrize(
    ("finish", "cause", "reason"),
    [
        ("stop", "</code>", "tag"),
        ("stop", None, "eos"),
        ("stop", 3, "eos"),
        ("length", None, "length"),
        ("abort", None, None),
        (None, None, None),
    ],
)
def test_why_a_turn_stopped(finish, cause, reason):
    assert stop_reason(finish, cause) == reason
