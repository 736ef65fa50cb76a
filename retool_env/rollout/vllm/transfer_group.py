"""The group of a transfer: the trainer and the workers of all servers, as vLLM sees it.

vLLM's engine of the trainer speaks to one client and reads one source of weights. `FanOut` is a
client for several servers, and `Source` reads an update's weights from memory.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retool_env.errors import MissingPackage, SettingsError
from retool_env.rollout.vllm.client import Client
from retool_env.rollout.vllm.routing import Server
from retool_env.servers.hosts import Busy, Failure

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Member:
    """A server in the group of a transfer."""

    server: Server
    workers: int
    """The number of the server's processes that receive weights."""


class FanOut:
    """A client of vLLM's transfer (`VLLMWeightSyncClient`) that speaks to several servers.

    vLLM's engine numbers the workers of one server from 1. The workers of several servers need
    numbers of their own, so this client gives each server the number of its first worker. Its
    methods are called in the thread of a transfer.

    Args:
        loop: The event loop that sends the requests.
        client: The client that sends the requests.
        members: The servers of the group.
        seconds: The seconds that an answer may take.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: Client,
        members: Sequence[Member],
        seconds: float,
    ) -> None:
        self._loop = loop
        self._client = client
        self._members = members
        self._seconds = seconds
        self._call: futures.Future[Any] | None = None
        self._cancelled = False
        self._lock = threading.Lock()
        self.failure = ""
        """The first failure of a server; empty if all answered well so far."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let every server join the group.

        Args:
            init_info: The group as vLLM's engine describes it to a single server.
        """
        offset = init_info["rank_offset"]
        bodies = []
        for member in self._members:
            bodies.append({"init_info": {**init_info, "rank_offset": offset}})
            offset += member.workers
        self._ask("/init_weight_transfer_engine", bodies)

    def start_weight_update(self) -> None:
        """Let every server begin the update."""
        self._ask("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """Let every server receive the weights; returns when all have received them.

        Args:
            update_info: The names, data types and shapes of the weights.
        """
        body = {"update_info": update_info}
        self._ask("/update_weights", [body] * len(self._members))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Let every server end the update.

        Args:
            weight_version: The name of the weights; `None`: none yet.
        """
        body = {} if weight_version is None else {"weight_version": weight_version}
        self._ask("/finish_weight_update", [body] * len(self._members))

    def cancel(self) -> None:
        """End the call of a method above that is under way, with its requests, and all later ones.

        They raise `concurrent.futures.CancelledError`.
        """
        with self._lock:
            self._cancelled = True
            if self._call is not None:
                self._call.cancel()

    def _ask(self, path: str, bodies: Sequence[dict[str, Any]] | None = None) -> None:
        with self._lock:  # `cancel` may be called between any two lines of the thread
            if self._cancelled:
                raise futures.CancelledError
            work = self._all(path, bodies or [{}] * len(self._members))
            self._call = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._call.result()

    async def _all(self, path: str, bodies: Sequence[dict[str, Any]]) -> None:
        async def ask(member: Member, body: dict[str, Any]) -> None:
            try:
                await self._client.send(member.server, "POST", path, body, self._seconds)
            except (Failure, Busy, ValueError, RuntimeError) as error:
                self.failure = self.failure or f"{member.server.url} at {path}: {error}"
                raise

        async with asyncio.TaskGroup() as group:  # the first failure ends the other requests
            for member, body in zip(self._members, bodies, strict=True):
                group.create_task(ask(member, body))


@dataclass(frozen=True)
class _Meta:
    """The form of a tensor, in the fields of vLLM's `ParamMeta`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Source:
    """The weights of an update, in the form of vLLM's `WeightSource`.

    Args:
        device: The device from which tensors are sent.
    """

    def __init__(self, device: str | int) -> None:
        self.pairs: list[tuple[str, torch.Tensor]] = []
        """The names and tensors of the update under way."""
        self._device = device

    def metadata(self) -> list[_Meta]:
        """The names, data types and shapes of the weights, in their order."""
        return [_Meta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.pairs]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.pairs:
            yield name, tensor.to(self._device)


def open_engine(back_end: str, address: str, size: int, client: FanOut, source: Source) -> Any:
    """Form the group of a transfer; vLLM's engine of the trainer.

    Args:
        back_end: `"nccl"` or `"gloo"`.
        address: The address of this machine, which the servers can reach.
        size: The number of all workers, and of this process.
        client: The client that speaks to the servers.
        source: The weights.

    Raises:
        MissingPackage: If vLLM is missing here.
        SettingsError: If the address is not an address of this machine.
    """
    try:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory as Factory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    except ImportError as error:
        raise MissingPackage(
            f"{error}: a trainer that sends weights to servers needs vLLM itself: pip install "
            "'retool-env[vllm]', or set weights=files"
        ) from error
    try:
        with socket.create_server((address, 0)) as listener:
            port = listener.getsockname()[1]
    except OSError as error:
        raise SettingsError(
            f"servers can't get weights from {address} ({error}): set weights_address to an IPv4 "
            "address of this machine that the servers reach"
        ) from error
    info: Any = NCCLTrainerInitInfo(address, port, size, rank=0)
    if back_end == "gloo":
        from retool_env.rollout.vllm.gloo import GlooTrainerInfo

        info = GlooTrainerInfo(address, port, size, rank=0)
    return Factory.trainer_init(info, client=client, source=source)
