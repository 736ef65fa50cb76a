"""LoRA adapters on scripted servers: updates, turns under way, followers, restarts, refusals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path

import pytest
import torch
from helpers.server_policies import PROMPT, STOP, act, policy_of, serving_all
from helpers.vllm_servers import Served, serving, unused_port
from safetensors.torch import load_file

from retool_env.errors import SettingsError
from retool_env.rollout import PolicyUnavailable
from retool_env.rollout.weights import Adapter


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("retool_env.servers.hosts._FIRST_ASIDE", 0.02)


ADAPTER = Adapter(
    {"r": 4}, {"q.lora_A.weight": torch.ones(4, 2), "q.lora_B.weight": torch.ones(3, 4)}
)


@pytest.fixture
def adapters(tmp_path):
    return {"weights": "adapter", "weights_folder": tmp_path}


def models_of(served: Served) -> list[str]:
    return [body["model"].partition("-")[0] for body in served.bodies]


def test_each_turn_names_the_adapter_of_its_version_and_updates_wait_for_no_turn(adapters):
    served = [Served(), Served()]
    with serving_all(*served) as urls, policy_of(*urls, **adapters) as policy:

        async def both():
            await policy.act(PROMPT, STOP, 24, 1)
            for each in served:
                each.bodies.clear()
                each.held = True
            early = [asyncio.create_task(policy.act([*PROMPT, i], STOP, 24, 1)) for i in range(4)]
            while sum(each.running for each in served) < 4:
                await asyncio.sleep(0.01)
            await policy.update_weights(5, ADAPTER)
            assert sum(each.running for each in served) == 4
            for each in served:
                each.held = False
            late = [asyncio.create_task(policy.act([*PROMPT, i], STOP, 24, 1)) for i in range(4)]
            return await asyncio.gather(*early), await asyncio.gather(*late)

        early, late = asyncio.run(both())
        assert [turn.weight_version for turn in early] == [0] * 4
        assert [turn.weight_version for turn in late] == [5] * 4
        assert policy.takes_adapter and not policy.writes_parts
    for each in served:
        assert sorted(models_of(each)) == ["5"] * 2 + ["m"] * 2
        assert "pause" not in each.events


def test_an_adapter_is_written_as_peft_saves_it_and_goes_when_no_turn_needs_it(adapters, tmp_path):
    got = []

    def load(folder):
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        got.append((config, load_file(Path(folder) / "adapter_model.safetensors")))

    served = Served(load=load)
    with serving(served) as url, policy_of(url, **adapters) as policy:

        async def main():
            await policy.update_weights(1, ADAPTER)
            served.held = True
            turn = asyncio.create_task(policy.act(PROMPT, STOP, 24, 1))
            while not served.running:
                await asyncio.sleep(0.01)
            for version in (2, 3, 4):
                await policy.update_weights(version, ADAPTER)
            held = [name.partition("-")[0] for name in served.adapters]
            served.held = False
            assert (await turn).weight_version == 1
            served.broken = ["unload_lora_adapter"]
            await policy.update_weights(5, ADAPTER)  # one stays, and goes with the next update
            await policy.update_weights(6, ADAPTER)
            return held

        # The first serves a turn, and the newest two stay for followers.
        assert asyncio.run(main()) == ["1", "3", "4"]
        assert [name.partition("-")[0] for name in served.adapters] == ["5", "6"]
        assert sorted(map(str, tmp_path.iterdir())) == sorted(served.adapters.values())
    assert not list(tmp_path.iterdir())
    for config, tensors in got:
        assert config == {"r": 4} and tensors.keys() == ADAPTER.tensors.keys()
        assert all(torch.equal(each, ADAPTER.tensors[name]) for name, each in tensors.items())


def test_a_server_that_was_started_anew_gets_the_adapter_before_a_turn(adapters, monkeypatch):
    port = unused_port()
    with serving(Served(), port) as url:
        policy = policy_of(url, **adapters)
        asyncio.run(policy.update_weights(3, ADAPTER))
    with serving(second := Served(), port), policy:
        assert act(policy, PROMPT)[0].weight_version == 3
        assert models_of(second) == ["3"] and len(second.adapters) == 1


def test_an_adapter_that_somebody_unloaded_is_loaded_again(adapters):
    with serving(served := Served()) as url, policy_of(url, **adapters) as policy:
        asyncio.run(policy.update_weights(3, ADAPTER))
        served.adapters.clear()
        assert act(policy, PROMPT)[0].weight_version == 3
        assert models_of(served) == ["3"] and policy.retried == 0


def test_policies_that_share_servers_follow_to_the_newest_adapter_of_a_version(adapters):
    served = [Served(), Served()]
    with (
        serving_all(*served) as urls,
        policy_of(*urls, **adapters) as earlier,
        policy_of(*urls, **adapters) as leader,
        policy_of(*urls, **adapters) as other,
    ):
        asyncio.run(earlier.update_weights(4, ADAPTER))  # of a run that was resumed
        asyncio.run(leader.update_weights(4, ADAPTER))
        asyncio.run(other.follow(4))
        act(other, *([*PROMPT, i] for i in range(4)))
        newest = list(served[0].adapters)[-1]
        assert newest == list(served[1].adapters)[-1]
        assert {body["model"] for each in served for body in each.bodies} == {newest}
        with pytest.raises(RuntimeError, match="weights of version 5"):
            asyncio.run(other.follow(5))


def test_one_server_without_the_adapter_gets_no_turn_and_none_at_all_is_an_error(adapters, caplog):
    served = [Served(), Served(broken=["load_lora_adapter"] * 2)]
    with serving_all(*served) as urls, policy_of(*urls, **adapters) as policy:
        asyncio.run(policy.update_weights(1, ADAPTER))
        assert f"{urls[1]} has not loaded the weights of version 1" in caplog.records[-1].message
        assert "--enable-lora" in caplog.records[-1].message
        act(policy, PROMPT)
        assert models_of(served[0]) == ["1"] and not served[1].bodies
        for each in served:
            each.broken = ["load_lora_adapter"] * 9
        for server in policy.servers:
            server.aside_until = 0
        with pytest.raises(PolicyUnavailable, match="was not loaded"):
            asyncio.run(policy.update_weights(2, ADAPTER))


def test_a_folder_that_a_server_sees_late_is_waited_for(adapters, monkeypatch, caplog):
    monkeypatch.setattr("retool_env.rollout.vllm.adapters._LOOK_SECONDS", 0.02)
    served = [Served(unseen=3), Served()]
    with serving_all(*served) as urls, policy_of(*urls, **adapters) as policy:
        asyncio.run(policy.update_weights(1, ADAPTER))
        assert all(each.adapters for each in served) and not caplog.records
        monkeypatch.setattr("retool_env.rollout.vllm.adapters.SEEN_SECONDS", 0.1)
        served[0].unseen = 10**6
        asyncio.run(policy.update_weights(2, ADAPTER))
        assert f"{urls[0]} has not loaded the weights of version 2" in caplog.records[-1].message
        assert "does its machine see this folder" in caplog.records[-1].message
        served[1].unseen = 10**6
        for server in policy.servers:
            server.aside_until = 0
        with pytest.raises(PolicyUnavailable, match="was not loaded"):
            asyncio.run(policy.update_weights(3, ADAPTER))


def test_an_update_during_the_question_of_a_turn_is_not_taken_for_loaded(adapters):
    served = Served()
    with serving(served) as url, policy_of(url, **adapters) as policy:
        asyncio.run(policy.update_weights(1, ADAPTER))
        weights, [server] = policy._weights, policy.servers
        ask = weights._adapters

        async def slowly(server):
            held = await ask(server)
            if weights.version == 1:
                weights._set(2, "2-" + "0" * 16, str(adapters["weights_folder"]))
            return held

        weights._adapters = slowly
        server.heard = 0.0
        policy.loop.run_blocking(weights.prepare(server))
        assert server.weights == weights._name and "2-" + "0" * 16 in served.adapters
        assert weights._serving[server] == "2-" + "0" * 16


def test_a_refused_adapter_whole_weights_and_a_missing_folder_are_errors(adapters):
    with serving(Served(refuse="rank 64 is greater than 16")) as url:
        with policy_of(url, **adapters) as policy:
            with pytest.raises(ValueError, match=r"--max-lora-rank.*rank 64 is greater"):
                asyncio.run(policy.update_weights(1, ADAPTER))
            with pytest.raises(ValueError, match="take adapters, not whole weights"):
                asyncio.run(policy.update_weights(1, {"a": torch.ones(1)}))
        with policy_of(url) as policy, pytest.raises(ValueError, match="set weights=adapter"):
            asyncio.run(policy.update_weights(1, ADAPTER))
        with pytest.raises(SettingsError, match="set weights_folder"):
            policy_of(url, weights="adapter")
        with pytest.raises(SettingsError, match="must be files, delta, adapter, nccl or gloo"):
            policy_of(url, weights="carrier pigeon")


def test_without_weights_the_model_of_the_start_serves(adapters):
    with serving(served := Served()) as url, policy_of(url, **adapters) as policy:
        asyncio.run(policy.update_weights(1, ADAPTER))
        asyncio.run(policy.update_weights(2))
        policy.servers[0].heard = 0.0  # so that it is asked whether it has restarted
        assert act(policy, PROMPT)[0].weight_version == 2 and models_of(served) == ["m"]


def test_a_saved_adapter_is_given_by_its_folder(adapters, tmp_path):
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving(served := Served()))
        policy = stack.enter_context(policy_of(url, **adapters))
        asyncio.run(policy.update_weights(1, tmp_path / "adapter"))
        assert list(served.adapters.values()) == [str(tmp_path / "adapter")]
        (tmp_path / "adapter").mkdir()
        for version in (2, 3, 4):
            asyncio.run(policy.update_weights(version, tmp_path / "adapter"))
        assert [name.partition("-")[0] for name in served.adapters] == ["3", "4"]
    assert (tmp_path / "adapter").is_dir()  # it is not the policy's own


def test_two_processes_may_load_one_adapter_at_the_same_time(adapters):
    """The server refuses the second load of an adapter that it holds."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving(served := Served()))
        leader, other = (stack.enter_context(policy_of(url, **adapters)) for _ in range(2))
        asyncio.run(leader.update_weights(1, ADAPTER))
        asyncio.run(other.follow(1))
        served.adapters.clear()  # the server was started anew
        served.load = lambda _: time.sleep(0.2)
        both = leader, other
        for policy in both:
            policy.servers[0].heard = 0.0

        async def act_both():
            return await asyncio.gather(*(each.act(PROMPT, STOP, 24, 1) for each in both))

        assert [turn.weight_version for turn in asyncio.run(act_both())] == [1, 1]
        assert sum("load_lora" in event for event in served.events) == 3
        assert leader.retried == other.retried == 0


