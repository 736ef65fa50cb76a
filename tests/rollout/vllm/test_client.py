"""The client of `vllm serve`, against local servers, and the check of its answers."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from fastapi import Response
from fastapi.responses import JSONResponse
from helpers.vllm_servers import Served, serving

from retool_env.rollout.vllm.client import Client, field, fields
from retool_env.rollout.vllm.routing import Server
from retool_env.servers.hosts import Failure


def test_a_server_that_drips_keeps_nobody_waiting(monkeypatch):
    monkeypatch.setattr("retool_env.servers.hosts.CONNECT_SECONDS", 0.2)

    async def drip(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)

    async def main():
        async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            client = Client(None)
            with pytest.raises(Failure, match=r"no complete response within 0\.5 s"):
                await client.send(Server(url), "GET", "/v1/models", seconds=0.3)
            await client.close()

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("answer", [None, [], {}, {"n": None}, {"n": "3"}, {"n": True}, {"n": 3.0}])
def test_a_field_of_another_type_is_a_failure(answer):
    with pytest.raises(Failure, match="in n: is the server vllm serve"):
        field(answer, "n", int)


def test_numbers_must_be_finite():
    assert fields({"n": [1.5, 2]}, "n", float, int) == [1.5, 2]
    for wrong in (float("nan"), float("inf"), True, "1.5"):
        with pytest.raises(Failure, match="in n"):
            fields({"n": [1.5, wrong]}, "n", float, int)
    with pytest.raises(Failure, match="in n"):
        fields({"n": 1.5}, "n", float)


@pytest.mark.parametrize(
    ("response", "error", "words"),
    [
        (JSONResponse("no", 401), PermissionError, "HTTP 401 .*set `token` to the --api-key"),
        (JSONResponse("odd", 400), ValueError, 'refuses the request: HTTP 400 "odd"'),
        (JSONResponse("slow", 408), Failure, "HTTP 408"),
        (JSONResponse("broken", 500), Failure, 'HTTP 500 "broken"'),
        (Response("<html>"), Failure, "the answer is not JSON: '<html>'"),
    ],
)
def test_what_an_answer_means(response, error, words):
    async def main(url):
        client = Client("key")
        try:
            await client.send(Server(url), "POST", "/v1/completions", {"prompt": [1]})
        finally:
            await client.close()

    with serving(Served(failures=[response])) as url, pytest.raises(error, match=words):
        asyncio.run(main(url))
