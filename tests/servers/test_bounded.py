"""Bounds of responses: raw sockets answer clients of httpx and httpx2."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import traceback
from collections.abc import Awaitable, Callable

import pytest

pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")

import httpx
import openai

from retool_env.episode import Episode
from retool_env.problems import Problem
from retool_env.rollout import PolicyUnavailable
from retool_env.rollout.openai import policy as policies
from retool_env.rollout.openai.policy import OpenAIPolicy
from retool_env.rules import Rules
from retool_env.servers.bounded import MOST_BYTES, bounded_client

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]

MOST = 1000
KEY = "sk-very-secret-1"
TRANSCRIPT = Episode(
    Problem(id="p", question="q", answer="1"), Rules(prompt_template="{query}")
).transcript


def head(status: str = "200 OK", **fields: object) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def says(data: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return answer


async def drips_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    await drip(writer, b"x")


async def drips_a_body(writer: asyncio.StreamWriter) -> None:
    writer.write(head(Content_Length=9999))
    await drip(writer, b" ")


async def only_informs(writer: asyncio.StreamWriter) -> None:
    await drip(writer, b"HTTP/1.1 103 Early Hints\r\n\r\n")


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    while True:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0.05)


async def never_ends(writer: asyncio.StreamWriter) -> None:
    writer.write(head())
    while True:
        writer.write(b"x" * 10_000)
        await writer.drain()


@contextlib.asynccontextmanager
async def served(answer: Answer, asked: list[bytes] | None = None):
    """The URL of a server that sends one response per connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            if asked is not None:
                asked.append(request)
            await answer(writer)
            await writer.drain()
            if b"Content-Length" in request:
                await reader.read(1 << 16)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def ask(base: type, answer: Answer, asked: list[bytes] | None = None, **options: object):
    async def main():
        async with served(answer, asked) as url:
            client = bounded_client(base, MOST, timeout=0.2, follow_redirects=True)
            try:
                return await asyncio.wait_for(client.get(url, **options), 10)
            finally:
                await client.aclose()

    return asyncio.run(main())


@pytest.fixture(params=[httpx.AsyncClient, openai.DefaultAsyncHttpxClient])
def base(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.mark.parametrize("answer", [drips_headers, drips_a_body, only_informs])
def test_the_total_time_of_a_response_is_limited(base, answer):
    with pytest.raises(Exception, match=r"no complete response within 0\.4 s") as caught:
        ask(base, answer)
    assert type(caught.value).__name__ == "ReadTimeout"


@pytest.mark.parametrize(
    "answer",
    [
        never_ends,
        says(head(Content_Length=MOST + 1) + b"x" * (MOST + 1)),
        says(head("500 X", Content_Length=MOST + 1) + b"x" * (MOST + 1)),
        says(head("307 X", Location="/", Content_Length=10**6) + b"x" * 10**6),
    ],
    ids=["endless", "large", "error", "redirection"],
)
def test_the_size_of_a_response_is_limited(base, answer):
    with pytest.raises(Exception, match="larger than 1000 bytes") as caught:
        ask(base, answer)
    assert type(caught.value).__name__ == "DecodingError"


def test_a_request_may_set_its_own_limit(base):
    answer = says(head(Content_Length=MOST + 1) + b"x" * (MOST + 1))
    assert len(ask(base, answer, extensions={MOST_BYTES: 2 * MOST}).content) == MOST + 1


@pytest.mark.some(3)
@pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "br", "zstd", "identity, gzip"])
def test_a_compressed_response_is_refused(base, coding):
    asked: list[bytes] = []
    body = gzip.compress(b"0" * 10**8)[:900]
    answer = says(head(Content_Encoding=coding, Content_Length=len(body)) + body)
    with pytest.raises(Exception, match="the response is encoded"):
        ask(base, answer, asked)
    assert b"accept-encoding: identity\r\n" in asked[0].lower()


@pytest.mark.parametrize("charset", ["utf-16", "base64", "zlib", "none"])
def test_text_is_utf_8(base, charset):
    fields = {"Content_Type": f"text/plain; charset={charset}", "Content_Length": 3}
    assert ask(base, says(head(**fields) + b"a\xc3\xa9")).text == "a\u00e9"


# --- inside the policy ---------------------------------------------------------------------------


def write(answer: Answer, **options: object) -> str:
    async def main():
        async with served(answer) as url:
            policy = OpenAIPolicy("m", f"{url}/v1", KEY, retries=0, **options)
            return await asyncio.wait_for(policy.write(TRANSCRIPT, ("</code>",), 1), 20)

    return asyncio.run(main()).text


def json_answer(text: str | bytes, status: str = "200 OK") -> Answer:
    data = text.encode() if isinstance(text, str) else text
    return says(head(status, Content_Type="application/json", Content_Length=len(data)) + data)


@pytest.mark.parametrize(
    "answer", [drips_headers, drips_a_body, only_informs, never_ends], ids=lambda a: a.__name__
)
def test_an_endless_response_of_an_api_is_an_error(answer, monkeypatch):
    monkeypatch.setattr(policies, "_CONNECT_SECONDS", 0.2)
    with pytest.raises(ConnectionError, match=r"no complete response|larger than|timed out"):
        write(answer, timeout=0.3)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 100_000,
        '{"created": ' + "9" * 5000 + "}",
        b'{"id": "\xff"}',
        '{"choices": [{"message": {"content": "a", "tool_calls": 3}}]}',
        '{"choices": [{"message": {"content": "a", "tool_calls": [3]}}]}',
        '{"choices": [{"message": {"content": [{"type": "text"}]}}]}',
        '{"choices": 3}',
        "3",
    ],
    ids=["list", "object", "integer", "bytes", "calls", "call", "part", "choices", "number"],
)
def test_an_unreadable_response_is_one_failure(text):
    with pytest.raises(PolicyUnavailable, match=r"http://.* answers"):
        write(json_answer(text))


def test_impossible_figures_do_not_count():
    async def main():
        choice = {"message": {"content": "a"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": -5, "completion_tokens": 10**400}
        text = json.dumps({"choices": [choice], "usage": usage})
        async with served(json_answer(text)) as url:
            policy = OpenAIPolicy("m", f"{url}/v1", retries=0)
            await policy.write(TRANSCRIPT, ("</code>",), 1)
        return policy.usage

    assert asyncio.run(main()) == policies.Usage(1, 0, 0, 1)


@pytest.mark.some(12)
@pytest.mark.parametrize("status", ["400 X", "401 X", "404 X", "429 X", "500 X", "200 OK"])
@pytest.mark.parametrize(
    "text",
    [
        '{"error": {"message": "the key %s"}}',
        '{"error": "%s"}',
        "%s",
        '"%s"',
        '{"%s": 1}',
        '{"choices": [{"finish_reason": "%s"}]}',
        '{"error": {"message": "' + "x" * 290 + '%s"}}',
    ],
)
def test_a_key_that_an_api_repeats_is_not_shown(status, text):
    with pytest.raises(Exception) as caught:
        write(json_answer(text % KEY, status))
    shown = "".join(traceback.format_exception(caught.value))
    assert KEY not in shown and KEY[:8] not in shown
