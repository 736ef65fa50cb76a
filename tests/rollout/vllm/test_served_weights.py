"""New weights on scripted servers: updates, followers, restarts, pauses and files."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from pathlib import Path

import pytest
import torch
from fastapi.responses import JSONResponse
from helpers.server_policies import PROMPT, STOP, act, policy_of, serving_all, under_way
from helpers.vllm_servers import Served, serving, unused_port
from safetensors.torch import load_file

from agents.models.tiny import make_checkpoint, make_model
from retool_env.rollout import PolicyUnavailable
from retool_env.servers.hosts import Failure


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("retool_env.servers.hosts._FIRST_ASIDE", 0.02)
    monkeypatch.setattr("retool_env.servers.hosts._SHORTEST_RETRY_AFTER", 0.01)


def test_an_update_does_not_wait_for_a_server_that_is_set_aside(tmp_path, caplog):
    served = [Served(), Served()]
    with serving_all(*served) as urls, policy_of(*urls) as policy:
        first, second = policy.servers
        second.failures, second.failure = 1, "broken"
        second.aside_until = time.monotonic() + 3600
        asyncio.run(policy.update_weights(3, tmp_path))
        assert served[0].weights.startswith("3-") and not served[1].events
        [record] = caplog.records
        assert urls[1] in record.message and record.message.endswith("then: broken")
        second.aside_until, first.in_flight = 0, 9  # so that it is asked
        assert act(policy, PROMPT)[0].weight_version == 3 and served[1].prompts
        # If there is no other, they are asked all the same.
        for server in policy.servers:
            server.aside_until = time.monotonic() + 3600
        asyncio.run(policy.update_weights(4, tmp_path))
        assert all(each.weights.startswith("4-") for each in served)


@pytest.mark.parametrize("path", ["is_paused", "weight_info"])
def test_a_closed_connection_costs_a_failing_servers_update_nothing(tmp_path, path):
    """`vllm serve` closes the connection on which it reported a failed load."""
    served = Served(broken=["collective_rpc"] * 2)
    with serving(served) as url, policy_of(url) as policy:
        with pytest.raises(PolicyUnavailable, match="did not load"):
            asyncio.run(policy.update_weights(1, tmp_path))
        served.cut.append(path)
        asyncio.run(policy.update_weights(2, tmp_path))
        assert served.weights.startswith("2-") and not served.cut
        served.cut += [path] * 2
        with pytest.raises(PolicyUnavailable, match="RemoteProtocolError"):
            asyncio.run(policy.follow(2))


def test_a_server_that_has_loaded_counts_however_long_another_takes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("retool_env.rollout.vllm.served_weights._RESTART_SECONDS", 0.05)

    def load(path: str):
        while "resume" not in good.events:
            time.sleep(0.01)
        time.sleep(0.2)  # the good one is not heard of meanwhile
        raise OSError

    good, bad = Served(), Served(load=load)
    with serving_all(good, bad) as urls, policy_of(*urls) as policy:
        asyncio.run(policy.update_weights(1, tmp_path))
        assert f"{urls[1]} has not loaded the weights of version 1" in caplog.records[-1].message
        assert "did not load" in caplog.records[-1].message
        assert act(policy, PROMPT)[0].weight_version == 1


@pytest.mark.parametrize("fault", ["hangs", "dies"])
def test_a_server_that_gets_stuck_or_dies_while_paused_is_left_out(tmp_path, caplog, fault):
    good, bad = Served(), Served(**{fault: ["load_checkpoint"]})
    with serving_all(good, bad) as urls, policy_of(*urls, timeout=2.0) as policy:
        asyncio.run(policy.update_weights(1, tmp_path))
        assert f"{urls[1]} has not loaded the weights of version 1" in caplog.records[-1].message
        assert act(policy, PROMPT)[0].weight_version == 1 and not bad.bodies
        assert bad.weights == "default" and bad.paused


def test_two_runs_that_load_their_weights_on_one_server_are_told(tmp_path):
    served = Served()
    with serving(served) as url, policy_of(url) as one, policy_of(url) as other:
        asyncio.run(one.update_weights(5, tmp_path))
        asyncio.run(other.update_weights(1, tmp_path))  # an earlier run's, for all that it knows
        loads = served.events.count("pause")
        message = pytest.raises(
            RuntimeError, match=f"another run also updates {url}: the server has 1-"
        )
        one.servers[0].heard = 0.0  # so that it asks what the server has
        with message:
            act(one, PROMPT)
        with message:
            asyncio.run(one.update_weights(6, tmp_path))
        assert served.events.count("pause") == loads
        assert act(other, PROMPT)[0].weight_version == 1
        # One that has followed the other knows its weights.
        asyncio.run(one.follow(1))
        asyncio.run(one.update_weights(7, tmp_path))
        assert served.weights.startswith("7-")


def test_new_weights_come_between_turns(tmp_path):
    served = [Served(delay=0.2), Served(delay=0.2)]
    with serving_all(*served) as urls, policy_of(*urls, at_update="wait") as policy:

        async def both():
            early = [asyncio.create_task(policy.act([*PROMPT, i], STOP, 24, 1)) for i in range(4)]
            while sum(each.running for each in served) < 4:
                await asyncio.sleep(0.01)
            update = asyncio.create_task(policy.update_weights(5, tmp_path))
            await asyncio.sleep(0.05)
            late = [asyncio.create_task(policy.act([*PROMPT, i], STOP, 24, 1)) for i in range(4)]
            await update
            return await asyncio.gather(*early), await asyncio.gather(*late)

        early, late = asyncio.run(both())
        assert [turn.weight_version for turn in early] == [0] * 4
        assert [turn.weight_version for turn in late] == [5] * 4
        assert policy.weight_version == 5
    load = f"collective_rpc load_checkpoint {tmp_path}"
    change = ["pause", load, "update_weight_version", "resume"]
    for each in served:
        at = each.events.index("pause")
        assert each.events[at : at + 4] == change
        assert each.events[:at].count("turn") == each.events[:at].count("end") > 0


def test_new_weights_cut_turns_which_go_on_with_what_they_have(tmp_path):
    served = [Served(), Served(before_cut=2)]

    async def main(policy):
        async with under_way(policy, served, 4) as tasks:
            await policy.update_weights(5, tmp_path)
        return await asyncio.gather(*tasks)

    with serving_all(*served) as urls, policy_of(*urls) as policy:
        turns = asyncio.run(main(policy))
        assert policy.retried == 0 and not any(each.failures for each in policy.servers)
    assert {turn.token_ids for turn in turns} == {tuple(served[0].written)}
    assert all(turn.stop_reason == "tag" and turn.weight_version == 0 for turn in turns)
    assert {turn.weight_runs for turn in turns} == {((0, 1), (5, 2)), ((0, 2), (5, 1))}
    bodies = [body for each in served for body in each.bodies]
    again = [body for body in bodies if body["prompt"][-1] in served[0].written]
    assert len(bodies) == 8 and len(again) == 4
    # The same seed again would draw the same random numbers again.
    assert {body["seed"] for body in again}.isdisjoint({1}) and len({*map(str, again)}) == 4
    assert all(body["max_tokens"] == 24 - (len(body["prompt"]) - 65) for body in bodies)


def test_a_request_that_reaches_a_paused_server_is_sent_again(tmp_path, monkeypatch):
    """It has no token, and would otherwise be sampled with the new weights under the old number."""
    monkeypatch.setattr("retool_env.rollout.vllm.served_weights._CUT_SECONDS", 60.0)
    served = Served()

    async def main(policy):
        async with under_way(policy, [served], 2) as tasks:
            served.deaf = True
            await policy.update_weights(5, tmp_path)
        return await asyncio.gather(*tasks)

    with serving(served) as url, policy_of(url) as policy:
        turns = asyncio.run(main(policy))
        assert policy.retried == 0
    assert [(turn.weight_version, turn.weight_runs) for turn in turns] == [(5, ())] * 2
    assert served.gone == 2 and len(served.bodies) == 4


def test_a_server_that_does_not_pause_holds_up_no_turn(tmp_path, caplog):
    good, bad = Served(), Served(broken=["pause"] * 3)

    async def main(policy):
        async with under_way(policy, [good, bad], 4) as tasks:
            await policy.update_weights(5, tmp_path)
            good.held = False
            return await asyncio.gather(*tasks)

    with serving_all(good, bad) as urls, policy_of(*urls) as policy:
        turns = asyncio.run(main(policy))
        assert f"{urls[1]} has not loaded the weights of version 5" in caplog.text
    assert {turn.weight_runs for turn in turns} == {(), ((0, 1), (5, 2))}
    assert sorted(turn.weight_version for turn in turns) == [0, 0, 5, 5]


def test_a_turn_that_another_client_cuts_again_and_again_ends_as_a_failure():
    served = Served(before_cut=0)

    async def main(policy):
        async with under_way(policy, [served], 1) as tasks:
            while not tasks[0].done():
                served.cuts += served.running
                await asyncio.sleep(0.01)
        await tasks[0]

    failure = pytest.raises(PolicyUnavailable, match="another client of the server ended the turn")
    with serving(served) as url, policy_of(url, attempts=3) as policy, failure:
        asyncio.run(main(policy))
    assert len(served.bodies) == 3


def test_policies_that_hold_their_turns_go_on_with_the_new_weights(tmp_path):
    """The pause of a policy's hold cuts the turns of the others."""
    served = [Served(), Served()]

    async def main(leader, other):
        async with under_way(other, served, 4) as tasks:
            own = [asyncio.create_task(leader.act([*PROMPT, i], STOP, 24, 1)) for i in range(4)]
            while sum(each.running for each in served) < 8:
                await asyncio.sleep(0.01)
            await asyncio.gather(other.hold(), leader.hold())
            assert not any(each.running for each in served)
            late = asyncio.create_task(other.act(PROMPT, STOP, 24, 1))
            await asyncio.sleep(0.2)
            assert not any("load_checkpoint" in event for each in served for event in each.events)
            await leader.update_weights(4, tmp_path)
            await asyncio.sleep(0.1)
            assert not late.done() and sum(each.running for each in served) == 4
            await other.follow(4)
        return await asyncio.gather(*tasks, *own, late)

    with serving_all(*served) as urls, policy_of(*urls) as leader, policy_of(*urls) as other:
        *early, late = asyncio.run(main(leader, other))
        assert other.retried == leader.retried == 0
        assert {turn.weight_runs for turn in early} == {((0, 1), (4, 2))}
        assert (late.weight_version, late.weight_runs) == (4, ())
        # With nothing under way it asks nobody, and the next turns wait all the same.
        events = [list(each.events) for each in served]
        asyncio.run(other.hold())
        assert [each.events for each in served] == events
        asyncio.run(leader.update_weights(5, tmp_path))
        asyncio.run(other.follow(5))
        assert act(other, PROMPT)[0].weight_version == 5


