"""ServedWeights: the weights that the servers of a model have, and their updates.

New weights reach the servers as files, in a folder that every server can read. A server is paused
while it loads. The requests under way end before (a pause cuts them, or they are waited for), or
they are kept. The server goes on when it has all of the new weights, and then reports their name. A
paused server may therefore hold a mixture of old and new weights.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

from retool_env.rollout.policy import AtUpdate
from retool_env.rollout.vllm.client import Client, unavailable
from retool_env.rollout.vllm.control import Control
from retool_env.rollout.vllm.gate import Dropped, Gate
from retool_env.rollout.vllm.routing import Server
from retool_env.rollout.weight_files import WeightFiles
from retool_env.rollout.weights import Adapter, Parts, Weights
from retool_env.servers.hosts import Busy, Failure

_RESTART_SECONDS = 3.0  # no server restarts in less: until then it has the same weights
STARTED = "default"
"""The name that a server gives to the weights with which it was started."""
PAUSED = (
    "is paused for new weights: another run is loading them, or an earlier run was interrupted; if "
    "no run is loading weights, update the server's weights or restart it"
)
"""The words for a server that is paused."""

_TRANSFERRED = "(transferred)"  # in place of a folder: weights that went to the servers directly
_TRANSIT_SECONDS = 0.2  # a new request has reached its server by then
_CUT_SECONDS = 2.0  # a request that a pause cut is answered at once, unless it came later
_NEXT = "it gets weights with the next update of all servers, and no turn before"

_log = logging.getLogger(__name__)


class ServedWeights:
    """Tracks and updates the weights of servers. It belongs to one event loop.

    Args:
        servers: The servers, which should all have the same weights.
        client: The client that sends the requests.
        files: The folder into which tensors are written for the servers.
        seconds: The seconds that a server may take to end other clients' turns, and to load.
        at_update: The treatment of requests under way when new weights come.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        client: Client,
        files: WeightFiles,
        seconds: float,
        at_update: AtUpdate = "cut",
    ) -> None:
        self.version = 0
        """The version of the weights that the servers should have."""
        self.root = ""
        """The folder or Hub id of the model with which the servers were started."""
        self._servers = servers
        self._client = client
        self._seconds = seconds
        self._at_update = at_update
        self._control = Control(client, seconds, at_update)
        self._files = files
        self._folder: str | None = ""
        # The name of the weights that the servers should have; empty until weights are set.
        self._name = ""
        self._leads = False
        # The names that a server loaded by this policy may report; another name is another run's.
        self._names = {STARTED}
        self._loaded: set[Server] = set()
        self._gates = {server: Gate() for server in servers}
        # Set unless turns are held until this policy follows another one.
        self._free = asyncio.Event()
        self._free.set()
        # One turn asks a server for its weights and lets it load; other turns wait for this lock.
        self._asking = {server: asyncio.Lock() for server in servers}
        # The version of each server's weights, to be read and changed inside its gate.
        self._served = dict.fromkeys(servers, 0)

    async def begin(self) -> None:
        """Log weights, or a pause, that an earlier run left on the servers that have answered."""

        async def look(server: Server) -> None:
            with suppress(Failure, Busy):  # the server is asked again before its first turn
                if await self._is_paused(server):
                    _log.warning("%s %s", server.url, PAUSED)

        await asyncio.gather(*(look(server) for server in self._servers if server.heard))

    @property
    def held(self) -> bool:
        """Whether no turn may begin before `follow`."""
        return not self._free.is_set()

    def has_changed(self, server: Server, version: int) -> bool:
        """Whether a server may have got new weights since it had this version."""
        return self.held or self._served[server] != version

    def cutting(self, server: Server) -> bool:
        """Whether requests of a server are being cut, or waited for, because of new weights."""
        return not self._gates[server].open

    async def released(self) -> None:
        """Wait until turns may begin; see `hold`."""
        await self._free.wait()

    @asynccontextmanager
    async def request(self, server: Server) -> AsyncIterator[tuple[int, str | None]]:
        """Pass when no weights are being changed on a server.

        Args:
            server: The server of the request.

        Yields:
            The version of the server's weights, which stays until the end of the request, and the
            name by which it asks for them; `None`: the name of the model.

        Raises:
            Failure: If the server failed to get new weights while the request waited for them.
            Dropped: If the request is to begin anew: new weights ended it before it had a token, or
                the server's weights must be asked for again.
        """
        async with self._gates[server].request():
            if not self._is_ready(server):  # it may be paused, with a mixture of weights
                if server.weights == self._name:
                    raise Dropped  # it is only a while ago that the server was heard: ask it again
                raise Failure(server.failure or "the server has not got the new weights")
            yield self._served[server], None

    def write_part(self, parts: Parts, weights: Weights, rank: int) -> None:
        """Write this process's part of new weights.

        Args:
            parts: See `Policy.write_part`.
            weights: See `Policy.write_part`.
            rank: See `Policy.write_part`.
        """
        self._files.write_part(parts, weights, self.root, rank)

    async def update(
        self, version: int, weights: Weights | Parts | Adapter | str | Path | None
    ) -> None:
        """Let all servers load new weights; see `VLLMServerPolicy.update_weights`."""
        # The random part tells these weights apart from another run's weights of the same version.
        drawn = f"{version}-{secrets.token_hex(8)}"
        name = weights.name if isinstance(weights, Parts) else drawn
        if weights is None:
            folder = ""
        elif isinstance(weights, str | Path):
            folder = str(Path(weights).absolute())
        elif isinstance(weights, Adapter):
            raise ValueError("these servers take whole weights: set weights=adapter for adapters")
        else:
            folder = await self._files.write(name, weights, self.root)
        self._set(version, name, folder)
        self._files.keep(folder)  # no server will load an older folder from now on
        await self._bring_all()
        self._release()

    async def hold(self, cut: bool) -> None:
        """Let no request begin until `update` or `follow`; see `Policy.hold`."""
        if self._at_update == "wait":
            return
        self._free.clear()
        for gate in self._gates.values():
            gate.hold()
        if not cut:
            return

        async def end(server: Server) -> None:
            async with self._change(server):
                pass

        await asyncio.gather(*map(end, self._servers))

    def _drop_kept(self) -> None:
        """End the requests that were kept on servers that did not get the new weights.

        Such a server may stay paused.
        """
        for server in self._servers if self._at_update == "keep" else ():
            if server.weights != self._name:
                self._gates[server].drop()

    def _release(self) -> None:
        """Let requests begin again after `hold`."""
        for gate in self._gates.values():
            gate.release()
        self._free.set()

    async def _cut(self, server: Server) -> None:
        """Cut the requests under way on a server; its gate is shut.

        A request that reached the server after the pause waits there, without a token, and is ended
        on this side.
        """
        gate = self._gates[server]
        if not gate.requests:
            return
        with suppress(Failure, Busy):  # the update asks the server again, and notes its failure
            self._check_own(server, await self._control.weights_of(server))
            await self._control.pause(server)
            if not await gate.ended(_TRANSIT_SECONDS):
                gate.drop(newest=4 * _TRANSIT_SECONDS)  # older ones reached the server before
            left = math.inf
            # Long answers take their time: as long as one comes, the others may come, too.
            while not await gate.ended(_CUT_SECONDS) and gate.requests < left:
                left = gate.requests
        if gate.requests:
            _log.info("%s: %d requests begin again without a token", server.url, gate.requests)
        gate.drop()

    def _change(self, server: Server) -> AbstractAsyncContextManager[None]:
        """Pass the gate of a server for a change of its weights."""
        cut = functools.partial(self._cut, server) if self._at_update == "cut" else None
        return self._gates[server].change(cut, waits=self._at_update != "keep")

    def _set(self, version: int, name: str, folder: str | None) -> None:
        """Set the weights that the servers should have, as the policy that updates them.

        Args:
            version: The number of the weights.
            name: The name of the weights.
            folder: The folder of the weights; empty: the folder of the servers' start. `None`:
                servers can't load these weights by themselves.
        """
        self.version, self._folder, self._leads = version, folder, True
        self._name = f"{name} {_TRANSFERRED if folder is None else folder}"
        self._names.add(self._name)

    async def _bring_all(self) -> None:
        """Let all servers have the weights of `version`.

        Raises:
            PolicyUnavailable: If no server loaded them; the text names each server's error.
            RuntimeError: As in `prepare`.
        """
        errors = {server.url: server.failure for server in self._servers}

        async def bring(server: Server) -> None:
            failures = server.failures
            while True:
                try:
                    return await self.prepare(server)
                except (Failure, Busy) as failure:
                    errors[server.url] = str(failure)
                    server.fail(time.monotonic(), failure)
                if failures or server.failures > 1:
                    return
                # A second attempt: the server may only have closed a connection.
                await asyncio.sleep(server.aside_until - time.monotonic())

        now = time.monotonic()
        # The update does not wait for a server that is set aside: it loads before its next turn.
        ready = [server for server in self._servers if server.aside_until <= now] or self._servers
        results = await asyncio.gather(*map(bring, ready), return_exceptions=True)
        for error in filter(None, results):
            raise error
        self._check_any(errors)

    def _check_any(self, errors: dict[str, str]) -> None:
        """Raise if no server has the weights of `version`, and warn of servers without them.

        Args:
            errors: The error of each server, by URL.
        """
        behind = [server for server in self._servers if server.weights != self._name]
        if len(behind) == len(self._servers):
            raise unavailable(errors)
        for server in behind:
            text = "%s has not loaded the weights of version %d, and gets no turn until then: %s"
            _log.warning(text, server.url, self.version, errors[server.url])

    async def follow(self, version: int) -> None:
        """Use the weights that another policy has set; see `VLLMServerPolicy.follow`."""
        errors: dict[str, str] = {}

        async def ask(server: Server) -> str | None:
            try:
                name = await self._followed(server)
            except (Failure, Busy) as failure:
                errors[server.url] = str(failure)
                return None
            if name is None:
                errors[server.url] = PAUSED
            return name

        answers = await asyncio.gather(*map(ask, self._servers))
        names = {s: name for s, name in zip(self._servers, answers, strict=True) if name}
        if not names:
            raise unavailable(errors)
        matching = {name for name in names.values() if name.startswith(f"{version}-")}
        if len(matching) != 1:
            served = ", ".join(f"{server.url}: {name}" for server, name in names.items())
            raise RuntimeError(
                f"the servers should all have one set of weights of version {version}: {served}"
            )
        [self._name] = matching
        self._names.add(self._name)
        folder = self._name.partition(" ")[2]
        self.version, self._folder = version, None if folder == _TRANSFERRED else folder
        self._leads = False
        for server, name in names.items():
            server.blocks.clear()
            if name == self._name:
                self._note(server, version, name)
        self._drop_kept()
        self._release()

    async def prepare(self, server: Server) -> None:
        """Make sure that a server serves the weights of `version`.

        Raises:
            Failure: If the server has other weights that another policy is to replace, or as in
                `Client.send`.
            RuntimeError: If another run also loads its weights there.
        """
        if self._is_ready(server):
            return
        failures = server.failures
        async with self._asking[server]:
            if server.failures > failures:  # the server failed while this turn waited for the lock
                raise Failure(server.failure)
            while not self._is_ready(server):  # newer weights may arrive while the server loads
                await self._make_ready(server)

    def close(self) -> None:
        """Remove the weights that were written."""
        self._files.keep("")

    def _is_ready(self, server: Server) -> bool:
        """Whether a turn may begin without a question about the server's weights."""
        if not self._name:  # no weights were set: the server only must be known not to be paused
            return server.weights is not None
        same = time.monotonic() - server.heard < _RESTART_SECONDS
        return same and server.weights == self._name

    async def _make_ready(self, server: Server) -> None:
        if not self._name:
            if await self._is_paused(server):
                raise Failure(PAUSED)
            return
        known = await self._control.weights_of(server)
        if known == self._name:
            self._note(server, self.version, known)  # after a failure, or a while unheard
        elif self._folder is None:
            raise Failure(f"the server has {known or 'perhaps a mixture of weights'}: {_NEXT}")
        elif self._leads or known == STARTED:
            self._check_own(server, known)
            async with self._change(server):
                if self.held and not self._leads:  # by now another policy may load newer weights
                    raise Failure(PAUSED)
                try:
                    await self._load(server)
                except BaseException:  # the server stays paused, with the requests that it kept
                    self._gates[server].drop()
                    raise
        else:  # the policy that updates the weights will load them
            raise Failure(f"the server has other weights: {known}" if known else PAUSED)

    def _check_own(self, server: Server, known: str | None) -> None:
        """Check that no other run has changed a server's weights since this policy loaded them.

        Args:
            server: The server.
            known: The name of the weights that it has; `None`: it is paused.

        Raises:
            RuntimeError: If another run has changed them.
        """
        if server in self._loaded and known is not None and known not in self._names:
            raise RuntimeError(
                f"another run also updates {server.url}: the server has {known}, which this "
                "run has not loaded; let one run update the servers, and other policies follow"
            )

    async def _is_paused(self, server: Server) -> bool:
        """Whether a server is paused. If not, the name of its weights is noted.

        A warning names weights that an earlier run has set.
        """
        try:
            known = await self._control.weights_of(server)
        except RuntimeError:  # a server that takes no weights has the weights of its start
            known = STARTED
        if known is None:
            return True
        server.weights = known
        if known != STARTED:
            _log.warning(
                "%s has weights that an earlier run left there, %s: they count as version 0 until "
                "the first update_weights or follow",
                server.url,
                known,
            )
        return False

    async def _followed(self, server: Server) -> str | None:
        """The name of the weights that a policy which updates them has set on a server.

        `None`: the server is paused and may hold a mixture.
        """
        return await self._control.weights_of(server)

    def _note(self, server: Server, version: int, name: str) -> None:
        """Note that a server serves the weights of a version and name."""
        server.weights, self._served[server] = name, version

    async def _load(self, server: Server) -> None:
        version, name, folder = self.version, self._name, self._folder
        assert folder is not None
        with self._files.reading(folder):
            # This policy, or the policy that it follows, has written the folder of that name.
            written = Path(folder).name == name.partition(" ")[0]
            await self._load_from(server, folder or self.root, written, name)
        self._note_loaded(server, version, name)

    def _note_loaded(self, server: Server, version: int, name: str) -> None:
        """Note that a server has loaded weights, and has nothing in its cache."""
        server.blocks.clear()
        self._note(server, version, name)
        self._loaded.add(server)

    async def _load_from(self, server: Server, folder: str, written: bool, name: str) -> None:
        await self._control.pause(server)
        call = {"method": "load_checkpoint", "args": [folder, written]}
        try:
            await self._client.send(server, "POST", "/collective_rpc", call, self._seconds)
        except Failure as failure:
            self._files.refuse(folder)
            raise Failure(
                f"the server did not load {folder} (see its log; was it started with "
                "--worker-extension-cls retool_env.rollout.vllm.worker.WeightLoader?): "
                f"{failure}"
            ) from failure
        await self._control.go_on(server, name)
