"""The sampling parameters of a turn, and its stop reason, by vLLM's names.

The policy in this process and the policy on servers share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retool_env.rollout.policy import TurnEnd


def sampling(
    temperature: float, top_p: float, stop: Sequence[str], budget: int, seed: int
) -> dict[str, Any]:
    """The parameters of one turn, by vLLM's names.

    Args:
        temperature: The sampling temperature; 0 is greedy.
        top_p: The nucleus mass of sampling.
        stop: The strings that end the turn.
        budget: The most tokens to sample.
        seed: The seed of the turn, of any size.
    """
    return {
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed % 2**63,
        "max_tokens": budget,
        "stop": list(stop),
        "include_stop_str_in_output": True,
        # As in our own decoding: a tag may hold a special token.
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "logprobs": 0,  # only the log-prob of the sampled token
    }


def stop_reason(finish: str | None, cause: object) -> TurnEnd | None:
    """Tell why a turn ended.

    Args:
        finish: vLLM's finish reason.
        cause: vLLM's stop reason: the stop string, a token id, or `None` for the end of the
            sequence.

    Returns:
        The reason. `None`: neither the model nor its limits ended the turn, but an abort, for
        example.
    """
    if finish == "stop":
        return "tag" if isinstance(cause, str) else "eos"
    return "length" if finish == "length" else None
