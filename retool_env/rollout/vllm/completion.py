"""Requests for turns to `vllm serve` (`/v1/completions`), and the reading of its answers."""

from __future__ import annotations

from typing import Any

from retool_env.rollout.policy import TurnEnd
from retool_env.rollout.vllm.client import field, fields
from retool_env.rollout.vllm.sampling import stop_reason
from retool_env.servers.address import redact
from retool_env.servers.hosts import Failure


def completion_body(token_ids: list[int], model: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The body of a request for a turn.

    Args:
        token_ids: The prompt, shape `(P,)`.
        model: The name of the model, or of an adapter.
        settings: The parameters of `retool_env.rollout.vllm.sampling.sampling`.
    """
    return {
        **settings,
        "model": model,
        "prompt": token_ids,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        # A server takes settings that are left out from the model's generation config.
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def read_completion(
    answer: Any, body: dict[str, Any]
) -> tuple[list[int], list[float], TurnEnd | None]:
    """Read the answer to a request for a turn.

    Args:
        answer: The parsed JSON of the answer.
        body: The body of the request.

    Returns:
        The sampled tokens, shape `(T,)`; their log-probs, shape `(T,)`; and the reason of their
        end, which is `None` if the server cut the turn.

    Raises:
        Failure: If the answer is not valid, or the server ended the turn for another reason.
        ValueError: If the server read another prompt.
    """
    choices = fields(answer, "choices", dict)
    if len(choices) != 1:
        raise Failure(f"the answer has {len(choices)} choices instead of one")
    [choice] = choices
    sampled = fields(choice, "token_ids", int)
    logprobs = fields(field(choice, "logprobs", dict), "token_logprobs", float, int)
    if fields(choice, "prompt_token_ids", int) != body["prompt"]:
        raise ValueError(
            "the prompt_token_ids of the answer differ from the prompt that was sent: check the "
            "server's vLLM (0.31), and any proxy in front of it"
        )
    if len(sampled) != len(logprobs) or len(sampled) > body["max_tokens"]:
        raise Failure(
            f"{len(sampled)} tokens and {len(logprobs)} log-probs for a budget of "
            f"{body['max_tokens']}"
        )
    # Token ids and log-probs go into records and tensors as they are.
    if not all(0 <= token < 2**31 for token in sampled):
        raise Failure(f"invalid token ids: {redact(repr(sampled), most=100)}")
    if not all(-1e9 < logprob <= 1e-3 for logprob in logprobs):
        raise Failure(f"invalid log-probs: {redact(repr(logprobs), most=100)}")
    finish = field(choice, "finish_reason", str)
    reason = stop_reason(finish, choice.get("stop_reason"))
    if finish != "abort" and (reason is None or not sampled):
        raise Failure(f"the server ended the turn, with {len(sampled)} tokens: {finish}")
    if body["temperature"] == 0:
        logprobs = [0.0] * len(sampled)
    return sampled, logprobs, reason