def test_long_answers_to_cut_turns_are_waited_for_as_long_as_one_comes(tmp_path, monkeypatch):
    monkeypatch.setattr("retool_env.rollout.vllm.served_weights._CUT_SECONDS", 0.4)
    monkeypatch.setattr("retool_env.rollout.vllm.served_weights._TRANSIT_SECONDS", 0.001)
    served = Served(slow_answers=0.15)

    async def main(policy):
        async with under_way(policy, [served], 6) as tasks:
            await policy.update_weights(5, tmp_path)
        return await asyncio.gather(*tasks)

    with serving(served) as url, policy_of(url) as policy:
        turns = asyncio.run(main(policy))  # the last answer comes after 0.9 s
    assert {turn.weight_runs for turn in turns} == {((0, 1), (5, 2))}


def test_a_turn_that_waited_long_at_the_gate_asks_the_server_again(tmp_path, monkeypatch):
    monkeypatch.setattr("retool_env.rollout.vllm.served_weights._RESTART_SECONDS", 0.1)
    good, slow = Served(root="m"), Served(root="m")

    async def main(policy):
        gate = policy._weights._gates[policy.servers[0]]
        gate.hold()
        turn = asyncio.create_task(policy._act(list(PROMPT), list(STOP), 24, 1))
        await asyncio.sleep(0.3)
        gate.release()
        return await turn

    with serving_all(good, slow) as urls, policy_of(*urls) as policy:
        asyncio.run(policy.update_weights(5, tmp_path))
        turn = policy.loop.run_blocking(main(policy))
        assert turn.weight_version == 5 and policy.retried == 0
        assert not any(server.failures for server in policy.servers)


