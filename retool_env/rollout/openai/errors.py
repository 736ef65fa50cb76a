"""Errors of an API of OpenAI's kind, mapped to the reaction that each of them needs.

A field is left out of the request, or the conversation is over, or the run ends with an error that
names the cure, or the episode is tried again (`PolicyUnavailable`). When an error arrives here, the
client has already used up its retries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from retool_env.errors import APIForbidden, APIUnreachable, PolicyUnavailable, SettingsError
from retool_env.errors import RequestRefused as RequestRefused
from retool_env.servers.address import redact

if TYPE_CHECKING:
    from openai import APIError


ERROR_CHARACTERS = 300
"""The most characters of an API's message that are shown."""
_SEARCHED = 5000
"""The most characters of an API's message that are searched."""

_OPTIONAL = ("stop", "seed", "parallel_tool_calls", "max_tokens")
_UNKNOWN = re.compile(
    r"not support|unsupported|not permitted|unrecognized|unknown|unexpected|extra"
)
# The words of OpenAI, vLLM, SGLang, Mistral and llama.cpp; Anthropic; Gemini; Groq and Cerebras;
# SGLang; vLLM; Together and TGI; xAI.
_FULL = re.compile(
    r"context[ _](?:length|size|window|limit)"
    r"|(?:prompt|input|conversation|messages?) (?:is|are) too long|input length too long"
    r"|token count \(?\d*\)? ?exceeds the (?:maximum|limit)"
    r"|reduce the length of (?:the|your) (?:messages|prompt|input)"
    r"|exceeds the maximum (?:allowed|input|sequence) length"
    r"|longer than the (?:maximum model|model's) "
    r"|inputs?`? tokens \+ `?max_new_tokens`? must be"
    r"|maximum prompt length"
)
# OpenAI and vLLM name the context and the prompt, in tokens; each has several forms.
_ROOM = re.compile(
    r"maximum context length is (\d+) tokens\D+\d+ tokens \((\d+) in (?:the|your) "
    r"(?:messages|prompt)"
    r"|maximum context length is (\d+) tokens and your request has (\d+) input tokens"
)
_CONTEXT_CODE = "context_length_exceeded"
_NOT_FULL = (401, 403, 404, 429)
"""Statuses of keys, models and rates. A limit on the tokens of a minute is not a full context."""
_LEFT_OUT = {"temperature": "--no-temperature", "top_p": "--no-top-p"}


def api_message(error: APIError, key: str | None = None) -> str:
    """Extract the message of an API's error.

    Args:
        error: The error of the client.
        key: The key of the API, which some APIs repeat and which is removed. `None`: no key.
    """
    return redact(_words(error), key, most=ERROR_CHARACTERS)


def _words(error: APIError) -> str:
    body: Any = error.body
    if isinstance(body, list) and body:  # Gemini puts the error into a list
        body = body[0]
        body = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(body, Mapping):
        message = body.get("message")
        body = message if isinstance(message, str) else str(dict(body))
    return str(body) if body else error.message


def refused_field(error: APIError, request: Mapping[str, Any]) -> str | None:
    """The optional field of a request that the API does not support, if its error names one."""
    if getattr(error, "status_code", None) not in (400, 422):
        return None
    words = _words(error)[:_SEARCHED].lower()
    if not _UNKNOWN.search(words):
        return None
    return _named(_OPTIONAL, error, words, request)


def _named(
    names: Iterable[str], error: APIError, words: str, request: Mapping[str, Any]
) -> str | None:
    """The first of these fields of a request that an error names."""
    named = error.param if isinstance(error.param, str) and error.param else words
    for name in names:
        if name in request and re.search(rf"\b{name}\b", named):
            return name
    return None


def context_is_full(error: APIError) -> bool:
    """Whether the error says that the conversation is longer than the model's context."""
    if getattr(error, "status_code", None) in _NOT_FULL:
        return False
    words = _words(error)[:_SEARCHED].lower()
    return error.code == _CONTEXT_CODE or bool(_FULL.search(words))


def room_in_context(error: APIError) -> int | None:
    """The tokens that the context leaves for a turn; `None` if the error does not say so.

    Args:
        error: The error of a request whose prompt and limit on tokens exceed the context together.
    """
    match = _ROOM.search(_words(error)[:_SEARCHED].lower())
    if match is None:
        return None
    context, prompt = (int(number) for number in match.groups() if number)
    return context - prompt if context > prompt else None


def explained(
    error: APIError,
    url: str,
    request: Mapping[str, Any],
    answered: bool,
    key: str | None = None,
) -> Exception:
    """The exception to raise for an error of the client.

    Args:
        error: The error of the client.
        url: The address of the API.
        request: The fields of the request that was sent.
        answered: Whether the API has ever answered. An API that could not be reached even once is
            taken for a wrong URL, not for a failure.
        key: The key of the API, which is removed from the message. `None`: no key.

    Returns:
        An exception whose text says how to mend the error, or `PolicyUnavailable` if the episode
        may be tried again.
    """
    import openai

    words = api_message(error, key)
    if isinstance(error, openai.APIConnectionError):
        if error.__cause__:
            words += f" ({redact(str(error.__cause__), key, most=ERROR_CHARACTERS)})"
        if answered:
            return PolicyUnavailable(f"{url}: {words}")
        return APIUnreachable(f"{url} can't be reached: {words}")
    status = getattr(error, "status_code", 500)
    if error.code == "insufficient_quota":
        return APIForbidden(f"{url}: {words}")
    if status in (408, 409, 429) or status >= 500:
        return PolicyUnavailable(f"{url}: {words}")
    if status in (401, 403):
        return APIForbidden(f"{url} refuses the key, or needs one: {words}")
    if status == 404:
        return SettingsError(
            f"{url} does not serve the model {request['model']!r}, or is not an API (the URL of an "
            f"API mostly ends in /v1; {url}/models lists the models): {words}"
        )
    field = _named(_LEFT_OUT, error, words, request)
    cure = f" ({_LEFT_OUT[field]} leaves {field} out)" if field else ""
    return RequestRefused(f"{url} refuses the request: {words}{cure}")


def too_long(url: str, problem: str, words: str) -> RequestRefused:
    """The exception for a first prompt that does not fit into the model's context.

    Args:
        url: The address of the API.
        problem: The id of the problem.
        words: The API's message.
    """
    return RequestRefused(
        f"the prompt of {problem} is too long for the context of the model at {url}: take a "
        f"shorter prompt_template or a smaller --max-tokens, or leave such problems out: {words}"
    )
