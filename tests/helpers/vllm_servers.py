"""Local HTTP servers that answer like `vllm serve`, with a scripted model behind them.

As a script, the server runs in its own process, which a test can kill. It prints "turn" when a
request for a turn arrives, and "end" when it answers.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from retool_env.rollout.weight_files import wait_until_stable
from retool_env.rollout.weights import checksum

WRITTEN = [7, 8, 9]


@dataclass
class Served:
    """A server. Tests may change its attributes while it serves."""

    model: str = "m"
    written: list[int] = field(default_factory=lambda: list(WRITTEN))
    """The token ids of each turn; the last token completes a tag."""
    context: int = 512
    root: str | None = None
    """The checkpoint's folder; `None`: `model`."""
    token: str | None = None
    delay: float = 0.0
    logprob: float = -0.5
    certain: float = 0.0
    """The reported log-prob where the sampling settings leave only one token."""
    finish: dict[str, Any] = field(
        default_factory=lambda: {"finish_reason": "stop", "stop_reason": "</code>"}
    )
    echo: list[int] | None = None
    """The prompt that the server claims to have received; `None`: the received prompt."""
    failures: list[Response] = field(default_factory=list)
    """Responses that replace the turns of the next requests, in order."""
    instead: dict[str, Any] = field(default_factory=dict)
    """JSON values that replace answers, by the last part of the path."""
    weights: str = "default"
    adapters: dict[str, str] = field(default_factory=dict)
    """The folder of each LoRA adapter, by name."""
    load: Callable[[str], Any] = lambda folder: None
    """Called with the folder of new weights, in a thread."""
    broken: list[str] = field(default_factory=list)
    """Names of calls that fail, once for each time that the name occurs."""
    cut: list[str] = field(default_factory=list)
    """Names of calls whose answer is cut, once for each time that the name occurs."""
    developer: bool = True
    tell: Callable[[str], None] = lambda event: None
    """Called with each event."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of all requests for turns."""
    events: list[str] = field(default_factory=list)
    running: int = 0
    most: int = 0
    """The largest number of turns at the same time."""
    paused: bool = False
    held: bool = False
    """Whether turns do not end, although the server is not paused."""
    updating: bool = False
    """Whether a transfer of weights is under way."""
    checksum: int | None = None
    """The checksum of the received weights; `None`: the one of the weights that were sent."""
    workers: int = 1
    hangs: list[str] = field(default_factory=list)
    """Names of calls that are never answered."""
    dies: list[str] = field(default_factory=list)
    """Names of calls at which the server dies."""
    kill: Callable[[], None] = lambda: None
    """Ends the server; `serving` sets it."""
    joined: list[dict[str, Any]] = field(default_factory=list)
    """The groups that the server joined, as it was told of them."""
    unseen: int = 0
    """Number of loads of adapters for which the server does not see the folder yet."""
    refuse: str = ""
    """The error with which an adapter is refused; empty: it is loaded."""
    loading: set[str] = field(default_factory=set)
    """The adapters that are being loaded."""
    gone: int = 0
    """Number of turns whose client disconnected."""
    slow_answers: float = 0.0
    """Seconds from the answer of a cut turn to the answer of the next one."""
    before_cut: int = 1
    """Number of tokens that a turn has when a pause cuts it."""
    answered: int = 0
    """Number of slow answers."""
    pauses: list[str] = field(default_factory=list)
    """The query of each pause."""
    cuts: int = 0
    """Number of pauses that cut the turns under way."""
    metrics: str = ""
    """The text of the metrics; empty: there are none."""
    deaf: bool = False
    """Whether a pause cuts nothing, as if the turns had come after it."""

    @property
    def prompts(self) -> list[list[int]]:
        return [body["prompt"] for body in self.bodies]

    async def models(self, request: Request) -> Response:
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        if "models" in self.instead:
            return JSONResponse(self.instead["models"])
        base = {"id": self.model, "max_model_len": self.context, "root": self.root}
        loras = [{"id": n, "root": r, "parent": self.model} for n, r in self.adapters.items()]
        return JSONResponse({"data": [base, *loras]})

    async def lora(self, request: Request) -> Response:
        """Load or unload an adapter."""
        name, body = request.url.path.removeprefix("/v1/"), await request.json()
        if name in self.broken:
            self.broken.remove(name)
            return JSONResponse({"error": "broken"}, 500)
        self._note(f"{name} {body['lora_name']}")
        if name == "unload_lora_adapter":
            if self.adapters.pop(body["lora_name"], None) is None:
                return JSONResponse({"error": "cannot be found"}, 404)
            return Response("Success: removed")
        if self.unseen:
            self.unseen -= 1
            return JSONResponse({"error": "No adapter found"}, 404)
        if self.refuse:
            return JSONResponse({"error": self.refuse}, 400)
        adapter = body["lora_name"]
        while adapter in self.loading:
            await asyncio.sleep(0.01)
        if adapter in self.adapters:
            return JSONResponse({"error": "has already been loaded"}, 400)
        self.loading.add(adapter)
        await asyncio.to_thread(self.load, body["lora_path"])
        self.loading.remove(adapter)
        self.adapters[adapter] = body["lora_path"]
        return Response("Success: added")

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        if body.get("model", self.model) not in (self.model, *self.adapters):
            return JSONResponse({"error": "does not exist"}, 404)
        self.bodies.append(body)
        if "turn" in self.cut:
            self.cut.remove("turn")
            return StreamingResponse(_broken_off())
        self._note("turn")
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            left, cuts = round(self.delay / 0.02), self.cuts
            while (left > 0 or self.paused or self.held) and self.cuts == cuts:
                if await request.is_disconnected():
                    self.gone += 1
                    return Response()
                await asyncio.sleep(0.02)
                left -= not self.paused
        finally:
            self.running -= 1
        if self.cuts > cuts and self.slow_answers:
            self.answered += 1
            await asyncio.sleep(self.slow_answers * self.answered)
        self._note("end")
        if self.failures:
            return self.failures.pop(0)
        logprob = self.certain if body["top_p"] < 1e-3 else self.logprob
        # A turn that was cut goes on: its first tokens are in the prompt.
        there = [n for n in range(len(self.written)) if body["prompt"][-n:] == self.written[:n]]
        ids = self.written[max(there, default=0) if self.cuts else 0 :][: body["max_tokens"]]
        finish = self.finish
        if self.cuts > cuts:
            ids, finish = ids[: self.before_cut], {"finish_reason": "abort", "stop_reason": None}
        choice = {
            "token_ids": ids,
            "prompt_token_ids": body["prompt"] if self.echo is None else self.echo,
            "logprobs": {"token_logprobs": [logprob] * len(ids)},
            **finish,
        }
        return JSONResponse({"choices": [choice]})

    async def measure(self) -> Response:
        status = {"": 404, "refused": 403}.get(self.metrics, 200)
        return Response(self.metrics, status)

    def _transfer(self, name: str, body: dict[str, Any]) -> Response:
        """A step of a transfer of weights, refused out of order as vLLM refuses it."""
        self._note(name)
        if name == "init_weight_transfer_engine":
            self.joined.append(body["init_info"])
        elif not self.joined or self.updating == (name == "start_weight_update"):
            return JSONResponse({"error": "out of order"}, 500)
        else:
            self.updating = name != "finish_weight_update"
        return JSONResponse({})

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
        call = body.get("method", name)
        if call in self.dies:
            self._note(f"{call} and death")
            self.kill()
        if call in self.hangs or call in self.dies:
            while not await request.is_disconnected():
                await asyncio.sleep(0.02)
            return Response()
        if name in self.broken or call in self.broken:
            self.broken.remove(name if name in self.broken else call)
            return JSONResponse({"error": "broken"}, 500)
        if name == "health":
            return Response()
        if name == "get_world_size":
            return JSONResponse({"world_size": self.workers})
        if call in ("prepare_update", "received_checksum"):
            self._note(call)
            self.updating = False
            number = SENT[-1] if SENT and self.checksum is None else self.checksum
            return JSONResponse({"results": [{"checksum": number}] * self.workers})
        if "weight_update" in name or name in ("update_weights", "init_weight_transfer_engine"):
            return self._transfer(name, body)
        if name in self.broken:
            self.broken.remove(name)
            return JSONResponse({"error": "broken"}, 500)
        loads = name == "collective_rpc"
        self._note(f"{name} {body['method']} {body['args'][0]}" if loads else name)
        if name in ("pause", "resume"):
            self.paused = name == "pause"
            self.pauses += [request.url.query] * self.paused
            self.cuts += request.query_params.get("mode") == "abort" and not self.deaf
        if loads:
            folder, marked = body["args"]
            if marked:
                wait_until_stable(folder)
            await asyncio.to_thread(self.load, folder)
        self.weights = body.get("new_version", self.weights)
        return JSONResponse({})


