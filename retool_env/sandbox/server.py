"""A sandbox over HTTP: `retool serve`, or `create_app` for an ASGI server of one's own.

It answers `POST /run_code` as SandboxFusion does, for Python, so that clients of the one work with
the other; `GET /health` says whether a program can run here, and `GET /metrics` counts them in
Prometheus' text format. What is refused is refused with a status and a `detail` that says why:

* 401: a token is set, and the request does not carry it; nothing more of it is read. Only `/health`
  asks for none, and without it says only whether a program can run.
* 413, 408: the body is too large, or does not arrive.
* 422: not a request of the protocol; a language other than Python; a limit above the server's
  `maximum` (it is not lowered: a result under other limits is not the one asked for); files that
  are too many or too large, or whose names lead out of the program's folder.
* 503 with `Retry-After`: `max_in_flight` programs run or wait already; or more bodies come than can
  be read at once, and this one comes slowly; or the server stops.

A failure of the sandbox itself is the protocol's `SandboxError`, never the program's error; so is
what becomes of a program that still runs when the server's grace is over. A client that goes away
has its program ended. A program takes one of the `max_in_flight` places once its body is there.

`serve` bounds the time that headers and answers may take, and the connections
([`connections`][retool_env.sandbox.connections]); another ASGI server must do so itself.
"""

import asyncio
import contextlib
import inspect
import ipaddress
import json
import logging
import os
import platform
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect

