"""The server's `/health` and `/metrics`."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from helpers.clients import BEARER, OK, SECRET, ask, counted
from helpers.services import Scripted, says, serving, sleeps, wait_until

from retool_env.sandbox import Execution, Outcome, monitoring
from retool_env.sandbox.server import create_app


def test_health_probes_once_and_learns_from_programs(monkeypatch) -> None:
    box = says(OK)
    with serving(create_app(box)) as url:
        for _ in range(3):
            response = httpx.get(f"{url}/health")
            assert (response.status_code, response.json()) == (200, {"status": "ok"})
        assert box.started == 1
        monkeypatch.setattr(monitoring, "PROBE_EVERY", 0.3)
        time.sleep(0.4)
        ask(url)
        httpx.get(f"{url}/health")  # a program has just run: no probe is needed
        assert box.started == 2
        time.sleep(0.4)
        httpx.get(f"{url}/health")
        assert box.started == 3


def test_health_says_what_is_wrong_and_when_it_is_over() -> None:
    now = [Execution(Outcome.INFRASTRUCTURE, "", "no namespaces")]

    async def answer(*_) -> Execution:
        return now[0]

    box = Scripted(answer)
    with serving(create_app(box)) as url:
        for _ in range(3):
            response = httpx.get(f"{url}/health")
            assert response.status_code == 503
            assert "no namespaces" in response.json()["reason"]
        assert box.started == 1
        now[0] = OK
        ask(url)
        assert httpx.get(f"{url}/health").status_code == 200
        now[0] = Execution(Outcome.INFRASTRUCTURE, "", "gone")
        ask(url)
        assert "gone" in httpx.get(f"{url}/health").json()["reason"]


def test_a_sandbox_that_raises_or_hangs_is_not_healthy(monkeypatch) -> None:
    async def raises(*_) -> Execution:
        raise RuntimeError("closed")

    async def hangs(*_) -> Execution:
        await asyncio.sleep(60)
        return OK

    monkeypatch.setattr(monitoring, "PROBE_SECONDS", 0.2)
    for answer, reason in ((raises, "RuntimeError: closed"), (hangs, "did not end within 0.2 s")):
        with serving(create_app(Scripted(answer))) as url:
            response = httpx.get(f"{url}/health")
        assert response.status_code == 503 and reason in response.json()["reason"]


def test_metrics_count_programs_by_outcome_and_time_them() -> None:
    async def answer(code: str, *_) -> Execution:
        return Execution(Outcome(code), "", duration=0.2)

    with serving(create_app(Scripted(answer))) as url:
        assert counted(url)["retool_sandbox_programs_total", "ok"] == 0
        for code in ("ok", "ok", "timeout"):
            ask(url, code)
        ask(url, language="cpp")
        found = counted(url)
        programs = {label: n for (name, label), n in found.items() if name.endswith("ms_total")}
    assert set(programs) == {*(str(outcome) for outcome in Outcome), "cancelled"}
    assert {label: n for label, n in programs.items() if n} == {"ok": 2, "timeout": 1}
    assert found["retool_sandbox_in_flight", ""] == 0
    assert found["retool_sandbox_program_seconds_count", ""] == 3
    assert found["retool_sandbox_program_seconds_sum", ""] == pytest.approx(0.6)
    assert found["retool_sandbox_program_seconds_bucket", "0.1"] == 0
    assert found["retool_sandbox_program_seconds_bucket", "0.3"] == 3


def test_metrics_show_what_is_in_flight_and_what_was_turned_away() -> None:
    box = sleeps()
    with serving(create_app(box, max_in_flight=1)) as url, ThreadPoolExecutor(1) as pool:
        held = pool.submit(ask, url, "1")
        wait_until(lambda: box.running == 1)
        assert ask(url, "0").status_code == 503
        found = counted(url)
        assert found["retool_sandbox_in_flight", ""] == 1
        assert found["retool_sandbox_busy_total", ""] == 1
        held.result()
        assert counted(url)["retool_sandbox_in_flight", ""] == 0


def test_health_says_why_only_to_those_with_the_token() -> None:
    box = says(Execution(Outcome.INFRASTRUCTURE, "", "no namespaces in /secret/path"))
    with serving(create_app(box, SECRET)) as url:
        told = httpx.get(f"{url}/health")
        assert (told.status_code, told.json()) == (503, {"status": "failing"})
        assert "/secret/path" in httpx.get(f"{url}/health", headers=BEARER).json()["reason"]