SENT: list[int] = []
"""The checksums of the weights that `Engine` has sent."""


class Engine:
    """A trainer's end of a transfer to scripted servers, in place of vLLM's.

    Args:
        size: The number of all workers, and of the trainer.
        client: The client that speaks to the servers.
        source: The weights.
    """

    def __init__(self, size, client, source):
        self.client, self.source = client, source
        client.init_weight_transfer_engine({"rank_offset": 1, "world_size": size})

    def send_weights(self):
        self.client.start_weight_update()
        with ThreadPoolExecutor(1) as threads:
            receiving = threads.submit(self.client.update_weights, {"names": []})
            SENT.append(checksum(list(self.source)))
            assert len(self.source.metadata()) == len(list(self.source))
            receiving.result()
        self.client.finish_weight_update()

    def shutdown(self):
        SENT.clear()


async def _broken_off() -> AsyncIterator[str]:
    yield "{"
    raise ConnectionError


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def serving(served: Served, port: int = 0) -> Iterator[str]:
    """Serve from a thread; yields the URL. The end cuts the connections and closes the port."""
    app = FastAPI()
    app.add_api_route("/v1/models", served.models, methods=["GET"])
    app.add_api_route("/v1/completions", served.complete, methods=["POST"])
    app.add_api_route("/v1/load_lora_adapter", served.lora, methods=["POST"])
    app.add_api_route("/v1/unload_lora_adapter", served.lora, methods=["POST"])
    app.add_api_route("/metrics", served.measure, methods=["GET"])
    app.add_api_route("/{rest:path}", served.control, methods=["GET", "POST"])
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=0)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})

    def kill() -> None:
        server.should_exit = server.force_exit = True

    served.kill = kill
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        kill()
        thread.join()


@contextlib.contextmanager
def serving_apart(**settings: Any) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve in a new process; yields the URL and the process, which prints its events."""
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
