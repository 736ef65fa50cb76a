"""ServedAdapters: LoRA adapters on the servers of a model, one for each version of the weights.

The servers keep the model of their start. An update sends the adapter alone. It is a few hundred
times smaller than the weights, and small changes are not lost: they are never added to weights in
bfloat16. A server holds several adapters side by side, and each turn's request names its own. So an
update does not wait for turns. Adapters that no turn needs are unloaded.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import override

from retool_env.errors import SettingsError
from retool_env.rollout.vllm.client import LOAD_ADAPTER, Client, UnknownModel, field, fields
from retool_env.rollout.vllm.routing import Server
from retool_env.rollout.vllm.served_weights import PAUSED, STARTED, ServedWeights
from retool_env.rollout.weight_files import SEEN_SECONDS, WeightFiles, write_json
from retool_env.rollout.weights import Adapter, Parts, Weights
from retool_env.servers.hosts import Busy, Failure

_KEPT = 2  # the newest adapters: a follower may still need the last but one
_LOOK_SECONDS = 0.5
_OURS = re.compile(r"\d+-[0-9a-f]{16,}")  # the names that updates give


class ServedAdapters(ServedWeights):
    """Tracks and updates the adapters of servers. It belongs to one event loop.

    Args:
        servers: The servers, which should all have the same adapters.
        client: The client that sends the requests.
        folder: The folder into which adapters are written for the servers.
        seconds: The seconds that a server may take to load.

    Raises:
        SettingsError: If the folder is missing.
    """

    def __init__(
        self, servers: Sequence[Server], client: Client, folder: str | Path | None, seconds: float
    ) -> None:
        if folder is None:
            raise SettingsError("adapters reach servers as files: set weights_folder")
        super().__init__(servers, client, WeightFiles(None), seconds, at_update="wait")
        self._parent = Path(folder).absolute()
        # The adapters of this policy's updates, by age; `None`: a folder that is not its own.
        self._used: dict[str, Path | None] = {}
        self._serving: dict[Server, str] = dict.fromkeys(servers, "")
        self._turns: Counter[tuple[Server, str]] = Counter()

    @override
    @asynccontextmanager
    async def request(self, server: Server) -> AsyncIterator[tuple[int, str | None]]:
        version, adapter = self._served[server], self._serving[server]
        self._turns[server, adapter] += 1
        try:
            yield version, adapter or None
        finally:
            self._turns[server, adapter] -= 1

    @override
    async def update(
        self, version: int, weights: Adapter | Weights | Parts | str | Path | None
    ) -> None:
        name = f"{version}-{secrets.token_hex(8)}"
        if weights is None:
            folder = ""
        elif isinstance(weights, str | Path):
            folder, self._used[name] = str(Path(weights).absolute()), None
        elif isinstance(weights, Adapter):
            self._used[name] = written = self._parent / name
            await asyncio.to_thread(write_adapter, written, weights)
            folder = str(written)
        else:
            raise ValueError(
                "these servers take adapters, not whole weights: give the adapter of the model "
                "(retool_env.training.trained_weights.trained_adapter), or set weights=files"
            )
        self._set(version, name, folder)
        await self._bring_all()
        unneeded = self._unneeded()
        # A server that is behind has mostly been restarted, and holds none.
        ready = [server for server in self._servers if server.weights == self._name]
        left = await asyncio.gather(*(self._unload(server, unneeded) for server in ready))
        for old in unneeded.difference(*left):
            self._remove(self._used.pop(old))

    @override
    def close(self) -> None:
        for folder in self._used.values():
            self._remove(folder)

    def _remove(self, folder: Path | None) -> None:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    @override
    async def _followed(self, server: Server) -> str | None:
        # Another run on the same servers has a folder of its own.
        ours = re.compile(rf"({_OURS.pattern}) {re.escape(str(self._parent))}/\1")
        names = [name for name in await self._adapters(server) if ours.fullmatch(name)]
        return names[-1] if names else None

    @override
    async def _make_ready(self, server: Server) -> None:
        if not self._name:
            await super()._make_ready(server)
            return
        version, name = self.version, self._name  # an update may set newer ones meanwhile
        await self._check_start(server)
        # It is asked in any case: its answer tells that it has not restarted since.
        held = await self._adapters(server)
        if name.partition(" ")[2] and name not in held:
            await self._load_adapter(server, name)
        self._note(server, version, name)

    async def _check_start(self, server: Server) -> None:
        """Check that a server has the weights of its start, to which adapters are added.

        Raises:
            Failure: If it is paused.
            RuntimeError: If another run has loaded other weights.
        """
        try:
            known = await self._control.weights_of(server)
        except RuntimeError:  # a server that takes no weights has the weights of its start
            return
        if known is None:
            raise Failure(PAUSED)
        if known != STARTED and not _OURS.fullmatch(known.strip()):
            raise RuntimeError(
                f"{server.url} has weights that another run has loaded, {known}, and adapters need "
                "the weights of its start: restart the server"
            )

    async def _load_adapter(self, server: Server, full_name: str) -> None:
        name, _, folder = full_name.partition(" ")
        body = {"lora_name": name, "lora_path": folder}
        end = time.monotonic() + SEEN_SECONDS
        try:
            while True:
                try:
                    await self._client.send(server, "POST", LOAD_ADAPTER, body, self._seconds)
                    break
                except UnknownModel:  # it does not see the folder yet
                    if time.monotonic() >= end:
                        raise
                await asyncio.sleep(_LOOK_SECONDS)
        except (ValueError, Failure) as error:
            # Another process of the run may have loaded it meanwhile: a second load is refused.
            if full_name in await self._adapters(server):
                return
            # A folder that this server can't see yet is no mistake in its settings.
            kind = Failure if isinstance(error, Failure | UnknownModel) else ValueError
            raise kind(
                f"the adapter {folder} was not loaded (was the server started with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora, with a --max-lora-rank that "
                f"is large enough, and does its machine see this folder?): {error}"
            ) from error
        server.blocks.clear()

    @override
    def _note(self, server: Server, version: int, full_name: str) -> None:
        super()._note(server, version, full_name)
        name, _, folder = full_name.partition(" ")
        self._serving[server] = name if folder else ""

    async def _adapters(self, server: Server) -> list[str]:
        """The adapters that a server holds, each as its name, a space and its folder."""
        answer = await self._client.send(server, "GET", "/v1/models")
        cards = [card for card in fields(answer, "data", dict) if card.get("parent") is not None]
        return [f"{field(card, 'id', str)} {card.get('root')}" for card in cards]

    def _unneeded(self) -> set[str]:
        """The names of older adapters that no turn needs."""
        old = list(self._used)[:-_KEPT]
        return {name for name in old if not any(self._turns[each, name] for each in self._servers)}

    async def _unload(self, server: Server, names: set[str]) -> set[str]:
        """Unload adapters from a server.

        Returns:
            The names of adapters that the server may still hold; the next update tries again.
        """
        left = set(names)
        for name in sorted(names):
            body = {"lora_name": name}
            with suppress(Failure, Busy):
                with suppress(ValueError):  # a restart, or an earlier attempt, has removed it
                    await self._client.send(server, "POST", "/v1/unload_lora_adapter", body)
                left.discard(name)
        return left


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Write an adapter into a new folder, which appears when it is complete.

    Args:
        folder: The new folder. Its parent is created if missing.
        adapter: The adapter.

    Raises:
        OSError: If the adapter can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in dict(adapter.tensors).items()
    }
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True)
    try:
        save_file(tensors, part / "adapter_model.safetensors")
        (part / "adapter_model.safetensors").chmod(0o644)
        write_json(part / "adapter_config.json", dict(adapter.config))
        part.replace(folder)
    except SafetensorError as error:
        raise OSError(f"the adapter can't be written into {part}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
