"""Where a server is and the key that it wants: checked before anything is sent, and never shown.

Whoever makes an error, a record or a line of a log of what a server said, passes that through `redact`.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from retool_env.errors import SettingsError

REDACTED = "[redacted]"

_keys: set[str] = set()
_SURE = 8  # characters, of a key that is no ordinary word
_SHORT = 6  # of a shorter key, only what stands alone is taken for it
_LONG, _HEAD = 24, 12  # of a longer key, its beginning is taken for it as well
# Of a URL. A password may hold a slash; a port and a path with an @ are none.
_CREDENTIALS = re.compile(r"(?<=//)(?:[^\s/?#\"'<>]*|[^\s/?#\"'<>@:]*:(?!\d+/)[^\s\"'<>]{0,256})@")
_PARAMETER = re.compile(r"(?<=[?&])([\w-]+)=[^&#\s\"'<>]+")
_SECRETS = re.compile(
    r"(?:.*[_-])?(?:api_?key|(?:access|private|secret)[_-]key|secret|pass(?:word|wd|phrase)|authorization|credentials?)"
    r"|(?:(?:.*[_-])?(?:hub|hf|api|auth|access|bearer|refresh|secret|session)[_-])?token",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


def check_url(url: str, what: str, example: str) -> None:
    """Check that a URL names a server.

    Args:
        url: `http` or `https`, without credentials and parameters.
        what: Of what it should be, "a server" say.
        example: What would be right.

    Raises:
        ValueError: If it names none, or holds a user name or a password.
    """
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is no number
        right = False
    if "@" in url:
        raise SettingsError(
            f"the URL {shown_url(url)!r} of {what} holds a user name or a password, which would be shown and stored: "
            f"leave them out, as in {example}, and give a key by itself"
        )
    if not right or parts.query or parts.fragment:
        raise SettingsError(f"{shown_url(url)!r} is no URL of {what}; {example} would be")


def split_urls(urls: str, what: str, example: str) -> list[str]:
    """The URLs in a text, with commas between them.

    Args:
        urls: The text.
        what: See `check_url`.
        example: See `check_url`.

    Raises:
        ValueError: If one holds credentials; a password may hold a comma.
    """
    if "@" in urls:
        check_url(urls, what, example)
    return [url.strip() for url in urls.split(",")]


def check_key(key: str | None, name: str) -> None:
    """Check that a key can stand in a request's header; from then on `redact` knows it.

    Args:
        key: The key, if there is one. It is never shown.
        name: What the caller knows it as.

    Raises:
        ValueError: If it can't.
    """
    if not key:
        return
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        raise SettingsError(
            f"{name} holds a line break, a space at an end, or another character that no header can: was it read from a file?"
        )
    if len(key) >= _SURE:
        _keys.add(key)


def variable_name(name: str) -> str:
    """What can be shown of the name of an environment variable, which may be the key itself, given by mistake."""
    return name if _VARIABLE.fullmatch(name) else "(not shown, as it may be the key itself)"


def check_no_secrets(settings: Any, name: str = "") -> None:
    """Check that settings which are shown and stored hold no key, no password, and no URL with one.

    Args:
        settings: Mappings and lists of settings, however deep.
        name: What they are called.

    Raises:
        ValueError: If they do; it names the setting, and does not show it.
    """
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            at = f"{name}.{key}".lstrip(".")
            if isinstance(value, str) and value and _SECRETS.fullmatch(str(key)):
                raise SettingsError(
                    f"{at} would be shown and stored with the other settings: put it into an environment variable "
                    "(RETOOL_SANDBOX_TOKEN of a sandbox, token_env of an engine, api_key_env of an API)"
                )
            check_no_secrets(value, at)
    elif isinstance(settings, list | tuple):
        for value in settings:
            check_no_secrets(value, name)
    elif (
        isinstance(settings, str)
        and not re.search(r"\s", settings)
        and _without_credentials(settings) != settings
    ):
        raise SettingsError(
            f"{name} holds a key, or a URL with one, a user name or a password, which would be shown and stored: leave it out"
        )


def redact(text: str, *secrets: str | None, most: int | None = None) -> str:
    """A text without secrets: what servers say, or a library's error, may repeat what they were sent.

    Credentials in URLs are taken out as well, keys among a URL's parameters, and keys that were checked here, if they are not so short that they
    could be ordinary words.

    Args:
        text: What is to be shown, logged or stored.
        *secrets: Keys and tokens, taken out as they are or escaped; `None` and empty ones are passed over.
        most: How many characters are wanted. The text is cut here, since half a key could not be found.
    """
    for secret in sorted({*filter(None, secrets), *_keys}, key=len, reverse=True):
        text = re.sub(_pattern(secret), REDACTED, text)
    return _without_credentials(text)[:most]


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as an error may show them: what is a key by its name is taken out, and what `redact` finds in texts."""

    def shown(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return without_secrets(value)
        if not isinstance(value, str):
            return value
        return REDACTED if _SECRETS.fullmatch(key) else redact(value)

    return {key: shown(str(key), value) for key, value in settings.items()}


def _without_credentials(text: str) -> str:
    """A text without the names, passwords and keys in its URLs."""
    return _CREDENTIALS.sub(f"{REDACTED}@", _PARAMETER.sub(_without_secret, text))


def _without_secret(parameter: re.Match[str]) -> str:
    name = parameter[1]
    secret = _SECRETS.fullmatch(name) or name.lower() in ("key", "sig", "signature")
    return f"{name}={REDACTED}" if secret else parameter[0]


def _pattern(key: str) -> str:
    forms = {
        key,
        json.dumps(key)[1:-1],
        key.replace("/", "\\/"),
        quote(key, safe=""),
        html.escape(key),
    }
    pattern = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    if len(key) < _SHORT:
        return rf"(?<!\w)(?:{pattern})(?!\w)"
    if len(key) >= _LONG:
        pattern += rf"|{re.escape(key[:_HEAD])}[^\s\"'<>,;)\]}}]*"
    return pattern


def shown_url(url: str) -> str:
    """What can be shown of a URL, or of what should be one: neither what stands before an @ nor parameters, which may be keys."""
    url = re.sub(r"^(\w+://)?.*(?:@|%40)", rf"\1{REDACTED}@", url, flags=re.DOTALL)
    start, mark, _ = url.partition("?")
    start, hash_, _ = start.partition("#")
    return start + (mark or hash_) + ("..." if mark or hash_ else "")
