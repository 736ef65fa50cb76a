"""Further fields of the requests to an API, as a command or an argument names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from retool_env.errors import SettingsError
from retool_env.servers.address import check_no_secrets, redact

# The fields that the policy fills by itself, or that would change the form of an answer.
_OWN = (
    *("model", "messages", "prompt", "tools", "functions", "stream", "stream_options", "n"),
    *("best_of", "echo", "suffix", "temperature", "top_p", "max_tokens"),
)
_OWN_CURE = "set it by the option or the argument of that name, if there is one"


def check_extra(extra: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
    """Check the further fields of requests to an API.

    Args:
        extra: The fields.
        key: The key of the API, which no field may hold. `None`: no key.

    Returns:
        A copy of the fields.

    Raises:
        SettingsError: A field is the policy's own, holds a secret, or can't be written as JSON.
    """
    for name in extra:
        if name in _OWN:
            raise SettingsError(f"{name} can't be an extra field of a request: {_OWN_CURE}")
    check_no_secrets(extra)
    try:
        text = json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingsError(f"the extra fields of a request must be JSON: {error}") from None
    if redact(text, key) != text:
        raise SettingsError("an extra field of a request holds a key, which would be stored")
    most = extra.get("max_completion_tokens", 1)
    if type(most) is not int or most < 1:
        raise SettingsError(f"max_completion_tokens must be a positive whole number, not {most!r}")
    return dict(extra)
