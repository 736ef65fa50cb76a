"""TransferredWeights: weights that go from the trainer to all servers at once, without files.

vLLM's own weight transfer sends them, by its back end `nccl`, or by this package's `gloo`. An
update has these steps:

1. The trainer gathers all weights in its memory. A trainer of several processes gathers together,
   and only then its first process goes on, so a server that fails holds up no other process.
2. Every server ends its requests and is paused.
3. The trainer and the servers that got so far form a group, unless they are the group of the last
   update.
4. The weights are sent. A collective operation never ends if a member is lost, so a watchdog asks
   every server over HTTP meanwhile. A transfer that fails is tried once more, with the servers that
   still answer.
5. A server whose checksum is right gets the name of its weights, and continues.

A server that was not in the group keeps its older weights, and gets no turn before the next update.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, override
from urllib.parse import urlsplit

from retool_env.errors import MissingPackage, SettingsError
from retool_env.rollout.policy import AtUpdate
from retool_env.rollout.vllm.client import Client, field, fields
from retool_env.rollout.vllm.routing import Server
from retool_env.rollout.vllm.served_weights import STARTED, ServedWeights
from retool_env.rollout.vllm.transfer_group import FanOut, Member, Source, open_engine
from retool_env.rollout.weight_files import WeightFiles
from retool_env.rollout.weights import Adapter, Parts, Weights, checksum
from retool_env.servers.hosts import Busy, Failure

if TYPE_CHECKING:
    import torch

_ATTEMPTS = 2
_WATCH_SECONDS = 5.0  # between two questions whether all servers are alive
_HEALTH_SECONDS = 10.0


class TransferredWeights(ServedWeights):
    """Sends weights to servers, and tracks which weights they have.

    It belongs to one event loop.

    Args:
        servers: The servers, which should all have the same weights.
        client: The client that sends the requests.
        back_end: `"nccl"` or `"gloo"`.
        dtype: The data type in which weights travel; see `WeightFiles`.
        seconds: The seconds that a server may take to end other clients' turns, and that a transfer
            may take.
        address: The address of this machine, which the servers can reach. `None`: the address from
            which this machine reaches the first server.
        at_update: See `ServedWeights`.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        client: Client,
        back_end: str,
        dtype: str,
        seconds: float,
        address: str | None = None,
        at_update: AtUpdate = "cut",
    ) -> None:
        super().__init__(servers, client, WeightFiles(None, dtype), seconds, at_update)
        self._back_end = back_end
        self._address = address
        self._source: Source | None = None
        self._engine: Any = None
        self._group: list[Member] = []
        self._parts: dict[str, list[tuple[str, torch.Tensor]]] = {}

    @override
    def write_part(self, parts: Parts, weights: Weights, rank: int) -> None:
        # The other processes only take part in the gathering.
        if rank == 0:
            self._parts[parts.name] = self._files.in_memory(weights, self.root)

    @override
    async def update(
        self, version: int, weights: Adapter | Weights | Parts | str | Path | None
    ) -> None:
        if weights is None or isinstance(weights, str | Path):
            await super().update(version, weights)  # the servers read a checkpoint
            return
        if isinstance(weights, Adapter):
            raise ValueError("these servers take whole weights: set weights=adapter for adapters")
        if isinstance(weights, Parts):
            if weights.name not in self._parts:
                raise ValueError(f"no weights of {weights.name} were gathered: call write_part")
            pairs = self._parts.pop(weights.name)
        else:
            pairs = await asyncio.to_thread(self._files.in_memory, weights, self.root)
        expected = await asyncio.to_thread(checksum, pairs)
        errors = {server.url: server.failure for server in self._servers}
        async with AsyncExitStack() as stack:
            changes = [stack.enter_async_context(self._change(each)) for each in self._servers]
            entered = await asyncio.gather(*changes, return_exceptions=True)
            for error in filter(None, entered):
                raise error
            self._set(version, f"{version}-{secrets.token_hex(8)}", None)
            for _ in range(_ATTEMPTS):
                members = await self._each(self._servers, self._join, errors)
                if not members:
                    break
                try:
                    await self._transfer(members, pairs)
                except Failure as failure:
                    errors.update((each.server.url, str(failure)) for each in members)
                    continue
                commit = functools.partial(self._commit, expected=expected)
                await self._each([member.server for member in members], commit, errors)
                break
        self._drop_kept()
        self._check_any(errors)
        self._release()

    @override
    def close(self) -> None:
        super().close()
        self._leave()

    @override
    async def _make_ready(self, server: Server) -> None:
        await self._gates[server].unchanging()  # the end of a transfer under way
        if not self._is_ready(server):
            await super()._make_ready(server)

    async def _each[T](
        self,
        servers: Sequence[Server],
        work: Callable[[Server], Coroutine[Any, Any, T]],
        errors: dict[str, str],
    ) -> list[T]:
        """Do work on all servers at once; returns the results of the servers that did not fail.

        Args:
            servers: The servers.
            work: The work on one server.
            errors: Gets the error of each server that failed, by URL.
        """

        async def one(server: Server) -> T | None:
            sent = time.monotonic()
            try:
                return await work(server)
            except (Failure, Busy) as failure:
                errors[server.url] = str(failure)
                server.fail(sent, failure)
                return None

        results = await asyncio.gather(*map(one, servers), return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                raise error
        return [result for result in results if result is not None]  # type: ignore[misc]  # above

    async def _join(self, server: Server) -> Member:
        """Pause a server, so that it can receive weights."""
        known = await self._control.weights_of(server)
        self._check_own(server, known)
        if known == STARTED:  # it has restarted, and is not in the group any more
            self._leave()
        await self._control.pause(server)
        call = {"method": "prepare_update"}
        try:
            await self._client.send(server, "POST", "/collective_rpc", call, self._seconds)
        except Failure as failure:
            raise Failure(
                "the server is not ready for a transfer (see its log; was it started with "
                f'--weight-transfer-config \'{{"backend": "{self._back_end}"}}\' and '
                "--worker-extension-cls retool_env.rollout.vllm.worker.WeightLoader?): "
                f"{failure}"
            ) from failure
        answer = await self._client.send(server, "GET", "/get_world_size")
        return Member(server, field(answer, "world_size", int))

    async def _transfer(self, members: list[Member], pairs: list[tuple[str, torch.Tensor]]) -> None:
        """Send the weights to all members.

        Raises:
            Failure: If a member failed, was lost, or did not finish in time.
        """
        if members != self._group:
            self._leave()
        if self._source is None:
            self._source = Source("cpu" if self._back_end == "gloo" else _device())
        self._source.pairs = pairs
        address = self._address or _own_address(members[0].server.url)
        loop, source = asyncio.get_running_loop(), self._source
        fan_out = FanOut(loop, self._client, members, self._seconds)

        engine, size = self._engine, 1 + sum(member.workers for member in members)

        def send() -> Any:
            used = engine or open_engine(self._back_end, address, size, fan_out, source)
            self._engine = used  # before the sending, so that a group that hangs is left
            used.client = fan_out
            used.send_weights()
            return used

        try:
            await self._watched(send, members, fan_out)
            self._group = members
        except BaseException:  # a member may still wait in the group
            self._leave()
            raise
        finally:
            source.pairs = []

    async def _watched(
        self, work: Callable[[], Any], members: list[Member], fan_out: FanOut
    ) -> Any:
        """Run a transfer in a thread, and give it up if a member fails or is lost.

        Returns:
            The result of the work.

        Raises:
            Failure: If the transfer failed or was given up.
        """
        ended = asyncio.Event()
        results: list[Any] = []
        errors: list[Exception] = []
        loop = asyncio.get_running_loop()

        def run() -> None:
            try:
                results.append(work())
            except Exception as error:
                errors.append(error)
            with suppress(RuntimeError):  # the policy was closed meanwhile
                loop.call_soon_threadsafe(ended.set)

        # A daemon: a collective operation that never ends must not keep the process alive.
        threading.Thread(target=run, name="weight-transfer", daemon=True).start()
        end = time.monotonic() + self._seconds
        reason = ""
        try:
            while not reason and not ended.is_set():
                try:
                    await asyncio.wait_for(ended.wait(), _WATCH_SECONDS)
                except TimeoutError:
                    reason = fan_out.failure or await self._lost(members)
                    if not reason and time.monotonic() > end:
                        reason = f"the transfer did not end within {self._seconds:g} s"
        finally:
            fan_out.cancel()
        reason = reason or (fan_out.failure if errors else "")
        if errors and not reason:
            if isinstance(errors[0], MissingPackage | ValueError):
                raise errors[0]
            reason = f"{type(errors[0]).__name__}: {errors[0]}"
        if reason:
            raise Failure(f"the weights were not transferred: {reason}")
        return results[0]

    async def _lost(self, members: list[Member]) -> str:
        """The words for a member that no longer answers; empty if all answer."""

        async def look(server: Server) -> str:
            try:
                await self._client.send(server, "GET", "/health", seconds=_HEALTH_SECONDS)
            except (Failure, Busy) as failure:
                return f"{server.url} was lost: {failure}"
            return ""

        answers = await asyncio.gather(*(look(member.server) for member in members))
        return next(filter(None, answers), "")

    async def _commit(self, server: Server, expected: int) -> bool:
        """Check the weights that a server received, and let it serve them."""
        call = {"method": "received_checksum"}
        answer = await self._client.send(server, "POST", "/collective_rpc", call, self._seconds)
        received = {field(result, "checksum", int) for result in fields(answer, "results", dict)}
        if received != {expected}:
            raise Failure(
                f"the server received other weights than were sent: checksums {received}, not "
                f"{expected}"
            )
        await self._control.go_on(server, self._name)
        self._note_loaded(server, self.version, self._name)
        return True

    def _leave(self) -> None:
        """Leave the group; the next update forms another one."""
        engine, self._engine, self._group = self._engine, None, []
        if engine is not None:
            # The end of a group may wait for members that were lost.
            threading.Thread(target=engine.shutdown, name="leave-group", daemon=True).start()


def _device() -> int:
    import torch

    return torch.accelerator.current_device_index()


def _own_address(url: str) -> str:
    """The address from which this machine reaches a server."""
    parts = urlsplit(url)
    host, port = parts.hostname or "localhost", parts.port or 80
    try:
        # vLLM's group listens on IPv4 only.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))  # sends nothing
            address: str = probe.getsockname()[0]
            return address
    except OSError as error:
        raise SettingsError(
            f"this machine has no IPv4 address that reaches {url} ({error}): set weights_address"
        ) from error