from retool_env.errors import SettingsError
from retool_env.execution import (
    Execution,
    Files,
    Limits,
    Outcome,
    Sandbox,
    SandboxUnavailable,
    check_program,
)
from retool_env.sandbox.bodies import Bodies
from retool_env.sandbox.connections import Connections, TokenRequired, shows_token
from retool_env.sandbox.fusion import response_of
from retool_env.sandbox.monitoring import Health, Metrics
from retool_env.sandbox.requests import RunCodeRequest, parse
from retool_env.servers.address import check_key

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
_BODIES = 128  # that are read at once
_BODIES_BYTES = 512 << 20  # of all of them
_OTHERS = 128  # connections for those who wait, ask for the health, or have no token
_ACCEPTED = 16  # connections that the event loop accepts before it looks at any of them
_BACKLOG = 1024  # connections that wait for that
# Open files: of Python, the event loop, and connections just accepted or about to be closed; of a
# guest of each kind with its spare processes; and of a program that runs or is about to.
_FILES, _FILES_PER_GUEST, _FILES_PER_PROGRAM = 64 + 6 * _ACCEPTED, 24, 4
_GUESTS, _RUNNING = 8, 256  # guests of each kind, and programs that run at once, at most
_TOKEN_CHARACTERS = 4096  # a request's headers are 16 KiB at most
_END_SECONDS = 10.0  # for the last answers, when the server stops
_CLOSE = {"Connection": "close"}  # where the rest of a body is not wanted
_STOPS = "the server stops, and its grace is over"
_GONE = 499  # nobody reads it
_logger = logging.getLogger(__name__)


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
        ValueError: `max_in_flight` is not positive, or no client could send the token.
        TypeError: `maximum` is not a `Limits`.
    """
    if not isinstance(maximum, Limits):
        raise TypeError(f"maximum must be a Limits, not {maximum!r:.60}")
    most = (os.cpu_count() or 1) * _IN_FLIGHT_PER_CPU if max_in_flight is None else max_in_flight
    if most < 1:
        raise SettingsError(f"max_in_flight must be at least 1, not {most}")
    _check_token(token)
    keeps_files = "files" in inspect.signature(sandbox.run_async).parameters
    health, metrics = Health(sandbox), Metrics()
    bodies = Bodies(_BODIES, _BODIES_BYTES)
    in_flight = 0

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

    requests: set[asyncio.Task[Any]] = set()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if requests:  # cancelled, and about to be answered; the event loop would not wait for them
            await asyncio.wait(requests, timeout=_END_SECONDS)

    app = FastAPI(title="retool sandbox", lifespan=lifespan, docs_url=None, redoc_url=None)
    schema = {"application/json": {"schema": RunCodeRequest.model_json_schema()}}

    app.add_middleware(TokenRequired, token=token, open_paths=["/health"])

    @app.post("/run_code", openapi_extra={"requestBody": {"content": schema, "required": True}})
    async def run_code(request: Request) -> Response:
        task = asyncio.current_task()
        assert task is not None
        requests.add(task)
        task.add_done_callback(requests.discard)
        try:
            asked = parse(await _read(request, bodies))
            limits, files = asked.limits(maximum), asked.exchanged()
            if files and not keeps_files:
                raise ValueError("files and fetch_files: this server's sandbox has none")
            check_program(asked.code, limits, asked.stdin or "", files=files)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        with admitted():
            program = asyncio.create_task(_run(sandbox, asked, limits, files))
            execution = await _while_connected(request, program)
        if execution is None:
            metrics.programs.labels("cancelled").inc()
            return Response(status_code=_GONE)
        health.saw(execution)
        metrics.programs.labels(execution.outcome).inc()
        metrics.seconds.observe(execution.duration)
        return _json(response_of(execution, platform.node(), files.fetched if files else {}))

    @app.get("/health")
    async def show_health(request: Request) -> Response:
        if reason := await health.failure():
            told = {"reason": reason} if shows_token(request.scope["headers"], token) else {}
            return _json({"status": "failing", **told}, 503)
        return _json({"status": "ok"})

    @app.get("/metrics")
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

    The signal closes the port at once; programs in flight then have `grace_seconds` to end. Those
    that still run are ended, and their clients told so: an infrastructure failure, which a client
    with other hosts tries there.

    Args:
        make: makes the sandbox; called once the arguments are known to be right.
        host: the address to bind to.
        port: the port; 0 for a free one.
        token: see `create_app`.
        max_in_flight: see `create_app`; `None`: fewer than there where the limit on open files
            leaves no room for them.
        maximum: see `create_app`.
        grace_seconds: see above.

    Raises:
        ValueError: other machines could reach the address, and there is no token; or no client
            could send the token; or the port is none, or the grace negative.
        SandboxUnavailable: the sandbox cannot work here, or the limit on open files is too low.
        OSError: the address cannot be bound to.
    """
    if not 0 <= port <= 65535:
        raise SettingsError(f"a port is a number up to 65535, not {port}")
    if grace_seconds < 0:
        raise SettingsError(f"the grace must be 0 or more seconds, not {grace_seconds}")
    if not (token and token.strip()) and not _is_loopback(host):
        raise SettingsError(
            f"{host} can be reached from other machines, which could then run programs here: "
            "give a token (RETOOL_SANDBOX_TOKEN, or --token-file), or bind to 127.0.0.1"
        )
    _check_token(token)
    most, connections = _room(max_in_flight)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, port), family=family, backlog=_BACKLOG) as listener,
        make() as box,
    ):
        app = create_app(box, token, max_in_flight=most, maximum=maximum)
        config = uvicorn.Config(
            app,
            # It is only called, as a class would be.
            http=Connections(connections, token).protocol,  # type: ignore[arg-type]  # uvicorn takes a class
            ws="none",
            backlog=_ACCEPTED,
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
            _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():  # asyncio's number is also that of those it accepts at once
            each.listen(_BACKLOG)


def _check_token(token: str | None) -> None:
    """Checks that clients can send a token.

    Raises:
        ValueError: they cannot.
    """
    if token is not None and not token.strip():
        raise SettingsError(
            "the token is empty or blank, which no client can send: give a token, or none at all "
            "(unset RETOOL_SANDBOX_TOKEN)"
        )
    check_key(token, "the token")
    if token is not None and len(token) > _TOKEN_CHARACTERS:
        raise SettingsError(f"the token is longer than {_TOKEN_CHARACTERS} characters")


def _room(max_in_flight: int | None) -> tuple[int, int]:
    """How many programs may be in flight, and how many connections open, by the limit on open files.

    Args:
        max_in_flight: How many programs are asked for; `None`: as many as there is room for, up to
            16 for each processor.

    Raises:
        ValueError: `max_in_flight` is not positive.
        SandboxUnavailable: the limit is too low for so many, or for 16; the message says what is
            needed.
    """
    cpus = os.cpu_count() or 1
    usual = cpus * _IN_FLIGHT_PER_CPU
    most = usual if max_in_flight is None else max_in_flight
    if most < 1:
        raise SettingsError(f"max_in_flight must be at least 1, not {most}")
    least = min(usual, _IN_FLIGHT_PER_CPU) if max_in_flight is None else most
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def others(programs: int) -> int:  # than connections
        guests = _FILES_PER_GUEST * min(cpus, _GUESTS)
        return _FILES + guests + _FILES_PER_PROGRAM * min(programs, _RUNNING)

    def needed(programs: int) -> int:
        return others(programs) + programs + _BODIES + _OTHERS

    while most > least and needed(most) > files:
        most -= 1
    if needed(most) > files:
        raise SandboxUnavailable(
            f"this process may open {files} files, and needs {needed(most)}, to listen, for the "
            f"sandbox, and for {most} programs in flight: raise the limit with `ulimit -n "
            f"{needed(most)}`, or lower --max-in-flight",
        )
    return most, min(files - others(most), 2 * most + _BODIES + 8 * _OTHERS)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _read(request: Request, bodies: Bodies) -> bytearray:
    """The body, bounded in size and time."""
    too_large = HTTPException(413, f"the body is larger than {BODY_BYTES} bytes", _CLOSE)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > BODY_BYTES:
        raise too_large
    body = None
    try:
        async with asyncio.timeout(_BODY_SECONDS) as scope:
            with bodies.reading(scope) as body:
                async for chunk in request.stream():
                    body.add(chunk)
                    if len(body.data) > BODY_BYTES:
                        raise too_large
    except TimeoutError:
        if body is None or body.given_up:
            detail = "too many bodies are sent at once, and this one comes slowly; try again"
            raise HTTPException(503, detail, _CLOSE | {"Retry-After": "1"}) from None
        detail = f"the body did not arrive in {_BODY_SECONDS:g} s"
        raise HTTPException(408, detail, _CLOSE) from None
    except asyncio.CancelledError:
        _go_on()
        raise HTTPException(503, _STOPS, _CLOSE | {"Retry-After": "1"}) from None
    return body.data


def _go_on() -> None:
    """Keeps a request that the ASGI server cancels, as it stops, from being cut off unanswered."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


async def _run(
    sandbox: Sandbox, asked: RunCodeRequest, limits: Limits, files: Files | None
) -> Execution:
    own: dict[str, Any] = {"stdin": asked.stdin or "", "display": asked.retool.display}
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
    except asyncio.CancelledError:
        _go_on()
        return Execution(Outcome.INFRASTRUCTURE, "", f"the program was ended: {_STOPS}")
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