def test_metrics_do_not_hide_that_a_server_has_restarted(tmp_path, monkeypatch):
    monkeypatch.setattr("retool_env.rollout.vllm.served_weights._RESTART_SECONDS", 0.2)
    served = Served(metrics="# none\n")
    with serving(served) as url, policy_of(url) as policy:
        asyncio.run(policy.update_weights(3, tmp_path))
        served.weights = "default"  # it was started anew
        time.sleep(0.3)
        policy.loop.run_blocking(policy._room.look())
        assert act(policy, PROMPT)[0].weight_version == 3
    assert served.events.count(f"collective_rpc load_checkpoint {tmp_path}") == 2


def test_kept_turns_of_a_server_that_fails_to_load_go_elsewhere(tmp_path):
    good, bad = Served(), Served(broken=["load_checkpoint"] * 9)

    async def main(policy):
        async with under_way(policy, [good, bad], 4) as tasks:
            await policy.update_weights(5, tmp_path)
            good.held = False
            return await asyncio.wait_for(asyncio.gather(*tasks), 30)

    with serving_all(good, bad) as urls, policy_of(*urls, at_update="keep") as policy:
        turns = asyncio.run(main(policy))
    assert sorted(turn.weight_version for turn in turns) == [0, 0, 5, 5]


def test_a_follower_ends_the_kept_turns_of_a_server_that_stays_paused(tmp_path):
    good, bad = Served(), Served(broken=["load_checkpoint"] * 9)

    async def main(leader, other):
        async with under_way(other, [good, bad], 4) as tasks:
            await asyncio.gather(other.hold(), leader.hold())
            await leader.update_weights(5, tmp_path)
            await other.follow(5)
            good.held = False
            return await asyncio.wait_for(asyncio.gather(*tasks), 30)

    with (
        serving_all(good, bad) as urls,
        policy_of(*urls, at_update="keep") as leader,
        policy_of(*urls, at_update="keep") as other,
    ):
        turns = asyncio.run(main(leader, other))
    assert sorted(turn.weight_version for turn in turns) == [0, 0, 5, 5]


