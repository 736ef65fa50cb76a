"""Policies on the scripted servers of `vllm_servers`, and their turns."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from helpers.vllm_servers import Served, serving
from retool_env.rollout.vllm.server import VLLMServerPolicy

STOP = ("</code>", "</answer>")


PROMPT = list(range(100, 164))


class Letters:
    """The part of a tokenizer that these tests use."""

    eos_token_id = 0
    chat_template = None

    def encode(self, text, **_):
        return [ord(letter) for letter in text]

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


def policy_of(*urls: str, **settings) -> VLLMServerPolicy:
    return VLLMServerPolicy(urls, Letters(), **settings)


def act(policy, *prompts, stop=STOP, budget=24, seed=1):
    async def turns():
        return await asyncio.gather(*(policy.act(ids, stop, budget, seed) for ids in prompts))

    return asyncio.run(turns())


@contextlib.contextmanager
def serving_all(*servers: Served):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(serving(server)) for server in servers]


@contextlib.contextmanager
def silent():
    """A server that accepts requests and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.asynccontextmanager
async def under_way(policy, served: list[Served], turns: int):
    """Turns that the servers sample for as long as the block runs, or until they are cut."""
    for each in served:
        each.held = True
    tasks = [asyncio.create_task(policy.act([*PROMPT, i], STOP, 24, 1)) for i in range(turns)]
    while sum(each.running for each in served) < turns:
        await asyncio.sleep(0.01)
    yield tasks
    for each in served:
        each.held = False
