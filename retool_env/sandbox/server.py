"""A sandbox over HTTP: `retool serve`, or `create_app` for an ASGI server of one's own.

It answers `POST /run_code` as SandboxFusion does, for Python, so that clients of the one work with
the other; `GET /health` says whether a program can run here, and `GET /metrics` counts them in
Prometheus' text format. What is refused is refused with a status and a `detail` that says why:

* 401: a token is set, and the request does not carry it. `/health` asks for none.
* 413, 408: the body is too large, or does not arrive.
* 422: not a request of the protocol; a language other than Python; a limit above the server's
  `maximum` (it is not lowered: a result under other limits is not the one asked for); files that
  are too many or too large, or whose names lead out of the program's folder.
* 503 with `Retry-After`: `max_in_flight` programs run or wait already.

A failure of the sandbox itself is the protocol's `SandboxError`, never the program's error. A
client that goes away has its program ended.
"""

import asyncio
import binascii
import contextlib
import hmac
import inspect
import ipaddress
import json
import logging
import os
import platform
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field, InstanceOf, ValidationError
from starlette.requests import ClientDisconnect

from retool_env.sandbox.execution import (
    DEFAULT_LIMITS,
    Execution,
    Files,
    Limits,
    Outcome,
    Sandbox,
    check_program,
)
from retool_env.sandbox.fusion import OWN_LIMITS, response_of
from retool_env.sandbox.monitoring import Health, Metrics

MAXIMUM = Limits(
    wall_seconds=120.0,
    memory_mb=16_384,
    output_bytes=16 << 20,
    processes=256,
    tmp_mb=1024,
)
"""The highest limits that a request may ask for, unless the server is told otherwise."""

BODY_BYTES = 32 << 20
"""The largest body: a program of 10 MB, however its characters are escaped."""

_IN_FLIGHT_PER_CPU = 16  # at 5 s a program, the last one waits for 80 s
_BODY_SECONDS = 60.0
_GONE = 499  # nobody reads it
_logger = logging.getLogger(__name__)


class OwnFields(BaseModel):
    """What our own client asks for besides; see [`fusion`][retool_env.sandbox.fusion]."""

    output_bytes: int = DEFAULT_LIMITS.output_bytes
    processes: int = DEFAULT_LIMITS.processes
    tmp_mb: int = DEFAULT_LIMITS.tmp_mb
    display: bool = False


class RunCodeRequest(BaseModel):
    """The body of `POST /run_code`. `compile_timeout` and unknown fields are ignored."""

    code: InstanceOf[str]  # any text: `str` would refuse lone surrogates
    language: Literal["python"]
    stdin: InstanceOf[str] | None = None
    run_timeout: float = 10.0
    memory_limit_MB: int = -1
    files: dict[str, str | None] = {}
    fetch_files: list[str] = []
    retool: OwnFields = Field(default_factory=OwnFields)

    def limits(self, maximum: Limits) -> Limits:
        """The program's limits.

        Raises:
            ValueError: one is not positive, or above the maximum.
        """
        memory = self.memory_limit_MB if self.memory_limit_MB > 0 else DEFAULT_LIMITS.memory_mb
        own = {name: getattr(self.retool, name) for name in OWN_LIMITS}
        limits = Limits(wall_seconds=self.run_timeout, memory_mb=memory, **own)
        for name, highest in vars(maximum).items():
            if (asked := getattr(limits, name)) > highest:
                raise ValueError(f"{name} of {asked} is above this server's maximum, {highest}")
        return limits

    def exchanged(self) -> Files | None:
        """The files that go with the program and come back; `None` where there are none.

        Raises:
            ValueError: one is not base64, its name is none, or there are too many.
        """
        if not (self.files or self.fetch_files):
            return None
        given = {}
        for name, data in self.files.items():
            try:
                given[name] = binascii.a2b_base64(data or "")
            except ValueError as error:
                raise ValueError(f"files: the content of {name!r:.100} is not base64") from error
        return Files(given, self.fetch_files)


