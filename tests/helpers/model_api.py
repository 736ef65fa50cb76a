"""A local HTTP server that behaves like an OpenAI-compatible API, with a scripted model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response


@dataclass(frozen=True)
class Reply:
    """The output of the model without any stop string."""

    text: str = ""
    """The text of the answer."""
    calls: tuple[tuple[str, str], ...] = ()
    """Names and arguments of native calls."""
    finish: str | None = None
    """The finish reason; `None`: derived from the text and the calls."""
    reasoning: str | None = None
    """The reasoning text; `None`: left out."""
    refused: str | None = None
    """The message of a refusal with status 400; `None`: the API answers."""


Model = Callable[[list[dict[str, Any]] | str], Reply]
"""A function from the messages, or the prompt, to the model's output."""

Stops = Literal["cuts", "vllm", "sglang", "keeps", "ignores", "refuses"]
"""The treatment of stop strings: `cuts` (OpenAI) removes them; `vllm` and `sglang` remove and name
them; `keeps` (transformers serve) leaves them in the text; `ignores` samples past them; `refuses`
(OpenAI's reasoning models) answers with status 400."""


@dataclass
class ModelAPI:
    """The API. Tests may change its attributes while it serves."""

    model: Model
    stops: Stops = "cuts"
    key: str | None = None
    usage: bool = True
    delay: float = 0.0
    failures: list[Response] = field(default_factory=list)
    """Responses that replace the answers of the next requests, in order."""
    accepts: set[str] | None = None
    """The accepted fields; other fields are refused with status 422, as in Mistral's API. `None`:
    all fields."""
    renamed: bool = False
    """Whether the API requires `max_completion_tokens` instead of `max_tokens`."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of all requests, including refused and failed requests."""
    authorizations: list[str | None] = field(default_factory=list)
    running: int = 0
    most: int = 0
    """The largest number of requests at the same time."""
    gone: int = 0
    """Number of requests whose client disconnected."""

    async def __call__(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.authorizations.append(request.headers.get("authorization"))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await self._answer(request, body)
        finally:
            self.running -= 1

    async def _answer(self, request: Request, body: dict[str, Any]) -> Response:
        for _ in range(round(self.delay / 0.02)):
            if await request.is_disconnected():
                self.gone += 1
                return Response()
            await asyncio.sleep(0.02)
        if self.failures:
            return self.failures.pop(0)
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return refusal(401, "Incorrect API key provided.", code="invalid_api_key")
        if body["model"] != "m":
            return refusal(404, f"The model `{body['model']}` does not exist.")
        unknown = sorted(set(body) - self.accepts) if self.accepts is not None else []
        if unknown:
            words = "Extra inputs are not permitted"
            detail = [{"type": "extra_forbidden", "loc": ["body", unknown[0]], "msg": words}]
            return JSONResponse({"object": "error", "message": {"detail": detail}}, 422)
        for name, refused in (("stop", self.stops == "refuses"), ("max_tokens", self.renamed)):
            if refused and name in body:
                words = f"Unsupported parameter: '{name}' is not supported with this model."
                return refusal(400, words, param=name, code="unsupported_parameter")
        chat = request.url.path.endswith("/chat/completions")
        reply = self.model(body["messages"] if chat else body["prompt"])
        if reply.refused is not None:
            return refusal(400, reply.refused)
        return JSONResponse(self._body(reply, body, chat))

    def _body(self, reply: Reply, body: dict[str, Any], chat: bool) -> dict[str, Any]:
        text, stopped = reply.text, None
        found = [(text.find(tag), tag) for tag in body.get("stop", []) if tag in text]
        if found and self.stops != "ignores":
            at, stopped = min(found)
            text = text[: at + len(stopped) * (self.stops == "keeps")]
        calls = reply.calls if chat and "tools" in body and stopped is None else ()
        finish = reply.finish or ("tool_calls" if calls else "stop")
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self.stops == "vllm":
            choice["stop_reason"] = stopped
        if self.stops == "sglang":
            choice["matched_stop"] = stopped or 151645
        if chat:
            message: dict[str, Any] = {"role": "assistant", "content": text or None}
            if calls:
                message["tool_calls"] = [
                    {"id": f"x{i}", "type": "function", "function": {"name": n, "arguments": a}}
                    for i, (n, a) in enumerate(calls)
                ]
            if reply.reasoning is not None:
                message["reasoning_content"] = reply.reasoning
            choice["message"] = message
        else:
            choice["text"] = text
        answer: dict[str, Any] = {"id": "c", "object": "chat.completion" if chat else "completion"}
        answer |= {"created": 0, "model": "m", "choices": [choice]}
        if self.usage:
            read = len(json.dumps(body.get("messages", body.get("prompt"))))
            tokens = {"prompt_tokens": read, "completion_tokens": len(text)}
            answer["usage"] = {**tokens, "total_tokens": read + len(text)}
        return answer


def refusal(
    status: int, message: str, headers: dict[str, str] | None = None, **more: str
) -> Response:
    """An error in OpenAI's format.

    Args:
        status: The HTTP status.
        message: The text of the error.
        headers: Headers of the response.
        **more: Further fields of the error.
    """
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": {**error, **more}}, status, headers)


def busy(status: int = 429) -> Response:
    """An error after which the client may try again at once."""
    return refusal(status, "too many requests", {"retry-after-ms": "1"})


@contextlib.contextmanager
def serving(api: Callable[[Request], Awaitable[Response]]) -> Iterator[str]:
    """Serve the API from a thread; yields its base URL. Other paths answer with a web page."""
    app = FastAPI()
    for path in ("/v1/chat/completions", "/v1/completions"):
        app.add_api_route(path, api.__call__, methods=["POST"])
    app.add_api_route(
        "/{rest:path}", lambda: PlainTextResponse("<html>hello</html>"), methods=["POST"]
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
