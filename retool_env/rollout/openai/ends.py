"""Finish reasons: why an API ended a turn, by the names that APIs give.

| end      | meaning                                                          |
|----------|------------------------------------------------------------------|
| `stop`   | A stop string or the model's own end; the API does not say which |
| `own`    | The model ended its sequence by itself                           |
| `call`   | A native call ended the turn                                     |
| `cut`    | The limit on tokens, or the model's context, ended the turn      |
| `broken` | The API broke the turn off: a filter, a failure                  |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

End = Literal["stop", "own", "call", "cut", "broken"]
"""The kind of a turn's end; see the table of this module."""

_NAMES: Mapping[End, Sequence[str]] = {
    "stop": ("stop", "stop_sequence", "end", "complete"),
    "own": ("eos", "eos_token", "end_turn"),
    "call": ("tool_calls", "tool_call", "tool_use", "function_call"),
    "cut": ("length", "max_tokens", "model_length", "model_context_window_exceeded"),
    "broken": (
        *("content_filter", "safety", "image_safety", "recitation", "language", "blocklist"),
        *("prohibited_content", "spii", "sensitive", "refusal", "error_toxic"),
        *("abort", "aborted", "cancelled", "error", "insufficient_system_resource"),
        *("network_error",),
    ),
}

ENDS: Mapping[str, End] = {name: end for end, names in _NAMES.items() for name in names}
"""The end that each finish reason names, in lower case. Gemini and Cohere write capitals."""

_TOKEN_CHARACTERS = 3
"""The characters of a token, where the API does not count the tokens of a turn."""


def named_end(finish: object) -> End | None:
    """The end that a finish reason names; `None` for null, an empty or an unknown reason.

    A reason may carry a detail after a colon (`content_filter: SAFETY`).
    """
    return ENDS.get(finish.partition(":")[0].strip().lower()) if isinstance(finish, str) else None


def guessed_end(text: str, written: int | None, budget: int, stop: Sequence[str]) -> End:
    """The end of a turn whose finish reason says nothing.

    Args:
        text: The text of the turn.
        written: The tokens of the turn; `None` where the API does not count them.
        budget: The most tokens of a turn.
        stop: The closing tags.

    Returns:
        `stop` if the text ends in a closing tag or is shorter than the budget, else `cut`.
    """
    if written is None:
        written = len(text) // _TOKEN_CHARACTERS
    return "stop" if text.rstrip().endswith(tuple(stop)) or written < budget else "cut"
