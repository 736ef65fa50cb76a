"""The bound on the tokens of the episodes in flight, from the load that servers report."""

from __future__ import annotations

import asyncio
import threading

from helpers.server_policies import PROMPT, STOP, act, policy_of, serving_all
from helpers.vllm_servers import Served, serving

from retool_env.rollout.vllm.room import Load, Room

BLOCKS = 100


def metrics(waiting: float = 0, usage: float = 0.0, blocks: int = BLOCKS) -> str:
    """The metrics of a server with two engines, each of which reports the blocks of both."""
    labels = 'engine="{}",model_name="m"'
    config = 'block_size="16",cache_dtype="auto",engine="{}",num_gpu_blocks="{}"'
    lines = [
        "# HELP vllm:num_requests_waiting Number of requests waiting to be processed.",
        "# TYPE vllm:num_requests_waiting gauge",
        *(f"vllm:num_requests_waiting{{{labels.format(i)}}} {waiting / 2}" for i in range(2)),
        *(f"vllm:kv_cache_usage_perc{{{labels.format(i)}}} {usage * i}" for i in range(2)),
        *(f"vllm:cache_config_info{{{config.format(i, blocks)}}} 1.0" for i in range(2)),
        f"vllm:num_requests_waiting_by_reason{{{labels.format(0)}}} 7.0",
    ]
    return "\n".join(lines) + "\n"


def test_the_load_is_read_from_the_metrics():
    assert Load.of(metrics(3, 0.25)) == Load(3.0, 0.25, 16 * BLOCKS)
    sized = metrics().replace('block_size="16"', 'block_size="16",kv_cache_size_tokens="700"')
    assert Load.of(sized) == Load(0.0, 0.0, 2 * 700)  # of each engine
    assert Load.of("# nothing\n") is None
    assert Load.of(metrics().replace('"16"', '"None"')) is None


class Answers:
    """A client whose servers report these metrics."""

    def __init__(self, *texts):
        self.texts = list(texts)

    async def send(self, server, method, path, seconds):
        assert (method, path) == ("GET", "/metrics") and seconds < 10
        if (text := self.texts[server]) is None:
            raise RuntimeError("no metrics")
        return text


def test_the_bound_is_a_share_of_the_caches_and_follows_the_load():
    client = Answers(metrics(), metrics())
    room = Room([0, 1], client, sharers=4)
    whole = 2 * 16 * BLOCKS

    def look(*texts, times: int = 1) -> float:
        client.texts = list(texts)
        for _ in range(times):
            asyncio.run(room.look())
        return room.tokens

    assert room.admits(1e9)  # nothing is known yet
    assert look(metrics(), metrics()) == whole / 4
    assert room.admits(whole / 4) and look(metrics(), metrics()) == whole / 4  # nobody wants more
    assert not room.admits(whole / 4 + 1)
    assert look(metrics(usage=0.7), metrics(), times=5) == whole / 4  # the episodes grow first
    risen = look(metrics(usage=0.7), metrics(), times=10)
    assert whole / 4 < risen < whole / 3 and room.admits(risen)
    room.admits(1e9)
    assert look(metrics(usage=0.9), metrics(), times=40) == risen  # not roomy
    for full in (metrics(usage=0.99), metrics(waiting=2)):
        before = room.tokens
        room.admits(1e9)
        assert whole / 4 <= look(metrics(), full) < before or before == whole / 4
    assert room.tokens == whole / 4
    assert look(metrics(), None) == whole / 8  # a server is gone
    assert look(None, None) == whole / 8
    for _ in range(30):
        room.admits(1e9)
        look(metrics(), metrics(), times=15)
    assert room.tokens == 16 * whole / 4


def test_processes_that_share_servers_fill_and_do_not_overfill_them(monkeypatch):
    """Four processes want all they can get. Episodes grow to a quarter of their greatest length
    in 20 looks, and then end.
    """
    longest, capacity = 80, 2 * 16 * BLOCKS * 4
    client = Answers("", "")
    rooms = [Room([0, 1], client, sharers=4) for _ in range(4)]
    ages: list[list[int]] = [[] for _ in rooms]
    used, most = 0.0, 0.0
    for _ in range(500):
        used = sum(longest / 4 * age / 20 for each in ages for age in each)
        most = max(most, used)
        usage, waiting = min(1.0, used / capacity), max(0.0, used - capacity)
        client.texts = [metrics(waiting, usage, 4 * BLOCKS)] * 2
        for number, room in enumerate(rooms):
            asyncio.run(room.look())
            ages[number] = [age + 1 for age in ages[number] if age < 20]
            while room.admits((len(ages[number]) + 1) * longest):
                ages[number].append(1)
    assert capacity * 0.6 < used and most < capacity * 1.3


def test_a_policy_asks_its_servers_and_the_engine_waits_for_room(monkeypatch):
    monkeypatch.setattr("retool_env.rollout.vllm.room._LOOK_SECONDS", 0.02)
    served = [Served(metrics=metrics()), Served(metrics=metrics(waiting=1, blocks=50))]
    with serving_all(*served) as urls, policy_of(*urls, sharers=3) as policy:
        assert policy.admits(16 * 150 / 3) and not policy.admits(16 * 150 / 3 + 1)
        served[1].metrics = metrics(blocks=50)
        risen = threading.Event()
        while not policy.admits(16 * 150 / 3 + 1):
            risen.wait(0.01)
    with serving(Served()) as url, policy_of(url) as policy:
        assert policy.admits(1e9) and act(policy, PROMPT, stop=STOP)


def test_servers_that_refuse_their_metrics_set_no_bound():
    with serving(Served(metrics="refused")) as url, policy_of(url) as policy:
        assert policy.admits(1e9)
