"""The answers to requests for turns; `test_server` has the invalid ones."""

from __future__ import annotations

import pytest

from retool_env.rollout.vllm.completion import completion_body, read_completion
from retool_env.rollout.vllm.sampling import sampling
from retool_env.servers.hosts import Failure


def answer(finish: str, cause=None, ids=(7, 8)):
    choice = {
        "token_ids": list(ids),
        "prompt_token_ids": [1, 2],
        "logprobs": {"token_logprobs": [-0.5] * len(ids)},
        "finish_reason": finish,
        "stop_reason": cause,
    }
    return {"choices": [choice]}


@pytest.mark.parametrize(
    ("finish", "cause", "ids", "reason"),
    [
        ("stop", "</code>", (7, 8), "tag"),
        ("stop", None, (7, 8), "eos"),
        ("length", None, (7, 8), "length"),
        ("abort", None, (7,), None),
        ("abort", None, (), None),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_tokens_their_logprobs_and_the_reason_of_their_end(
    finish, cause, ids, reason, temperature
):
    body = completion_body([1, 2], "m", sampling(temperature, 1.0, ["</code>"], 9, 3))
    sampled, logprobs, end = read_completion(answer(finish, cause, ids), body)
    assert (sampled, end) == (list(ids), reason)
    assert logprobs == [-0.5 * temperature] * len(ids)


def test_another_end_is_a_failure():
    body = completion_body([1, 2], "m", sampling(1.0, 1.0, [], 9, 3))
    with pytest.raises(Failure, match="ended the turn, with 2 tokens: error"):
        read_completion(answer("error"), body)
    with pytest.raises(Failure, match="ended the turn, with 0 tokens: stop"):
        read_completion(answer("stop", ids=()), body)