def test_a_turn_that_is_late_loads_no_older_weights_once_turns_are_held(tmp_path):
    served = Served()
    with serving(served) as url, policy_of(url) as leader, policy_of(url) as other:
        asyncio.run(leader.update_weights(1, tmp_path))
        asyncio.run(other.follow(1))
        asyncio.run(other.hold())
        served.weights, other.servers[0].heard = "default", 0.0  # it was started anew
        events = list(served.events)
        with pytest.raises(Failure, match="paused for new weights"):
            other.loop.run_blocking(other._weights.prepare(other.servers[0]))
        assert served.events == events
        asyncio.run(leader.update_weights(2, tmp_path))
        asyncio.run(other.follow(2))
        assert act(other, PROMPT)[0].weight_version == 2


def test_holding_without_cuts_cuts_nothing_and_explains_the_cuts_of_another(tmp_path):
    served = Served()

    async def main(leader, other):
        async with under_way(other, [served], 2) as tasks:
            await asyncio.gather(other.hold(cut=False), leader.hold(cut=False))
            assert served.running == 2 and not served.pauses
            await leader.hold()  # it has no turn, so it pauses nothing
            await leader.update_weights(4, tmp_path)
            await other.hold()
            await other.follow(4)
        return await asyncio.gather(*tasks)

    with serving(served) as url, policy_of(url) as leader, policy_of(url) as other:
        turns = asyncio.run(main(leader, other))
        assert other.retried == 0 and not other.servers[0].failures
    assert {turn.weight_runs for turn in turns} == {((0, 1), (4, 2))}


