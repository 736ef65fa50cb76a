"""The URLs and keys of servers: checked before a request is sent, and never shown.

Every text of a server passes through `redact` before it enters an error, a record or a log.
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
# Lengths of keys, in characters.
_SURE = 8  # a key of this length is not an ordinary word
_SHORT = 6  # a shorter key is redacted only where it stands alone
_LONG, _HEAD = 24, 12  # the head of a key of length _LONG or more is also redacted, with its rest
# In a URL. A password may contain a slash. A port and a path with an @ are not credentials.
_CREDENTIALS = re.compile(r"(?<=//)(?:[^\s/?#\"'<>]*|[^\s/?#\"'<>@:]*:(?!\d+/)[^\s\"'<>]{0,256})@")
_PARAMETER = re.compile(r"(?<=[?&])([\w-]+)=[^&#\s\"'<>]+")
_SECRETS = re.compile(
    r"(?:.*[_-])?(?:api_?key|(?:access|private|secret)[_-]key|secret|pass(?:word|wd|phrase)"
    r"|authorization|credentials?)"
    r"|(?:(?:.*[_-])?(?:hub|hf|api|auth|access|bearer|refresh|secret|session)[_-])?token",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


def check_url(url: str, what: str, example: str) -> None:
    """Checks that a URL is the address of a server.

    Args:
        url: The URL: `http` or `https`, without credentials and parameters.
        what: The kind of server, for the error text, for example "a sandbox server".
        example: A correct URL, for the error text.

    Raises:
        ValueError: The URL is not the address of a server, or it contains a user name or a
            password.
    """
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is not a number
        right = False
    if "@" in url:
        raise SettingsError(
            f"the URL {shown_url(url)!r} of {what} contains a user name or a password, which would "
            f"be shown and stored: remove it, as in {example}, and give a key in its own setting"
        )
    if not right or parts.query or parts.fragment:
        raise SettingsError(
            f"{shown_url(url)!r} is not a URL of {what}; give one such as {example}"
        )


def base_url(url: str, path: str, what: str, example: str) -> str:
    """Returns the checked URL of a server without the path of its API.

    Args:
        url: The URL, which may end with a slash or with `path`.
        path: The path of the server's API.
        what: The kind of server, for the error text.
        example: A correct URL, for the error text.

    Raises:
        ValueError: The URL is not the address of a server, or it contains a user name or a
            password.
    """
    base = url.strip().rstrip("/").removesuffix(path)
    check_url(base, what, example)
    return base


def split_urls(urls: str, what: str, example: str) -> list[str]:
    """Splits a text of URLs at its commas.

    Args:
        urls: The URLs, separated by commas.
        what: The kind of server, for the error text.
        example: A correct URL, for the error text.

    Raises:
        ValueError: A URL contains credentials. They are refused before the split, because a
            password may contain a comma.
    """
    if "@" in urls:
        check_url(urls, what, example)
    return [url.strip() for url in urls.split(",")]


def check_key(key: str | None, name: str) -> None:
    """Checks that a key can be sent in a header, and registers it, so that `redact` removes it.

    Args:
        key: The key, which is never shown; `None`: the caller has no key.
        name: The name of the key, for the error text.

    Raises:
        ValueError: The key contains a character that a header can't have.
    """
    if not key:
        return
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        raise SettingsError(
            f"{name} contains a line break, a space at its start or end, or a character that an "
            "HTTP header can't have: remove it (a file often ends in a line break)"
        )
    if len(key) >= _SURE:
        _keys.add(key)


def variable_name(name: str) -> str:
    """Returns the name of an environment variable; a note if it may be a key, given by mistake."""
    return name if _VARIABLE.fullmatch(name) else "(not shown, because it may be the key itself)"


def check_no_secrets(settings: Any, name: str = "") -> None:
    """Checks that settings, which are shown and stored, contain no key, password or such a URL.

    Args:
        settings: The settings: nested mappings, lists and values.
        name: The name of the settings, for the error text.

    Raises:
        ValueError: A setting contains a secret. The error text names the setting without its value.
    """
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            path = f"{name}.{key}".lstrip(".")
            if isinstance(value, str) and value and _SECRETS.fullmatch(str(key)):
                raise SettingsError(
                    f"{path} would be shown and stored with the other settings: put it into an "
                    "environment variable (RETOOL_SANDBOX_TOKEN of a sandbox, token_env of an "
                    "engine, api_key_env of an API)"
                )
            check_no_secrets(value, path)
    elif isinstance(settings, list | tuple):
        for value in settings:
            check_no_secrets(value, name)
    elif (
        isinstance(settings, str)
        and not re.search(r"\s", settings)
        and _without_credentials(settings) != settings
    ):
        raise SettingsError(
            f"{name} contains a key, or a URL with a key, a user name or a password, which would "
            "be shown and stored: remove it"
        )


def redact(text: str, *secrets: str | None, most: int | None = None) -> str:
    """Returns a text without secrets. Servers and libraries may repeat a request in their errors.

    The function removes the given secrets, credentials in URLs, keys in the parameters of URLs, and
    keys that `check_key` has registered. Keys that are as short as ordinary words are not
    registered.

    Args:
        text: The text that will be shown, logged or stored.
        *secrets: Keys and tokens, which are removed in plain and in escaped form. `None` and empty
            texts are ignored.
        most: The most characters of the result; `None`: all characters. The text is cut after the
            removal, because half a key would not be recognised.
    """
    for secret in sorted({*filter(None, secrets), *_keys}, key=len, reverse=True):
        text = re.sub(_pattern(secret), REDACTED, text)
    return _without_credentials(text)[:most]


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings for an error text.

    A setting whose name is a key's name is removed. `redact` removes secrets from all other texts.
    """

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
    """Returns a URL, valid or not, without its credentials and parameters, which may be keys."""
    url = re.sub(r"^(\w+://)?.*(?:@|%40)", rf"\1{REDACTED}@", url, flags=re.DOTALL)
    start, mark, _ = url.partition("?")
    start, hash_, _ = start.partition("#")
    return start + (mark or hash_) + ("..." if mark or hash_ else "")
