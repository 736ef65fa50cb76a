"""What a turn asks of vLLM, and why it ended there: the same in this process and on servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal


def sampling(
    temperature: float, top_p: float, stop: Sequence[str], budget: int, seed: int
) -> dict[str, Any]:
    """A turn's settings, by the names that vLLM gives them."""
    return {
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed % 2**63,
        "max_tokens": budget,
        "stop": list(stop),
        "include_stop_str_in_output": True,
        # As our own decoding: a tag that holds a special token is one too.
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "logprobs": 0,  # of the sampled token alone
    }


def stop_reason(finish: str | None, cause: object) -> Literal["tag", "eos", "length"] | None:
    """Why a turn ended; `None` if something else than the model or its limits ended it, an abort say.

    Args:
        finish: vLLM's finish reason.
        cause: Its stop reason: the stop string, a token's id, or `None` for the end of the sequence.
    """
    if finish == "stop":
        return "tag" if isinstance(cause, str) else "eos"
    return "length" if finish == "length" else None
