"""Hosts: equivalent servers, and the time of the next request to a busy or failed server.

A host that fails gets no requests for a while, twice as long for each further failure in a row. A
host that is busy (status 429, or 503 with `Retry-After`) gets the next request at the time that its
response gives. Each pause is changed at random by a little, so that clients do not all ask at the
same moment.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retool_env.errors import RetoolError

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10.0
"""The time-out of connecting to a host, in seconds."""
ERROR_CHARACTERS = 300
"""The most characters of a host's response that an error text repeats."""

_KEEP_ALIVE_SECONDS = 2.0  # shorter than a host's time, so that no host closes it during a request
_FIRST_ASIDE = 0.5
_MOST_DOUBLINGS = 6  # 32 s
_SHORTEST_RETRY_AFTER, _LONGEST_RETRY_AFTER = 0.25, 30.0
_MOST_REFUSALS = 3  # further refusals do not double the shortest pause, which is then 2 s


class Busy(RetoolError):
    """The host takes no further requests at the moment.

    Args:
        retry_after: The pause that the host asks for, in seconds.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__("busy")
        self._retry_after = retry_after

    def again(self, sent: float, refusals: int = 0) -> float:
        """Returns the time from which on the host may be asked again.

        Args:
            sent: The time at which the refused request was sent.
            refusals: The number of earlier refusals in a row; each doubles the shortest pause.
        """
        shortest = _SHORTEST_RETRY_AFTER * 2 ** min(refusals, _MOST_REFUSALS)
        pause = min(max(shortest, self._retry_after), _LONGEST_RETRY_AFTER)
        return sent + pause * random.uniform(1, 1.5)


class Failure(RetoolError):
    """The host failed to answer a request. A further attempt may succeed."""


@dataclass(eq=False)
class Host:
    """The state of a host, as its clients know it. Times are values of `time.monotonic`."""

    url: str
    """The URL, without a slash at the end."""

    in_flight: int = 0
    """The number of this process's requests that the host works on."""

    failures: int = 0
    """The number of failures in a row; requests that were sent together count once."""

    aside_until: float = 0.0
    """The time before which the host is not asked."""

    def set_aside(self, sent: float) -> bool:
        """Notes a failure: the host is not asked for a while, twice as long each time in a row.

        Args:
            sent: The time at which the failed request was sent.

        Returns:
            Whether the failure counts: requests that were sent together fail together, once.
        """
        if sent < self.aside_until:
            return False
        aside = _FIRST_ASIDE * 2 ** min(self.failures, _MOST_DOUBLINGS)
        self.failures += 1
        self.aside_until = time.monotonic() + aside * random.uniform(0.75, 1.25)
        return True


def connection(token: str | None) -> dict[str, Any]:
    """Returns the arguments of an `httpx.AsyncClient` that asks hosts.

    Args:
        token: The bearer token of each request; `None`: requests have no token.
    """
    import httpx

    return {
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
        "limits": httpx.Limits(keepalive_expiry=_KEEP_ALIVE_SECONDS),
    }


def check_free(response: httpx.Response) -> None:
    """Checks that a host did not refuse a request because it is busy.

    Raises:
        Busy: The host is busy.
    """
    status, after = response.status_code, response.headers.get("retry-after")
    if status == 429 or (status == 503 and after is not None):
        raise Busy(_seconds(after or ""))


def _seconds(retry_after: str) -> float:
    """The seconds in a `Retry-After` header; 1.0 for a date or an empty header."""
    try:
        seconds = float(retry_after)
    except ValueError:
        return 1.0
    return 0.0 if math.isnan(seconds) else seconds
