"""Transfers of weights to scripted servers: groups, lost members, repetitions, checksums."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from types import SimpleNamespace

import pytest
import torch
from helpers.server_policies import PROMPT, act, policy_of, serving_all, under_way
from helpers.vllm_servers import SENT, Engine, Served, serving, unused_port

from agents.models.tiny import make_checkpoint, make_model
from retool_env.rollout import PolicyUnavailable
from retool_env.rollout.vllm import transfer
from retool_env.rollout.weights import Adapter, Parts, checksum


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    monkeypatch.setattr("retool_env.servers.hosts._FIRST_ASIDE", 0.02)
    monkeypatch.setattr(transfer, "_WATCH_SECONDS", 0.05)
    monkeypatch.setattr(transfer, "_HEALTH_SECONDS", 2.0)
    monkeypatch.setattr(transfer, "open_engine", lambda back_end, address, *rest: Engine(*rest))
    yield
    SENT.clear()


@pytest.fixture(scope="module")
def weights():
    return make_model(7)[0].state_dict()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", 0))


STEPS = ["start_weight_update", "update_weights", "finish_weight_update"]
CHANGE = ["pause", "prepare_update", *STEPS, "received_checksum", "update_weight_version", "resume"]


def last_change(served: Served) -> list[str]:
    """The steps of a server's last update, whether it joined a group for it or not."""
    return [event for event in served.events if not event.startswith("init_")][-len(CHANGE) :]


@pytest.fixture
def gloo(checkpoint):
    """Makes servers and a policy that transfers to them; yields them."""
    with contextlib.ExitStack() as stack:

        def make(*served: Served, **settings):
            for each in served:
                each.root = checkpoint
            urls = stack.enter_context(serving_all(*served))
            settings = {"weights": "gloo", "attempts": 2, **settings}
            return stack.enter_context(policy_of(*urls, **settings))

        yield make


def update(policy, version, weights):
    asyncio.run(policy.update_weights(version, weights))


def test_the_workers_of_all_servers_have_numbers_of_their_own_in_one_group(gloo, weights):
    served = [Served(workers=2), Served(workers=4), Served()]
    policy = gloo(*served)
    for version in (1, 2):
        update(policy, version, weights)
        assert all(each.weights.startswith(f"{version}-") for each in served)
    # The group of the first update is the group of the second.
    for each, offset in zip(served, (1, 3, 7), strict=True):
        assert each.joined == [{"rank_offset": offset, "world_size": 8}]
        assert last_change(each) == CHANGE and not each.paused
    turns = act(policy, *([*PROMPT, i] for i in range(6)))
    assert {turn.weight_version for turn in turns} == {2}
    assert policy.weights_dtype == "bfloat16" and policy.writes_parts


def test_the_weights_are_cast_and_summed_up_as_they_are_sent(gloo, weights):
    policy = gloo(Served())
    update(policy, 1, weights)
    cast = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in weights.items()
        if name != "lm_head.weight"  # the embedding's
    }
    assert [checksum(cast.items())] == SENT


@pytest.mark.parametrize("call", ["pause", "prepare_update"])
@pytest.mark.parametrize("way", ["broken", "dies"])
def test_a_server_that_fails_before_the_transfer_is_left_out(gloo, weights, caplog, call, way):
    good, bad = Served(), Served(**{way: [call]})
    policy = gloo(good, bad)
    update(policy, 1, weights)
    assert good.weights.startswith("1-") and bad.weights == "default"
    assert good.joined == [{"rank_offset": 1, "world_size": 2}] and not bad.joined
    assert "has not loaded the weights of version 1" in caplog.records[-1].message
    assert act(policy, PROMPT)[0].weight_version == 1 and not bad.bodies
    if way == "broken":  # it is there again with the next update
        update(policy, 2, weights)
        assert bad.weights.startswith("2-") and len(good.joined) == 2
        assert bad.joined == [{"rank_offset": 2, "world_size": 3}]


