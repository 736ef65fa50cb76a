"""ServedWeights: which weights the servers of a model have, and how they get others.

New weights reach the servers as files, in a folder that each of them can read. A server that takes some is paused before, and
goes on when it has them all, under their name; so one that is paused may have some of these and some of those.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from retool_env.rollout.policy import PolicyUnavailable
from retool_env.rollout.vllm.client import Client, field
from retool_env.rollout.vllm.gate import Gate
from retool_env.rollout.vllm.routing import Server
from retool_env.rollout.weights import WeightFiles, Weights
from retool_env.servers.hosts import Busy, Failure

_RESTART_SECONDS = 3.0  # no server is started anew in less: it has the weights that it had
_STARTED = "default"  # what a server calls the weights that it was started with

_PAUSED = "is paused, in the midst of new weights: if no run is loading any, one has left it so; update its weights, or start it anew"

_log = logging.getLogger(__name__)


class ServedWeights:
    """Belongs to one event loop.

    Args:
        servers: That should all have the same weights.
        client: With which they are asked.
        folder: Where tensors are written for them; see `WeightFiles`.
        seconds: That a server may take to end other clients' turns, and to load.
    """

    def __init__(
        self, servers: Sequence[Server], client: Client, folder: str | Path | None, seconds: float
    ) -> None:
        self.version = 0
        """Of the weights that they should have."""
        self.root = ""
        """The folder or Hub id of the model that they were started with."""
        self._servers = servers
        self._client = client
        self._seconds = seconds
        self._files = WeightFiles(folder)
        self._folder = ""
        self._name = (
            ""  # that the servers give the weights that they should have, where some were set
        )
        self._leads = False
        # What a server may be called to have when it has been loaded here: another name is another run's.
        self._names = {_STARTED}
        self._loaded: set[Server] = set()
        self._gates = {server: Gate() for server in servers}
        # Held by the one turn that asks a server which weights it has and lets it load others, while the rest wait for that.
        self._asking = {server: asyncio.Lock() for server in servers}
        # Of what version a server's weights are; to be read, and changed, at its gate.
        self._served = dict.fromkeys(servers, 0)

    async def begin(self) -> None:
        """Log what an earlier run has left on the servers that have answered."""

        async def look(server: Server) -> None:
            with suppress(Failure, Busy):  # it is asked again before its first turn
                if await self._is_paused(server):
                    _log.warning("%s %s", server.url, _PAUSED)

        await asyncio.gather(*(look(server) for server in self._servers if server.heard))

    @asynccontextmanager
    async def turn(self, server: Server) -> AsyncIterator[int]:
        """Passes when no weights are being changed on a server; gives the version that it has meanwhile."""
        async with self._gates[server].turn():
            yield self._served[server]

    async def update(self, version: int, weights: Weights | str | Path | None) -> None:
        """See `VLLMServerPolicy.update_weights`."""
        # A name that no other has: not that of another run's weights of the same version.
        name = f"{version}-{secrets.token_hex(8)}"
        if weights is None:
            folder = ""
        elif isinstance(weights, str | Path):
            folder = str(Path(weights).absolute())
        else:
            folder = await self._files.write(name, weights, self.root)
        self.version, self._folder, self._leads = version, folder, True
        self._name = f"{name} {folder}"
        self._names.add(self._name)
        self._files.keep(folder)  # no server that is to load will read an older one
        said = {server.url: server.failure for server in self._servers}

        async def bring(server: Server) -> None:
            failures = server.failures
            while True:
                try:
                    return await self.prepare(server)
                except (Failure, Busy) as failure:
                    said[server.url] = str(failure)
                    server.fail(time.monotonic(), failure)
                if failures or server.failures > 1:
                    return
                # It may only have closed a connection.
                await asyncio.sleep(server.aside_until - time.monotonic())

        now = time.monotonic()
        # One that is set aside gets the weights before its next turn, and is not waited for.
        ready = [server for server in self._servers if server.aside_until <= now] or self._servers
        results = await asyncio.gather(*map(bring, ready), return_exceptions=True)
        for error in filter(None, results):
            raise error
        behind = [server for server in self._servers if server.weights != self._name]
        if len(behind) == len(self._servers):
            raise unavailable(said)
        for server in behind:
            _log.warning(
                "%s has not loaded the weights of version %d, and gets no turn before it has: %s",
                server.url,
                version,
                said[server.url],
            )

    async def follow(self, version: int) -> None:
        """See `VLLMServerPolicy.follow`."""
        said: dict[str, str] = {}

        async def ask(server: Server) -> tuple[Server, str] | None:
            try:
                name = await self._weights_of(server)
            except (Failure, Busy) as failure:
                said[server.url] = str(failure)
                return None
            if name is None:
                said[server.url] = _PAUSED
                return None
            return server, name

        names = dict(filter(None, await asyncio.gather(*map(ask, self._servers))))
        if not names:
            raise unavailable(said)
        found = {name for name in names.values() if name.startswith(f"{version}-")}
        if len(found) != 1:
            told = ", ".join(f"{server.url}: {name}" for server, name in names.items())
            raise RuntimeError(
                f"the servers should all have one set of weights of version {version}: {told}"
            )
        [self._name] = found
        self._names.add(self._name)
        self.version, self._folder = version, self._name.partition(" ")[2]
        self._leads = False
        for server, name in names.items():
            server.blocks.clear()
            if name == self._name:
                self._note(server)

    async def prepare(self, server: Server) -> None:
        """See to it that a server serves the weights of `version`.

        Raises:
            Failure: If it has others, and another policy is to see to it; or as `Client.send`.
            RuntimeError: If another run loads its weights there too.
        """
        if self._is_ready(server):
            return
        failures = server.failures
        async with self._asking[server]:
            if server.failures > failures:  # those who have waited for its answer know it now
                raise Failure(server.failure)
            while not self._is_ready(server):  # there may be yet newer weights when it has loaded
                await self._make_ready(server)

    def close(self) -> None:
        """Remove what was written."""
        self._files.keep("")

    def _is_ready(self, server: Server) -> bool:
        """Whether it need not be asked about its weights before a turn."""
        if not self._name:  # they have those that they had, if it is known that they are not paused
            return server.weights is not None
        same = time.monotonic() - server.heard < _RESTART_SECONDS
        return same and server.weights == self._name

    async def _make_ready(self, server: Server) -> None:
        if not self._name:
            if await self._is_paused(server):
                raise Failure(_PAUSED)
            return
        known = await self._weights_of(server)
        if known == self._name:
            self._note(server)  # it failed, or was not heard of for a while
        elif self._leads or known == _STARTED:
            if server in self._loaded and known is not None and known not in self._names:
                raise RuntimeError(
                    f"another run updates {server.url}: it has {known}, which this one has not loaded there; a server takes the "
                    "weights of one run only, which other policies can follow"
                )
            async with self._gates[server].change():
                await self._load(server)
        else:  # the policy that leads will see to it
            raise Failure(f"it has other weights: {known}" if known else _PAUSED)

    async def _is_paused(self, server: Server) -> bool:
        """Whether a server samples nothing; if it does, which weights it has is logged where they are an earlier run's."""
        try:
            known = await self._weights_of(server)
        except RuntimeError:  # it takes no weights: it has those that it was started with
            known = _STARTED
        if known is None:
            return True
        server.weights = known
        if known != _STARTED:
            _log.warning(
                "%s has weights that an earlier run left there, %s: until it gets others or some are followed, they count "
                "as version 0",
                server.url,
                known,
            )
        return False

    async def _weights_of(self, server: Server) -> str | None:
        """The name of the weights that a server has; `None` if it is paused: it may have some of these and some of those."""
        paused = await self._client.send(server, "GET", "/is_paused")
        known = await self._client.send(server, "GET", "/weight_info")
        name = field(known, "weight_version", str)
        return None if field(paused, "is_paused", bool) else name

    def _note(self, server: Server) -> None:
        """It serves the weights of `version`."""
        server.weights, self._served[server] = self._name, self.version

    async def _load(self, server: Server) -> None:
        version, name, folder = self.version, self._name, self._folder
        with self._files.reading(folder):
            await self._load_from(server, folder or self.root, name)
        server.blocks.clear()
        server.weights, self._served[server] = name, version
        self._loaded.add(server)

    async def _load_from(self, server: Server, folder: str, name: str) -> None:
        # Turns of ours have ended; those of others end now, and what they send meanwhile waits in the server. Should
        # something fail from here on, it stays paused: it may have some of the new weights.
        pause = "/pause?mode=wait&clear_cache=true"
        await self._client.send(server, "POST", pause, seconds=self._seconds)
        call = {"method": "load_checkpoint", "args": [folder]}
        try:
            await self._client.send(server, "POST", "/collective_rpc", call, self._seconds)
        except Failure as failure:
            raise Failure(
                f"it did not load {folder} (its log says why; was it started with --worker-extension-cls "
                f"retool_env.rollout.vllm.worker.WeightLoader?): {failure}"
            ) from failure
        # Before it samples again, so that it never has other weights than it says.
        await self._client.send(server, "POST", "/update_weight_version", {"new_version": name})
        await self._client.send(server, "POST", "/resume")


def unavailable(said: dict[str, str]) -> PolicyUnavailable:
    """What to raise when no server did what it was asked for.

    Args:
        said: What was wrong, by the servers' URLs.
    """
    told = "; ".join(f"{url}: {' '.join(text.split())}" for url, text in said.items())
    return PolicyUnavailable(f"no server of the model answers: {told}")
