"""A sandbox over HTTP: `retool serve`, or `create_app` for an ASGI server of your own.

For Python, the server answers `POST /run_code` as SandboxFusion does, so that clients of either
server work with the other. `GET /health` says whether a program can run here, and `GET /metrics`
counts programs in Prometheus' text format. A refusal has a status and a `detail` with the reason:

* 401: the server has a token, and the request does not carry it. The server discards the
  body. Only `/health` needs no token; without it, the answer says only whether a program can
  run.
* 413, 408: the body is too large, or does not arrive.
* 422: the body is not a request of the protocol; the language is not Python; a limit is above the
  server's `maximum` (the server does not lower a limit, because the result would then not be the
  requested one); the files are too many or too large, or a name leads out of the program's folder.
* 503 with `Retry-After`: `max_in_flight` programs already run or wait; or clients send too many
  bodies at once, and this body arrives slowly; or the server stops.

A failure of the sandbox itself is the protocol's `SandboxError`, never an error of the program. A
program that still runs when the server's grace is over also ends with `SandboxError`. When a client
disconnects, its program is ended. A program takes one of the `max_in_flight` slots once its body is
complete.

`serve` also bounds the number of connections and the time of headers and answers
([`connections`][retool_env.sandbox.connections]); with a different ASGI server, that server has to.
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
from retool_env.sandbox.connections import Connections, Lingering, TokenRequired, shows_token
from retool_env.sandbox.fusion import response_of
from retool_env.sandbox.monitoring import Health, Metrics
from retool_env.sandbox.requests import RunCodeRequest, parse
from retool_env.servers.address import check_key

MAXIMUM = Limits(120.0, memory_mb=16_384, output_bytes=16 << 20, processes=256, tmp_mb=1024)
"""The default of the highest limits that a request may ask for."""

BODY_BYTES = 32 << 20
"""The largest body in bytes: enough for a program of 10 MB, however its characters are escaped."""

_IN_FLIGHT_PER_CPU = 16  # at 5 s a program, the last program waits 80 s
BODY_SECONDS = 60.0
"""The longest time in which a body arrives."""

BODIES, BODIES_BYTES = 128, 512 << 20
"""The largest number of bodies that are read at once, and of their bytes."""


_OTHERS = 128  # connections that wait, ask for the health, or have no token
_ACCEPTED = 16  # connections that the event loop accepts in one step
_BACKLOG = 1024  # connections that wait to be accepted
# Open files: of Python, the event loop, and connections just accepted or about to be closed; of two
# guests, one of each kind, with their spare processes; and of a program that runs or is about to.
_FILES, _FILES_PER_GUEST, _FILES_PER_PROGRAM = 64 + 6 * _ACCEPTED, 24, 4
_GUESTS, _RUNNING = 8, 256  # guests of each kind, and programs that run at once, at most
_TOKEN_CHARACTERS = 4096  # a request's headers are 16 KiB at most
_END_SECONDS = 10.0  # for the last answers, when the server stops
_CLOSE = {"Connection": "close"}  # for answers before the whole body is read
_STOPS = "the server stops, and its grace is over"
_GONE = 499  # for a client that has disconnected
_logger = logging.getLogger(__name__)


def create_app(
    sandbox: Sandbox,
    token: str | None = None,
    *,
    max_in_flight: int | None = None,
    maximum: Limits = MAXIMUM,
) -> FastAPI:
    """The ASGI application that runs programs in `sandbox`; the caller closes the sandbox.

    Args:
        sandbox: The sandbox that runs the programs.
        token: The token that requests must carry as `Authorization: Bearer TOKEN`. `None`: no
            token.
        max_in_flight: The number of programs that may run and wait at once. `None`: 16 for each
            processor.
        maximum: The highest limits that a request may ask for.

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
    bodies = Bodies(BODIES, BODIES_BYTES)
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
        if requests:  # cancelled and about to be answered, but the event loop would not wait
            await asyncio.wait(requests, timeout=_END_SECONDS)

    app = FastAPI(title="retool sandbox", lifespan=lifespan, docs_url=None, redoc_url=None)
    schema = {"application/json": {"schema": RunCodeRequest.model_json_schema()}}

    app.add_middleware(TokenRequired, token=token, open_paths=["/health"])
    app.add_middleware(Lingering)  # the outermost one, since it also serves refusals

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
                raise ValueError("files and fetch_files: this server's sandbox keeps no files")
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
    """Serves a sandbox until SIGTERM or SIGINT, and prints the URL once it accepts requests.

    The signal closes the port at once. Programs in flight then have `grace_seconds` to end. The
    server ends the rest and reports an infrastructure failure to their clients; a client with other
    hosts tries those.

    Args:
        make: Makes the sandbox. Called after the arguments have been checked.
        host: The address to bind to.
        port: The port. 0: a free port.
        token: The token that requests must carry; see `create_app`.
        max_in_flight: The number of programs that may run and wait at once. `None`: 16 for each
            processor, or fewer if the limit on open files is low.
        maximum: The highest limits that a request may ask for.
        grace_seconds: The seconds that programs in flight have to end after the signal.

    Raises:
        ValueError: Other machines could reach the address and the token is missing; or no client
            could send the token; or the port is invalid, or the grace negative.
        SandboxUnavailable: The sandbox cannot work here, or the limit on open files is too low.
        OSError: The address cannot be bound.
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
            # uvicorn expects a class, but only calls it.
            http=Connections(connections, token).protocol,  # type: ignore[arg-type]  # no class
            ws="none",
            backlog=_ACCEPTED,
            loop="asyncio",  # the sandbox watches processes through it
            log_level="warning",
            timeout_graceful_shutdown=grace_seconds,
        )
        # asyncio sets this only on sockets that name their protocol, which this socket does not.
        # Without it, each answer waits 40 ms for the client's acknowledgement of the headers.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{listener.getsockname()[1]}", flush=True)
        # After its graceful stop, uvicorn raises the signal again; the sandbox must still close.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():  # asyncio's backlog also bounds the connections per step
            listener.listen(_BACKLOG)


def _check_token(token: str | None) -> None:
    """Checks that clients can send a token.

    Raises:
        ValueError: The token is blank or too long, or has a character that a header cannot hold.
    """
    if token is not None and not token.strip():
        raise SettingsError(
            "the token is empty or blank, which no client can send: give a token, or unset "
            "RETOOL_SANDBOX_TOKEN"
        )
    check_key(token, "the token")
    if token is not None and len(token) > _TOKEN_CHARACTERS:
        raise SettingsError(f"the token is longer than {_TOKEN_CHARACTERS} characters")


def _room(max_in_flight: int | None) -> tuple[int, int]:
    """The limits on programs in flight and on connections, given the limit on open files.

    Args:
        max_in_flight: The requested number of programs. `None`: as many as fit, up to 16 for each
            processor.

    Raises:
        ValueError: `max_in_flight` is not positive.
        SandboxUnavailable: The limit is too low for that number, or for 16 programs. The message
            says how many open files are needed.
    """
    cpus = os.cpu_count() or 1
    usual = cpus * _IN_FLIGHT_PER_CPU
    most = usual if max_in_flight is None else max_in_flight
    if most < 1:
        raise SettingsError(f"max_in_flight must be at least 1, not {most}")
    least = min(usual, _IN_FLIGHT_PER_CPU) if max_in_flight is None else most
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def others(programs: int) -> int:  # descriptors that are not connections
        guests = _FILES_PER_GUEST * min(cpus, _GUESTS)
        return _FILES + guests + _FILES_PER_PROGRAM * min(programs, _RUNNING)

    def needed(programs: int) -> int:
        return others(programs) + programs + BODIES + _OTHERS

    while most > least and needed(most) > files:
        most -= 1
    if needed(most) > files:
        raise SandboxUnavailable(
            f"this process may open {files} files, and needs {needed(most)}, to listen, for the "
            f"sandbox, and for {most} programs in flight: raise the limit with `ulimit -n "
            f"{needed(most)}`, or lower --max-in-flight",
        )
    return most, min(files - others(most), 2 * most + BODIES + 8 * _OTHERS)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _read(request: Request, bodies: Bodies) -> bytearray:
    """The body of a request, bounded in size and time."""
    too_large = HTTPException(413, f"the body is larger than {BODY_BYTES} bytes", _CLOSE)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > BODY_BYTES:
        raise too_large
    body = None
    try:
        async with asyncio.timeout(BODY_SECONDS) as scope:
            with bodies.reading(scope) as body:
                async for chunk in request.stream():
                    body.add(chunk)
                    if len(body.data) > BODY_BYTES:
                        raise too_large
    except TimeoutError:
        if body is None or body.given_up:
            detail = "too many bodies are sent at once, and this one comes slowly; try again"
            raise HTTPException(503, detail, _CLOSE | {"Retry-After": "1"}) from None
        detail = f"the body did not arrive in {BODY_SECONDS:g} s"
        raise HTTPException(408, detail, _CLOSE) from None
    except asyncio.CancelledError:
        _go_on()
        raise HTTPException(503, _STOPS, _CLOSE | {"Retry-After": "1"}) from None
    return body.data


def _go_on() -> None:
    """Withdraws the cancellation of a request by a server that stops, so that it gets an answer."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


async def _run(
    sandbox: Sandbox, asked: RunCodeRequest, limits: Limits, files: Files | None
) -> Execution:
    given: dict[str, Any] = {"files": files} if files else {}
    given |= {"stdin": asked.stdin or "", "display": asked.retool.display}
    try:
        return await sandbox.run_async(asked.code, limits, **given)
    except Exception as error:  # the sandbox is closed or broken; the client may try another host
        _logger.exception("the sandbox failed")
        return Execution(Outcome.INFRASTRUCTURE, "", f"{type(error).__name__}: {error}")


async def _while_connected(request: Request, program: asyncio.Task[Execution]) -> Execution | None:
    """The result of the program; `None` if the client disconnected and the program was ended."""
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
    # Escaped, because UTF-8 cannot encode a lone surrogate in a traceback.
    return Response(json.dumps(content), status, media_type="application/json")