@pytest.mark.parametrize("call", STEPS[:2])
def test_a_server_that_dies_in_the_transfer_is_noticed_and_the_others_get_it_again(
    gloo, weights, caplog, call
):
    good, bad = Served(), Served(dies=[call])
    policy = gloo(good, bad)
    update(policy, 1, weights)
    assert good.weights.startswith("1-") and not good.paused
    assert [each["world_size"] for each in good.joined] == [3, 2]
    assert "has not loaded the weights of version 1" in caplog.records[-1].message
    assert act(policy, PROMPT)[0].weight_version == 1


@pytest.mark.parametrize("call", STEPS)
def test_a_step_that_fails_once_is_repeated_from_the_beginning(gloo, weights, call):
    served = Served(broken=[call])
    policy = gloo(served)
    update(policy, 1, weights)
    assert served.weights.startswith("1-") and served.events.count("pause") == 2
    assert last_change(served) == CHANGE


def test_a_transfer_that_never_ends_is_given_up(gloo, weights, monkeypatch):
    """A collective operation has no time-out: the server answers, and does not get further."""
    served = Served(hangs=["update_weights"])
    policy = gloo(served, timeout=1000)
    passed = itertools.count(step=600.0)
    fast = SimpleNamespace(monotonic=lambda: time.monotonic() + next(passed))
    monkeypatch.setattr(transfer, "time", fast)
    with pytest.raises(PolicyUnavailable, match=r"did not end within 1000 s"):
        update(policy, 1, weights)
    assert served.paused and served.weights == "default"
    served.hangs.clear()
    monkeypatch.setattr(transfer, "time", time)
    update(policy, 2, weights)
    assert served.weights.startswith("2-")


def test_an_update_that_a_killed_run_began_is_ended_first(gloo, weights):
    served = Served(updating=True, paused=True)
    update(gloo(served), 1, weights)
    assert served.weights.startswith("1-") and last_change(served) == CHANGE


def test_a_server_that_received_other_weights_serves_no_turn(gloo, weights):
    good, bad = Served(), Served(checksum=7)
    policy = gloo(good, bad)
    update(policy, 1, weights)
    assert bad.paused and bad.weights == "default" and good.weights.startswith("1-")
    assert act(policy, PROMPT)[0].weight_version == 1 and not bad.bodies
    lone = Served(checksum=7)
    with pytest.raises(PolicyUnavailable, match="received other weights than were sent"):
        update(gloo(lone), 1, weights)


def test_a_server_that_comes_back_with_its_first_weights_waits_for_the_next_update(
    weights, checkpoint, caplog
):
    port, good = unused_port(), Served(root=checkpoint)
    with serving(good) as url:
        with serving(Served(root=checkpoint), port) as other:
            policy = policy_of(url, other, weights="gloo")
            update(policy, 1, weights)
        with policy, serving(back := Served(root=checkpoint), port):
            policy.servers[1].weights, policy.servers[0].in_flight = None, 9  # so that it is asked
            assert act(policy, PROMPT)[0].weight_version == 1 and good.bodies
            assert not back.bodies and back.weights == "default" and not back.joined
            assert "with the next update of all servers" in policy.servers[1].failure
            update(policy, 2, weights)
            assert good.weights.startswith("2-") and back.weights.startswith("2-")
            # The group of the first update is not used again: the server that left was in it.
            assert good.events.count("pause") == 2 and len(good.joined) == 2
            assert len(back.joined) == 1


def test_turns_wait_for_the_end_of_a_transfer(gloo, weights):
    served = Served()
    policy = gloo(served)
    update(policy, 1, weights)
    policy.servers[0].heard = 0.0  # so that it asks
    served.hangs.append("update_weights")

    async def main():
        updating = asyncio.create_task(policy.update_weights(2, weights))
        while served.events.count("prepare_update") < 2:
            await asyncio.sleep(0.01)
        turn = asyncio.create_task(policy.act(PROMPT, (), 24, 1))
        await asyncio.sleep(0.1)
        assert not served.bodies
        served.broken.append("health")  # the watchdog ends the first attempt
        served.hangs.clear()
        await updating
        return await turn

    assert asyncio.run(main()).weight_version == 2