def test_turns_that_are_kept_go_on_under_the_new_weights_and_are_counted(tmp_path):
    served = [Served(), Served()]

    async def main(policy):
        async with under_way(policy, served, 4) as tasks:
            await policy.update_weights(5, tmp_path)
            assert not any(task.done() for task in tasks) and policy.mixed_turns == 0
        return await asyncio.gather(*tasks)

    with serving_all(*served) as urls, policy_of(*urls, at_update="keep") as policy:
        turns = asyncio.run(main(policy))
        assert policy.mixed_turns == 4
        assert act(policy, PROMPT)[0].weight_version == 5 and policy.mixed_turns == 4
    assert {(turn.weight_version, turn.weight_runs) for turn in turns} == {(0, ())}
    assert sum(len(each.bodies) for each in served) == 5  # none was sent again
    assert {each.pauses[-1] for each in served} == {"mode=keep&clear_cache=false"}
    # A later turn reads nothing from the blocks of older weights.
    assert len({body["cache_salt"] for each in served for body in each.bodies}) == 2


def test_an_unknown_treatment_of_turns_is_refused():
    with pytest.raises(ValueError, match="at_update must be cut, wait or keep, not 'drop'"):
        policy_of("http://h:1", at_update="drop")


def test_a_server_that_was_started_anew_gets_the_weights_before_a_turn(tmp_path, monkeypatch):
    monkeypatch.setattr("retool_env.rollout.vllm.served_weights._RESTART_SECONDS", 0.5)
    port = unused_port()
    first, second = Served(), Served()
    with serving(first, port) as url:
        policy = policy_of(url)
        asyncio.run(policy.update_weights(3, tmp_path))
    time.sleep(0.6)
    with serving(second, port), policy:
        assert act(policy, PROMPT)[0].weight_version == 3
        assert second.events[:5] == [*first.events[:4], "turn"] and second.weights == first.weights
        # One that failed and still has them does not read them again.
        second.failures = [JSONResponse({}, 500)]
        act(policy, PROMPT)
        assert second.events.count("pause") == 1


@pytest.fixture(scope="module")
def weights():
    return make_model(7)[0].state_dict()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", 0))


def test_tensors_reach_the_servers_as_files_that_stay_until_the_next_come(
    checkpoint, weights, tmp_path, monkeypatch
):
    monkeypatch.setattr("retool_env.rollout.weight_files._SHARD_BYTES", 1_000_000)
    folder, got = tmp_path / "new" / "weights", []

    def load(path: str):
        if path != checkpoint:
            files = list(Path(path).glob("*.safetensors"))
            # A server may be another user's.
            assert len(files) > 1 and all(each.stat().st_mode & 0o044 == 0o044 for each in files)
            pairs = [pair for file in files for pair in load_file(file).items()]
            got.append(dict(pairs))
            assert len(pairs) == len(got[-1])

    served = [Served(root=checkpoint, load=load) for _ in range(2)]
    with serving_all(*served) as urls:
        with policy_of(*urls, weights_folder=folder, weights_dtype="float32") as policy:
            asyncio.run(policy.update_weights(1, weights))
            [first] = folder.iterdir()
            untied = ((n, t) for n, t in weights.items() if n != "model.embed_tokens.weight")
            asyncio.run(policy.update_weights(2, untied))
            [second] = folder.iterdir()
            assert first != second and policy.weight_version == 2
            asyncio.run(policy.update_weights(3))  # what they were started with
            assert not list(folder.iterdir())
            asyncio.run(policy.update_weights(4, weights))
            assert len(list(folder.iterdir())) == 1
        assert not list(folder.iterdir())
    assert len(got) == 6
    for each in got:
        assert each.keys() == weights.keys() - {"lm_head.weight"}  # the embedding's
        assert all(torch.equal(tensor, weights[name]) for name, tensor in each.items())


