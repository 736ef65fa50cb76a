"""Local HTTP servers that answer like `vllm serve`, with a scripted model behind them.

As a script, one in a process of its own, which can be killed; it prints "turn" when it is asked for one, and "end" when it
has answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

WRITTEN = [7, 8, 9]


@dataclass
class Served:
    """A server. Its attributes may be changed while it serves."""

    model: str = "m"
    written: list[int] = field(default_factory=lambda: list(WRITTEN))
    """What the model writes at each turn; the last token completes a tag."""
    context: int = 512
    root: str | None = None
    """The checkpoint's folder, where it is not `model`."""
    token: str | None = None
    delay: float = 0.0
    logprob: float = -0.5
    certain: float = 0.0
    """The log-prob that is reported where one token is certain."""
    finish: dict[str, Any] = field(
        default_factory=lambda: {"finish_reason": "stop", "stop_reason": "</code>"}
    )
    echo: list[int] | None = None
    """The prompt that it claims to have seen, where it is not the one that it was sent."""
    failures: list[Response] = field(default_factory=list)
    """Sent instead of a turn, one a request."""
    instead: dict[str, Any] = field(default_factory=dict)
    """JSON values that it answers instead, by the last part of a path."""
    weights: str = "default"
    load: Callable[[str], Any] = lambda folder: None
    """Called with the folder of new weights, in a thread."""
    broken: list[str] = field(default_factory=list)
    """Names of calls that fail, once for each time that it is here."""
    cut: list[str] = field(default_factory=list)
    """Names of calls whose connection is closed in the midst of the answer, once for each time that it is here."""
    developer: bool = True
    tell: Callable[[str], None] = lambda event: None
    """Called with each event."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of the turns that were asked for."""
    events: list[str] = field(default_factory=list)
    running: int = 0
    most: int = 0
    """Turns at once."""
    paused: bool = False
    gone: int = 0
    """Turns whose client hung up."""

    @property
    def prompts(self) -> list[list[int]]:
        return [body["prompt"] for body in self.bodies]

    async def models(self, request: Request) -> Response:
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        if "models" in self.instead:
            return JSONResponse(self.instead["models"])
        return JSONResponse(
            {"data": [{"id": self.model, "max_model_len": self.context, "root": self.root}]}
        )

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self._note("turn")
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            left = round(self.delay / 0.02)
            while left > 0 or self.paused:
                if await request.is_disconnected():
                    self.gone += 1
                    return Response()
                await asyncio.sleep(0.02)
                left -= not self.paused
        finally:
            self.running -= 1
        self._note("end")
        if self.failures:
            return self.failures.pop(0)
        logprob = self.certain if body["top_p"] < 1e-3 else self.logprob
        ids = self.written[: body["max_tokens"]]
        choice = {
            "token_ids": ids,
            "prompt_token_ids": body["prompt"] if self.echo is None else self.echo,
            "logprobs": {"token_logprobs": [logprob] * len(ids)},
            **self.finish,
        }
        return JSONResponse({"choices": [choice]})

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.tell(event)

    async def control(self, request: Request) -> Response:
        if not self.developer:
            return JSONResponse({"detail": "Not Found"}, 404)
        name = request.url.path.strip("/")
        if name in self.cut:
            self.cut.remove(name)
            return StreamingResponse(_broken_off())
        if name in self.instead:
            return JSONResponse(self.instead[name])
        if name == "weight_info":
            return JSONResponse({"weight_version": self.weights})
        if name == "is_paused":
            return JSONResponse({"is_paused": self.paused})
        body = await request.json() if await request.body() else {}
        if name in self.broken:
            self.broken.remove(name)
            return JSONResponse({"error": "broken"}, 500)
        self._note(name + "".join(f" {body['method']} {each}" for each in body.get("args", [])))
        if name in ("pause", "resume"):
            self.paused = name == "pause"
        if name == "collective_rpc":
            await asyncio.to_thread(self.load, *body["args"])
        self.weights = body.get("new_version", self.weights)
        return JSONResponse({})


async def _broken_off() -> AsyncIterator[str]:
    yield "{"
    raise ConnectionError


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def serving(served: Served, port: int = 0) -> Iterator[str]:
    """Serves from a thread; at its end the connections are cut and the port is closed."""
    app = FastAPI()
    app.add_api_route("/v1/models", served.models, methods=["GET"])
    app.add_api_route("/v1/completions", served.complete, methods=["POST"])
    app.add_api_route("/{rest:path}", served.control, methods=["GET", "POST"])
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=0)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


@contextlib.contextmanager
def serving_apart(**settings: Any) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own; its URL, and the process, whose events are lines of its stdout."""
    command = [sys.executable, __file__, json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


if __name__ == "__main__":
    with serving(
        Served(**json.loads(sys.argv[1]), tell=lambda event: print(event, flush=True))
    ) as url:
        print(url, flush=True)
        threading.Event().wait()
