"""Errors of an API of OpenAI's kind, mapped to the reaction that each of them needs.

A field is left out of the request, or the conversation is over, or the run ends with an error that
names the cure, or the episode is tried again (`PolicyUnavailable`). When an error arrives here, the
client has already used up its retries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from retool_env.errors import APIForbidden, APIUnreachable, PolicyUnavailable, SettingsError
from retool_env.errors import RequestRefused as RequestRefused
from retool_env.servers.address import redact

if TYPE_CHECKING:
    from openai import APIError


ERROR_CHARACTERS = 300
"""The most characters of an API's message that are shown."""

_OPTIONAL = ("stop", "seed", "parallel_tool_calls", "max_tokens")
_UNKNOWN = re.compile(
    r"not support|unsupported|not permitted|unrecognized|unknown|unexpected|extra"
)
_FULL = re.compile(r"context[ _](length|size|window)|prompt is too long")


def api_message(error: APIError, key: str | None = None) -> str:
    """Extract the message of an API's error.

    Args:
        error: The error of the client.
        key: The key of the API, which some APIs repeat and which is removed. `None`: no key.
    """
    body = error.body
    if isinstance(body, Mapping):
        message = body.get("message")
        body = message if isinstance(message, str) else str(dict(body))
    return redact(str(body) if body else error.message, key, most=ERROR_CHARACTERS)


def refused_field(error: APIError, request: Mapping[str, Any]) -> str | None:
    """The optional field of a request that the API does not support, if its error names one."""
    words = api_message(error).lower()
    if getattr(error, "status_code", None) not in (400, 422) or not _UNKNOWN.search(words):
        return None
    named = error.param if isinstance(error.param, str) and error.param else words
    for name in _OPTIONAL:
        if name in request and re.search(rf"\b{name}\b", named):
            return name
    return None


def context_is_full(error: APIError) -> bool:
    """Whether the error says that the conversation is longer than the model's context."""
    return bool(_FULL.search(api_message(error).lower()))


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
    return RequestRefused(f"{url} refuses the request: {words}")