def test_files_are_kept_while_a_server_reads_them(checkpoint, weights, tmp_path):
    begun, may_end = [queue.SimpleQueue() for _ in range(2)], [threading.Event() for _ in range(2)]

    def loading(number: int):
        def load(path: str):
            begun[number].put(path)
            assert may_end[number].wait(20)

        return load

    served = [Served(root=checkpoint, load=loading(number)) for number in range(2)]

    async def main(policy):
        updates = [asyncio.create_task(policy.update_weights(1, weights))]
        [first, _] = [await asyncio.to_thread(each.get, timeout=20) for each in begun]
        updates.append(asyncio.create_task(policy.update_weights(2, weights)))
        while policy.weight_version != 2:
            await asyncio.sleep(0.01)
        may_end[0].set()
        second = await asyncio.to_thread(begun[0].get, timeout=20)
        assert sorted(map(str, tmp_path.iterdir())) == sorted([first, second])
        may_end[1].set()
        await asyncio.gather(*updates)
        assert list(map(str, tmp_path.iterdir())) == [second]

    with serving_all(*served) as urls, policy_of(*urls, weights_folder=tmp_path) as policy:
        asyncio.run(main(policy))


def test_a_server_that_was_started_anew_gets_the_tensors_of_the_last_update(
    checkpoint, weights, tmp_path
):
    port, got = unused_port(), []
    late = Served(root=checkpoint, load=lambda path: got.append(list(Path(path).glob("*-*.s*"))))
    with (
        serving(Served(root=checkpoint)) as url,
        policy_of(url, f"http://127.0.0.1:{port}", weights_folder=tmp_path) as policy,
    ):
        for version in (1, 2):
            asyncio.run(policy.update_weights(version, weights))
        with serving(late, port):
            policy.servers[1].aside_until = 0
            policy.servers[0].in_flight = 9
            assert act(policy, PROMPT)[0].weight_version == 2
    assert len(late.prompts) == 1 and len(got) == 1 and len(got[0]) == 1


def test_tensors_that_are_not_the_models_are_refused_and_nothing_changes(
    checkpoint, weights, tmp_path
):
    served = Served(root=checkpoint)
    name = "model.norm.weight"
    missing = {each: tensor for each, tensor in weights.items() if each != name}
    with serving(served) as url:
        with policy_of(url, weights_folder=tmp_path) as policy:
            for wrong, words in (
                (missing, f"1 of the model's weights are missing, for example '{name}'"),
                ({f"module.{name}": weights[name]}, "no weight 'module"),
                ({**weights, name: torch.ones(3)}, r"shape \(3,\), but \(128,\) in the model"),
            ):
                with pytest.raises(ValueError, match=words):
                    asyncio.run(policy.update_weights(1, wrong))
            assert policy.weight_version == 0 and not list(tmp_path.iterdir())
        with policy_of(url) as policy, pytest.raises(ValueError, match="weights_folder"):
            asyncio.run(policy.update_weights(1, weights))
        served.root = "/nowhere/model"
        absent = pytest.raises(OSError, match="not found at '/nowhere/model'")
        with policy_of(url, weights_folder=tmp_path) as policy, absent:
            asyncio.run(policy.update_weights(1, weights))
    assert not served.events


def test_turns_that_wait_for_new_weights_run_together_and_one_load_is_enough(tmp_path):
    begun, may_end = threading.Event(), threading.Event()

    def load(path: str):
        begun.set()
        assert may_end.wait(20)

    served = Served(delay=0.5, load=load)

    async def main(policy):
        update = asyncio.create_task(policy.update_weights(5, tmp_path))
        await asyncio.to_thread(begun.wait, 20)
        turns = [asyncio.create_task(policy.act([*PROMPT, i], STOP, 24, 1)) for i in range(8)]
        while policy.servers[0].in_flight < 8:
            await asyncio.sleep(0.01)
        may_end.set()
        await update
        return await asyncio.gather(*turns)

    with serving(served) as url, policy_of(url) as policy:
        assert {turn.weight_version for turn in asyncio.run(main(policy))} == {5}
        # So it is when none of them comes from an update.
        policy.servers[0].weights = None
        served.weights = "default"
        act(policy, *([*PROMPT, i] for i in range(8)))
    assert served.events.count("pause") == 2 and served.most == 8