def create_app(
    sandbox: Sandbox,
    token: str | None = None,
    *,
    max_in_flight: int | None = None,
    maximum: Limits = MAXIMUM,
) -> FastAPI:
    """The ASGI application that runs programs in `sandbox`, which stays the caller's to close.

    Args:
        sandbox: runs the programs.
        token: what requests must carry, as `Authorization: Bearer TOKEN`; `None`: nothing.
        max_in_flight: how many programs may run and wait at once; `None`: 16 for each processor.
        maximum: the highest limits that a request may ask for.

    Raises:
        ValueError: `max_in_flight` is not positive.
        TypeError: `maximum` is not a `Limits`.
    """
    if not isinstance(maximum, Limits):
        raise TypeError(f"maximum must be a Limits, not {maximum!r:.60}")
    most = (os.cpu_count() or 1) * _IN_FLIGHT_PER_CPU if max_in_flight is None else max_in_flight
    if most < 1:
        raise ValueError(f"max_in_flight must be at least 1, not {most}")
    keeps_files = "files" in inspect.signature(sandbox.run_async).parameters
    health, metrics = Health(sandbox), Metrics()
    in_flight = 0

    async def guard(request: Request) -> None:
        carried = request.headers.get("authorization", "").encode()
        if token and not hmac.compare_digest(carried, f"Bearer {token}".encode()):
            detail = "this server needs its token, as the header 'Authorization: Bearer TOKEN'"
            raise HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})

    @contextlib.contextmanager
    def admitted() -> Iterator[None]:
        nonlocal in_flight
        if in_flight >= most:
            metrics.busy.inc()
            detail = f"{most} programs run or wait already; try again"
            raise HTTPException(503, detail, {"Retry-After": "1"})
        in_flight += 1
        metrics.in_flight.set(in_flight)
        try:
            yield
        finally:
            in_flight -= 1
            metrics.in_flight.set(in_flight)

    programs: set[asyncio.Task[Execution]] = set()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if programs:  # cancelled, and about to end; the event loop would not wait for them
            await asyncio.wait(programs)

    app = FastAPI(title="retool sandbox", lifespan=lifespan, docs_url=None, redoc_url=None)
    schema = {"application/json": {"schema": RunCodeRequest.model_json_schema()}}

    @app.post(
        "/run_code",
        dependencies=[Depends(guard)],
        openapi_extra={"requestBody": {"content": schema, "required": True}},
    )
    async def run_code(request: Request) -> Response:
        with admitted():
            try:
                asked = _parse(await _read(request))
                limits, files = asked.limits(maximum), asked.exchanged()
                if files and not keeps_files:
                    raise ValueError("files and fetch_files: this server's sandbox has none")
                check_program(asked.code, limits, asked.stdin or "", files=files)
            except ClientDisconnect:
                return Response(status_code=_GONE)
            except ValueError as error:
                raise HTTPException(422, str(error)) from None
            program = asyncio.create_task(_run(sandbox, asked, limits, files))
            programs.add(program)
            program.add_done_callback(programs.discard)
            execution = await _while_connected(request, program)
        if execution is None:
            metrics.programs.labels("cancelled").inc()
            return Response(status_code=_GONE)
        health.saw(execution)
        metrics.programs.labels(execution.outcome).inc()
        metrics.seconds.observe(execution.duration)
        return _json(response_of(execution, platform.node(), files.fetched if files else {}))

    @app.get("/health")
    async def show_health() -> Response:
        if reason := await health.failure():
            return _json({"status": "failing", "reason": reason}, 503)
        return _json({"status": "ok"})

    @app.get("/metrics", dependencies=[Depends(guard)])
    async def show_metrics() -> Response:
        text = generate_latest(metrics.registry)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return app


def serve(
    make: Callable[[], Sandbox],
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str | None = None,
    *,
    max_in_flight: int | None = None,
    maximum: Limits = MAXIMUM,
    grace_seconds: int = 30,
) -> None:
    """Serves a sandbox until SIGTERM or SIGINT, and prints the URL when it takes requests.

    The signal closes the port at once; programs in flight then have `grace_seconds` to end, and
    those that still run are ended.

    Args:
        make: makes the sandbox; called once the arguments are known to be right.
        host: the address to bind to.
        port: the port; 0 for a free one.
        token: see `create_app`.
        max_in_flight: see `create_app`.
        maximum: see `create_app`.
        grace_seconds: see above.

    Raises:
        ValueError: other machines could reach the address, and there is no token; or the port is
            none.
        SandboxUnavailable: the sandbox cannot work here.
        OSError: the address cannot be bound to.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"a port is a number up to 65535, not {port}")
    if not token and not _is_loopback(host):
        raise ValueError(
            f"{host} can be reached from other machines, which could then run programs here: "
            "give a token (--token, or RETOOL_SANDBOX_TOKEN), or bind to 127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=1024) as listener, make() as box:
        app = create_app(box, token, max_in_flight=max_in_flight, maximum=maximum)
        config = uvicorn.Config(
            app,
            loop="asyncio",  # the sandbox watches processes through it
            log_level="warning",
            timeout_graceful_shutdown=grace_seconds,
        )
        # asyncio does so where the socket names its protocol, which this one does not: without it,
        # each answer waits 40 ms for the client's acknowledgement of its headers.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{listener.getsockname()[1]}", flush=True)
        # After its graceful stop uvicorn raises the signal once more; the sandbox has yet to close.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _read(request: Request) -> bytes:
    """The body, bounded in size and time."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_BYTES:
                    raise HTTPException(413, f"the body is larger than {BODY_BYTES} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive in {_BODY_SECONDS:g} s") from None
    return bytes(body)


def _parse(body: bytes) -> RunCodeRequest:
    try:
        return RunCodeRequest.model_validate(json.loads(body))
    except ValidationError as error:  # its own text would repeat the program
        found = ((".".join(map(str, each["loc"])), each["msg"]) for each in error.errors())
        named = (f"{where or 'body'}: {why}" for where, why in found)
        raise ValueError("; ".join(named)) from None
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None


async def _run(
    sandbox: Sandbox, asked: RunCodeRequest, limits: Limits, files: Files | None
) -> Execution:
    own = {"stdin": asked.stdin or "", "display": asked.retool.display}
    own |= {"files": files} if files else {}
    try:
        return await sandbox.run_async(asked.code, limits, **own)
    except Exception as error:  # a sandbox that is closed or broken; the client may ask another
        _logger.exception("the sandbox failed")
        return Execution(Outcome.INFRASTRUCTURE, "", f"{type(error).__name__}: {error}")


async def _while_connected(request: Request, program: asyncio.Task[Execution]) -> Execution | None:
    """What came of the program; `None` when the client went away, and the program was ended."""
    gone = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({program, gone}, return_when=asyncio.FIRST_COMPLETED)
        return program.result() if program.done() else None
    finally:
        gone.cancel()
        program.cancel()
        await asyncio.wait({program, gone})  # the slot is free when the program is gone


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(content: dict[str, Any], status: int = 200) -> Response:
    # Escaped, as a lone surrogate in a traceback cannot be encoded.
    return Response(json.dumps(content), status, media_type="application/json")