@pytest.mark.parametrize("weights", ["7-0123456789abcdef /other/run", "theirs"])
def test_weights_of_another_run_below_an_adapter_are_an_error(adapters, weights):
    with (
        serving(Served(weights=weights)) as url,
        policy_of(url, **adapters) as policy,
        pytest.raises(RuntimeError, match=r"another run has loaded.*restart the server"),
    ):
        asyncio.run(policy.update_weights(1, ADAPTER))


def test_weights_of_the_start_that_a_run_has_set_again_take_an_adapter(adapters):
    served = Served(weights="7-0123456789abcdef ")
    with serving(served) as url, policy_of(url, **adapters) as policy:
        asyncio.run(policy.update_weights(1, ADAPTER))
        assert len(served.adapters) == 1


def test_a_server_that_another_client_paused_gets_no_adapter(adapters):
    served = [Served(), Served(paused=True)]
    with serving_all(*served) as urls, policy_of(*urls, **adapters) as policy:
        asyncio.run(policy.update_weights(1, ADAPTER))
        act(policy, *([*PROMPT, i] for i in range(4)))
    assert len(served[0].bodies) == 4 and not served[1].bodies and not served[1].adapters


def test_a_follower_takes_no_adapter_of_another_run(adapters, tmp_path):
    other_run = {**adapters, "weights_folder": tmp_path / "other"}
    with (
        serving(served := Served()) as url,
        policy_of(url, **adapters) as leader,
        policy_of(url, **other_run) as theirs,
        policy_of(url, **adapters) as follower,
    ):
        asyncio.run(leader.update_weights(5, ADAPTER))
        asyncio.run(theirs.update_weights(5, ADAPTER))
        asyncio.run(follower.follow(5))
        assert act(follower, PROMPT)[0].weight_version == 5
        assert served.bodies[0]["model"] in {path.name for path in tmp_path.iterdir()}