def test_a_load_that_fails_is_not_tried_by_each_turn_that_waits_for_it(tmp_path):
    may_end = threading.Event()

    def load(path: str):
        assert may_end.wait(20)
        raise OSError

    async def turns(policy):
        tasks = [asyncio.create_task(policy.act([*PROMPT, i], STOP, 24, 1)) for i in range(8)]
        while policy.servers[0].in_flight < 8:
            await asyncio.sleep(0.01)
        may_end.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    served = Served()
    with serving(served) as url, policy_of(url, attempts=1) as policy:
        asyncio.run(policy.update_weights(3, tmp_path))
        served.events.clear()
        served.load, served.weights, policy.servers[0].weights = load, "default", None
        errors = asyncio.run(turns(policy))
    assert served.events.count("pause") == 1
    assert all(isinstance(e, PolicyUnavailable) and "did not load" in str(e) for e in errors)


def test_a_server_that_was_left_paused_gets_no_turn_before_it_has_loaded(tmp_path, caplog):
    served = [Served(paused=True), Served()]
    with serving_all(*served) as urls:
        with policy_of(urls[0], attempts=2) as policy:
            assert [r.message for r in caplog.records if "is paused" in r.message]
            with pytest.raises(PolicyUnavailable, match="is paused"):
                act(policy, PROMPT, PROMPT)
            assert not served[0].prompts
        with policy_of(*urls) as policy:
            act(policy, *([*PROMPT, i] for i in range(4)))
            assert len(served[1].prompts) == 4 and not served[0].prompts
            policy.servers[0].aside_until = 0
            asyncio.run(policy.update_weights(3, tmp_path))
            act(policy, *([*PROMPT, i] for i in range(4)))
            assert len(served[0].prompts) == 2 and not served[0].paused


def test_a_server_whose_pause_ends_gets_turns(tmp_path):
    served = Served(paused=True)
    with serving(served) as url, policy_of(url, attempts=50) as policy:

        async def main():
            turns = [asyncio.create_task(policy.act(PROMPT, STOP, 24, 1)) for _ in range(3)]
            while not policy.servers[0].failures:
                await asyncio.sleep(0.01)
            served.paused = False
            return await asyncio.gather(*turns)

        assert asyncio.run(main())[0].weight_version == 0


def test_a_server_that_is_paused_later_is_found_to_be_so():
    served = Served()
    with serving(served) as url, policy_of(url, attempts=2, timeout=0.3) as policy:
        assert act(policy, PROMPT)
        served.paused = True
        with pytest.raises(PolicyUnavailable, match="is paused"):
            act(policy, PROMPT)
        assert len(served.prompts) == 2


def test_weights_that_an_earlier_run_left_are_warned_of(caplog, tmp_path):
    served = [Served(), Served()]
    with serving_all(*served) as urls:
        with policy_of(urls[0]) as earlier:
            asyncio.run(earlier.update_weights(12, tmp_path))
        assert not caplog.records
        with policy_of(*urls) as policy:
            [record] = caplog.records
            assert f"{urls[0]} has weights" in record.message and "12-" in record.message
            act(policy, *([*PROMPT, i] for i in range(4)))
            asyncio.run(policy.update_weights(1, tmp_path))
            act(policy, *([*PROMPT, i] for i in range(4)))
        assert len(caplog.records) == 1


def test_a_follower_leaves_a_server_alone_that_is_being_loaded(tmp_path):
    served = Served()
    with serving(served) as url, policy_of(url) as leader, policy_of(url, attempts=2) as other:
        asyncio.run(leader.update_weights(4, tmp_path))
        asyncio.run(other.follow(4))
        loads, asked = served.events.count("pause"), len(served.prompts)
        for name in (served.weights, "default"):
            served.paused, served.weights = True, name
            other.servers[0].heard = 0.0  # so that it asks what it has
            with pytest.raises(PolicyUnavailable, match="is paused"):
                act(other, PROMPT)
        with pytest.raises(PolicyUnavailable, match="is paused"):
            asyncio.run(other.follow(5))
    assert served.events.count("pause") == loads and len(served.prompts) == asked


