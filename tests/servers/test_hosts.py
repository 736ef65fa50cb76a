"""Hosts: the time of the next request to a busy or failed host."""

import random
import time

import pytest

from retool_env.servers.hosts import Busy, Host, check_free

httpx = pytest.importorskip("httpx")


@pytest.fixture(autouse=True)
def without_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)


def test_each_failure_in_a_row_doubles_the_pause(monkeypatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    host, asides = Host("http://a"), []
    for _ in range(9):
        assert host.set_aside(now)
        asides.append(host.aside_until - now)
        assert not host.set_aside(now)  # sent at the time of the first request
        now = host.aside_until
    assert asides == pytest.approx([0.5 * 2**n for n in (0, 1, 2, 3, 4, 5, 6, 6, 6)])
    assert host.failures == 9


def test_a_host_that_failed_for_days_is_still_asked_every_half_minute() -> None:
    host = Host("http://a", failures=5000)
    assert host.set_aside(time.monotonic())
    assert host.aside_until - time.monotonic() < 60


def answer(status: int, retry_after: str | None = None) -> "httpx.Response":
    return httpx.Response(status, headers={"Retry-After": retry_after} if retry_after else {})


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [
        ("3", 3.0),
        ("0", 0.25),
        ("-1", 0.25),
        ("nan", 0.25),
        ("inf", 30.0),
        ("9" * 400, 30.0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 1.0),
        (None, 1.0),
    ],
)
def test_a_busy_host_is_asked_again_at_its_time(retry_after: str | None, pause: float) -> None:
    with pytest.raises(Busy, match="busy") as error:
        check_free(answer(429, retry_after))
    assert error.value.again(100.0) == pytest.approx(100 + pause * 1.25)


def test_each_refusal_in_a_row_doubles_the_shortest_pause() -> None:
    pauses = [Busy(0.6).again(0.0, refusals) / 1.25 for refusals in range(6)]
    assert pauses == pytest.approx([0.6, 0.6, 1.0, 2.0, 2.0, 2.0])


def test_only_a_response_that_asks_for_a_pause_means_busy() -> None:
    with pytest.raises(Busy):
        check_free(answer(503, "1"))
    for status in (200, 408, 500, 503):
        check_free(answer(status))
