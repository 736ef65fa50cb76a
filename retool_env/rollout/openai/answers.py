"""The parts of an API's answer. The client does not check that its values have their types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retool_env.protocol.calls import CALL_CLOSE
from retool_env.rollout.policy import AnsweredAs, Usage
from retool_env.servers.address import redact

_NAME_CHARACTERS = 200
_CACHED = ("prompt_cache_hit_tokens", "cache_read_input_tokens", "cached_tokens")
"""The fields of cached tokens in APIs that do not follow OpenAI: DeepSeek, Anthropic, Moonshot."""


def first_choice(reply: Any) -> Any:
    """The first choice of an answer; `None` for an answer without a choice.

    A proxy answers so when the server behind it failed.
    """
    choices = getattr(reply, "choices", None)
    return choices[0] if choices and isinstance(choices, list) else None


def text_of(message: Any) -> Any:
    """The text of a message; 0 if it has no valid text.

    Mistral's reasoning models give the text in parts, beside parts that hold the reasoning.
    """
    content = getattr(message, "content", 0)
    if isinstance(content, list):
        texts: list[Any] = [
            part.get("text") for part in _parts(content) if part.get("type") == "text"
        ]
        return "".join(texts) if all(isinstance(text, str) for text in texts) else 0
    return "" if content is None else content


def reasoning_of(message: Any) -> str:
    """The reasoning that an API keeps apart from the text of a message; else an empty text."""
    extra = getattr(message, "model_extra", None) or {}
    fields = [extra.get(name) for name in ("reasoning_content", "reasoning")]
    content = getattr(message, "content", None)
    for part in _parts(content if isinstance(content, list) else []):
        if part.get("type") == "thinking":
            thought = part.get("thinking")
            inner = _parts(thought) if isinstance(thought, list) else [{"text": thought}]
            fields += [each.get("text") for each in inner]
    return "\n".join(field for field in fields if isinstance(field, str))


def reasons_apart(reply: Any, message: Any) -> bool:
    """Whether an API kept a reasoning apart from the text of a message, shown or hidden."""
    details = getattr(getattr(reply, "usage", None), "completion_tokens_details", None)
    hidden: Any = getattr(details, "reasoning_tokens", None)
    return bool(reasoning_of(message)) or (_is_count(hidden) and hidden > 0)


def stands_in_reasoning(choice: Any, stop: Sequence[str]) -> bool:
    """Whether an answer or a call stands in the reasoning alone, and the text has neither.

    Args:
        choice: The choice of an answer.
        stop: The closing tags.
    """
    message = getattr(choice, "message", None)
    reasoning = reasoning_of(message)
    text = text_of(message)
    if not reasoning or not isinstance(text, str) or calls_of(message):
        return False
    closing = (*stop, CALL_CLOSE)
    opening = tuple(tag.replace("</", "<") for tag in closing)
    if any(tag in text for tag in closing + opening):
        return False
    # A stop string is cut off, and nothing follows it.
    wanted = closing if text.strip() else closing + opening
    return any(tag in reasoning for tag in wanted)


def calls_of(message: Any) -> Any:
    """The native calls of a message, in OpenAI's newer or older form; `None` without a call."""
    calls = getattr(message, "tool_calls", None)
    older = getattr(message, "function_call", None)
    return calls or ([older] if older else None)


def called(calls: Any) -> tuple[str, Any] | None:
    """The name and the arguments of a message's first native call, of whatever tool.

    Returns:
        `None` if the first entry is not a call.
    """
    call: Any = calls[0] if isinstance(calls, list) else None
    if not hasattr(call, "to_dict"):
        return None
    values = call.to_dict(warnings=False)
    # A custom call has free text; the older form has neither of the two keys.
    made = values.get("function") or values.get("custom") or ("arguments" in values and values)
    made = made if isinstance(made, Mapping) else {}
    return str(made.get("name")), made.get("arguments", made.get("input"))


def usage_of(reply: Any) -> Usage:
    """The token counts of an answer, checked."""
    used = getattr(reply, "usage", None)
    prompt: Any = getattr(used, "prompt_tokens", None)
    written: Any = getattr(used, "completion_tokens", None)
    if not (_is_count(prompt) and _is_count(written)):
        return Usage(requests=1, uncounted=1)
    cached = [getattr(getattr(used, "prompt_tokens_details", None), "cached_tokens", None)]
    cached += [getattr(used, name, None) for name in _CACHED]
    return Usage(1, prompt, written, 0, min(next(filter(_is_count, cached), 0), prompt))


def answered_as(reply: Any, key: str | None) -> AnsweredAs | None:
    """The names that an answer gives its model; `None` for an answer without such names.

    Args:
        reply: The answer.
        key: The key of the API, which is removed from the names. `None`: no key.
    """
    names = [getattr(reply, name, None) for name in ("model", "system_fingerprint")]
    model, fingerprint = (
        redact(name, key, most=_NAME_CHARACTERS) if isinstance(name, str) and name else None
        for name in names
    )
    return AnsweredAs(model, fingerprint) if model or fingerprint else None


def _parts(values: list[Any]) -> list[Mapping[str, Any]]:
    return [value for value in values if isinstance(value, Mapping)]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