def test_kept_turns_of_a_server_that_was_left_out_go_elsewhere(gloo, weights):
    good, bad = Served(), Served(broken=["prepare_update"] * 9)
    policy = gloo(good, bad, at_update="keep")

    async def main():
        async with under_way(policy, [good, bad], 4) as tasks:
            await policy.update_weights(5, weights)
            good.held = False
            return await asyncio.wait_for(asyncio.gather(*tasks), 30)

    turns = asyncio.run(main())
    assert sorted(turn.weight_version for turn in turns) == [0, 0, 5, 5]


def test_a_turn_that_waited_for_a_failed_transfer_is_not_sent(gloo, weights):
    served = Served()
    policy = gloo(served, at_update="wait")
    update(policy, 1, weights)

    async def main():
        served.held = True
        early = asyncio.create_task(policy.act(PROMPT, (), 24, 1))
        while not served.running:
            await asyncio.sleep(0.01)
        served.checksum = 7
        updating = asyncio.create_task(policy.update_weights(2, weights))
        await asyncio.sleep(0.1)  # the update waits for the end of the turn
        late = asyncio.create_task(policy.act([*PROMPT, 1], (), 24, 1))
        await asyncio.sleep(0.1)
        served.held = False
        return await asyncio.gather(early, updating, late, return_exceptions=True)

    early, updating, late = asyncio.run(main())
    assert early.weight_version == 1 and isinstance(updating, PolicyUnavailable)
    assert isinstance(late, PolicyUnavailable) and len(served.bodies) == 1 and served.paused


def test_policies_that_share_servers_follow(gloo, weights):
    served = [Served(), Served()]
    policy = gloo(*served)
    with policy_of(*(server.url for server in policy.servers), attempts=2) as other:
        update(policy, 4, weights)
        asyncio.run(other.follow(4))
        assert act(other, PROMPT)[0].weight_version == 4
        served[0].weights = served[1].weights = "default"  # both have restarted
        for server in other.servers:
            server.heard = 0.0
        with pytest.raises(PolicyUnavailable, match="with the next update of all servers"):
            act(other, PROMPT)


def test_another_run_that_updates_the_servers_is_an_error(gloo, weights):
    served = Served()
    policy = gloo(served)
    update(policy, 4, weights)
    served.weights = "4-of another run"
    with pytest.raises(RuntimeError, match="another run also updates"):
        update(policy, 5, weights)
    assert served.events.count("pause") == 1


def test_wrong_names_change_nothing_and_a_checkpoint_is_read_from_its_folder(
    gloo, weights, tmp_path
):
    served = Served()
    policy = gloo(served)
    with pytest.raises(ValueError, match="no weight 'module"):
        update(policy, 1, {f"module.{name}": each for name, each in weights.items()})
    with pytest.raises(ValueError, match="take whole weights"):
        update(policy, 1, Adapter({}, {}))
    assert not served.events and policy.weight_version == 0
    update(policy, 1, tmp_path)
    assert f"collective_rpc load_checkpoint {tmp_path}" in served.events
    assert act(policy, PROMPT)[0].weight_version == 1


def test_the_address_is_the_one_that_reaches_the_server():
    assert transfer._own_address("http://127.0.0.1:8000") == "127.0.0.1"


def test_processes_gather_the_weights_before_any_turn_is_cut(gloo, weights):
    """Only the first process keeps them; the update then names them."""
    served = [Served(), Served()]
    policy = gloo(*served)
    parts = Parts("7-" + "ab" * 9, 2)
    asked = []

    def watched():
        for pair in weights.items():
            asked.append(len(served[0].events))
            yield pair

    policy.write_part(parts, watched(), 1)
    assert not asked
    policy.write_part(parts, watched(), 0)
    assert asked == [0] * len(weights)
    asyncio.run(policy.hold())
    update(policy, 7, parts)
    assert all(each.weights.startswith("7-") for each in served)
    assert act(policy, PROMPT)[0].weight_version == 7
    with pytest.raises(ValueError, match="call write_part"):
        update(policy, 8, parts)
