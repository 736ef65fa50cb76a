"""Pauses of a server, and the names of its weights."""

from __future__ import annotations

import asyncio

import pytest
from helpers.vllm_servers import Served, serving

from retool_env.rollout.vllm.client import Client
from retool_env.rollout.vllm.control import Control
from retool_env.rollout.vllm.routing import Server


@pytest.mark.parametrize(
    ("at_update", "query"),
    [
        ("cut", "mode=abort&clear_cache=true"),
        ("wait", "mode=wait&clear_cache=true"),
        ("keep", "mode=keep&clear_cache=false"),
    ],
)
def test_a_server_is_paused_and_goes_on_under_a_name(at_update, query):
    async def main(url: str) -> list[str | None]:
        client, server = Client(None), Server(url)
        control = Control(client, 5.0, at_update)
        names = [await control.weights_of(server)]
        await control.pause(server)
        names.append(await control.weights_of(server))
        await control.go_on(server, "3-abc /folder")
        names.append(await control.weights_of(server))
        await client.close()
        return names

    with serving(served := Served()) as url:
        assert asyncio.run(main(url)) == ["default", None, "3-abc /folder"]
    assert served.pauses == [query]
    assert served.events == ["pause", "update_weight_version", "resume"]