def test_a_server_that_stays_paused_loads_again_before_a_turn(tmp_path):
    served = Served(broken=["resume"])
    with serving(served) as url, policy_of(url) as policy:
        asyncio.run(policy.update_weights(3, tmp_path))
        assert act(policy, PROMPT)[0].weight_version == 3
    assert [event for event in served.events if event in ("resume", "turn")] == ["resume", "turn"]
    assert served.events.count("pause") == 2


def test_of_policies_that_share_servers_one_updates_and_the_others_follow(tmp_path):
    served = [Served(), Served()]
    with serving_all(*served) as urls, policy_of(*urls) as leader, policy_of(*urls) as other:
        asyncio.run(leader.update_weights(4, tmp_path))
        asyncio.run(other.follow(4))
        assert other.weight_version == 4
        turns = act(other, *([*PROMPT, i] for i in range(4)))
        assert {turn.weight_version for turn in turns} == {4} and all(s.prompts for s in served)
        assert [each.events.count("pause") for each in served] == [1, 1]
        with pytest.raises(RuntimeError, match=rf"weights of version 5: {urls[0]}: 4-.*{tmp_path}"):
            asyncio.run(other.follow(5))
        assert other.weight_version == 4
        served[1].weights = "4-of another run"
        with pytest.raises(RuntimeError, match="one set of weights"):
            asyncio.run(other.follow(4))


def test_a_follower_updates_a_server_that_was_started_anew_and_no_other(tmp_path):
    served = [Served(), Served()]
    with serving_all(*served) as urls, policy_of(*urls) as leader, policy_of(*urls) as other:
        asyncio.run(leader.update_weights(4, tmp_path))
        served[1].weights = "default"
        asyncio.run(other.follow(4))
        other.servers[0].in_flight = 9  # so that it asks the second one
        assert act(other, PROMPT)[0].weight_version == 4
        assert served[1].events.count(f"collective_rpc load_checkpoint {tmp_path}") == 2
        asyncio.run(leader.update_weights(5, tmp_path))
        for server in other.servers:
            server.heard = 0.0  # so that it asks what they have
        with pytest.raises(PolicyUnavailable, match="other weights: 5-"):
            act(other, PROMPT)
        assert all(each.weights.startswith("5-") for each in served)
        # One that led, and then follows, loads no more either.
        asyncio.run(leader.follow(5))
        for server, each in zip(leader.servers, served, strict=True):
            server.heard, each.weights = 0.0, "6-"
        with pytest.raises(PolicyUnavailable, match="other weights: 6-"):
            act(leader, PROMPT)


def test_following_servers_that_are_down_says_so():
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving(Served()))
        with policy_of(url) as policy:
            stack.close()
            with pytest.raises(PolicyUnavailable, match="no server"):
                asyncio.run(policy.follow(1))


def test_servers_that_take_no_weights_are_named():
    missing = pytest.raises(RuntimeError, match="VLLM_SERVER_DEV_MODE")
    with serving(Served(developer=False)) as url, policy_of(url) as policy:
        assert act(policy, PROMPT)
        with missing:
            asyncio.run(policy.update_weights(1))


def test_closing_removes_what_was_written_though_it_is_interrupted(
    checkpoint, weights, tmp_path, monkeypatch
):
    def interrupted():
        raise KeyboardInterrupt

    with serving(Served(root=checkpoint)) as url, contextlib.ExitStack() as stack:
        policy = policy_of(url, weights_folder=tmp_path)
        stack.callback(policy.loop.close)
        asyncio.run(policy.update_weights(1, weights))
        assert list(tmp_path.iterdir())
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(policy.loop, "close", interrupted)
            policy.close()
        assert not list(tmp_path.iterdir())
