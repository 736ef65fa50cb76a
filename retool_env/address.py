"""Where a server is and the key that it wants, checked before anything is sent."""

from __future__ import annotations

from urllib.parse import urlsplit


def check_url(url: str, what: str, example: str) -> None:
    """Check that a URL names a server.

    Args:
        url: `http` or `https`, without parameters.
        what: Of what it should be, "a server" say.
        example: What would be right.

    Raises:
        ValueError: If it names none.
    """
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is no number
        right = False
    if not right or parts.query:
        raise ValueError(f"{url!r} is no URL of {what}; {example} would be")


def check_key(key: str | None, name: str) -> None:
    """Check that a key can stand in a request's header.

    Args:
        key: The key, if there is one. It is never shown.
        name: What the caller knows it as.

    Raises:
        ValueError: If it can't.
    """
    if key and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise ValueError(
            f"{name} holds a line break, a space at an end, or another character that no header can: was it read from a file?"
        )


def redact(text: str, *secrets: str | None) -> str:
    """`text` without secrets: what servers say, or a library's error, may repeat what they were sent.

    Args:
        text: What is to be shown, logged or stored.
        *secrets: Keys and tokens; `None` and empty ones are passed over.
    """
    for secret in filter(None, secrets):
        text = text.replace(secret, "[redacted]")
    return text
