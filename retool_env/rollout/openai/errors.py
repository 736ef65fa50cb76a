"""What an API of OpenAI's kind means by an error, in terms of what is to be done.

Either a field of the request is left out, or the conversation is over, or the run ends with an error that says what to mend, or
the episode is tried again (`PolicyUnavailable`). The client has by then sent the request again as often as it may.
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
"""Of what an API says, so much is shown."""

_OPTIONAL = ("stop", "seed", "parallel_tool_calls", "max_tokens")
_UNKNOWN = re.compile(
    r"not support|unsupported|not permitted|unrecognized|unknown|unexpected|extra"
)
_FULL = re.compile(r"context[ _](length|size|window)|prompt is too long")


def said(error: APIError, key: str | None = None) -> str:
    """The API's own words, without the key, which some repeat."""
    body = error.body
    if isinstance(body, Mapping):
        message = body.get("message")
        body = message if isinstance(message, str) else str(dict(body))
    return redact(str(body) if body else error.message, key, most=ERROR_CHARACTERS)


def refused_field(error: APIError, request: Mapping[str, Any]) -> str | None:
    """The field of a request that the API does not take and that can be left out, if that is what it says."""
    words = said(error).lower()
    if getattr(error, "status_code", None) not in (400, 422) or not _UNKNOWN.search(words):
        return None
    named = error.param if isinstance(error.param, str) and error.param else words
    for name in _OPTIONAL:
        if name in request and re.search(rf"\b{name}\b", named):
            return name
    return None


def context_is_full(error: APIError) -> bool:
    """Whether the conversation is longer than the model can take."""
    return bool(_FULL.search(said(error).lower()))


def explained(
    error: APIError,
    url: str,
    request: Mapping[str, Any],
    answered: bool,
    key: str | None = None,
) -> Exception:
    """What to raise for an error.

    Args:
        error: Of the client.
        url: The API's.
        request: What was sent.
        answered: Whether the API has ever answered. One that could not be reached even once is a mistake in the URL rather
            than a failure.
        key: Of the API; it is not shown.
    """
    import openai

    words = said(error, key)
    if isinstance(error, openai.APIConnectionError):
        cause = (
            f" ({redact(str(error.__cause__), key, most=ERROR_CHARACTERS)})"
            if error.__cause__
            else ""
        )
        if answered:
            return PolicyUnavailable(f"{url}: {words}{cause}")
        return APIUnreachable(f"{url} can't be reached: {words}{cause}")
    status = getattr(error, "status_code", 500)
    if error.code == "insufficient_quota":
        return APIForbidden(f"{url}: {words}")
    if status in (408, 409, 429) or status >= 500:
        return PolicyUnavailable(f"{url}: {words}")
    if status in (401, 403):
        return APIForbidden(f"{url} refuses the key, or wants one: {words}")
    if status == 404:
        return SettingsError(
            f"no model {request['model']!r} at {url}, or no API (its URL mostly ends in /v1; {url}/models lists the "
            f"models): {words}"
        )
    return RequestRefused(f"{url} refuses the request: {words}")
