"""Control: the pauses of servers, and the names of their weights."""

from __future__ import annotations

from retool_env.rollout.policy import AtUpdate
from retool_env.rollout.vllm.client import Client, field
from retool_env.rollout.vllm.routing import Server

# vLLM's mode of a pause, and whether the pause empties the cache, by the treatment of requests.
_PAUSES = {"cut": ("abort", "true"), "wait": ("wait", "true"), "keep": ("keep", "false")}


class Control:
    """Pauses servers, and reads and sets the names of their weights.

    Args:
        client: The client that sends the requests.
        seconds: The seconds that a server may take to pause.
        at_update: The treatment of requests under way at a pause.
    """

    def __init__(self, client: Client, seconds: float, at_update: AtUpdate) -> None:
        self._client = client
        self._seconds = seconds
        self._at_update = at_update

    async def weights_of(self, server: Server) -> str | None:
        """Ask a server for the name of its weights. `None`: it is paused and may hold a mixture.

        Raises:
            Failure: As in `Client.send`.
            RuntimeError: If the server takes no new weights.
        """
        paused = await self._client.send(server, "GET", "/is_paused")
        known = await self._client.send(server, "GET", "/weight_info")
        name = field(known, "weight_version", str)
        return None if field(paused, "is_paused", bool) else name

    async def pause(self, server: Server) -> None:
        """End or hold all requests of a server; new requests wait there.

        After a failure from here on the server stays paused: it may hold a mixture of weights.
        """
        mode, clears = _PAUSES[self._at_update]
        pause = f"/pause?mode={mode}&clear_cache={clears}"
        await self._client.send(server, "POST", pause, seconds=self._seconds)

    async def go_on(self, server: Server, name: str) -> None:
        """Let a server serve its new weights.

        Args:
            server: The server.
            name: The name of the weights.
        """
        # The name is set before the server samples again, so that it never reports a wrong name.
        await self._client.send(server, "POST", "/update_weight_version", {"new_version": name})
        await self._client.send(server, "POST", "/resume")
