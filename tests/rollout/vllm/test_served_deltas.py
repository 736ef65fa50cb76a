"""New weights on scripted servers as deltas: restarts, missed versions and refusals."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import torch
from helpers.server_policies import PROMPT, act, policy_of, serving_all
from helpers.vllm_servers import Served, serving, unused_port
from safetensors.torch import load_file, save_file

from agents.models.tiny import make_checkpoint, make_model
from retool_env.rollout import PolicyUnavailable
from retool_env.rollout.weight_deltas import MergedWeights


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("retool_env.servers.hosts._FIRST_ASIDE", 0.02)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", 0))


@pytest.fixture(scope="module")
def versions():
    """The weights of several versions, each with another value of a few elements."""
    weights = {n: t.bfloat16() for n, t in make_model(7)[0].state_dict().items()}
    versions = [weights]
    for number in range(1, 6):
        weights = {name: tensor.clone() for name, tensor in weights.items()}
        for tensor in weights.values():
            tensor.view(-1)[number] += 1
        versions.append(weights)
    return versions


class Reader(Served):
    """A server that reads weights as the worker does, and keeps them."""

    def __init__(self, checkpoint, **settings):
        super().__init__(root=checkpoint, load=self.read, **settings)
        self.tensors = {}
        self.loaded = 0

    def read(self, folder):
        if folder == self.root:
            return
        merged = MergedWeights(folder)
        tensors = {name: tensor.clone() for name, tensor in merged}
        merged.check()
        self.tensors = tensors
        self.loaded += 1

    def has(self, version):
        shared = version.keys() - {"lm_head.weight"}  # it has the tensor of the embedding
        return self.tensors.keys() == shared and all(
            torch.equal(self.tensors[name], version[name]) for name in shared
        )


def options(folder):
    return {"weights": "delta", "weights_folder": folder}


def sizes(folder):
    """The bytes in the folder of each version, the newest last."""
    folders = sorted(folder.iterdir(), key=lambda each: each.name)
    return [sum(file.stat().st_size for file in each.glob("*.safetensors")) for each in folders]


def test_after_the_first_version_only_changes_are_sent(checkpoint, versions, tmp_path):
    servers = [Reader(checkpoint), Reader(checkpoint)]
    with serving_all(*servers) as urls, policy_of(*urls, **options(tmp_path)) as policy:
        for number, weights in enumerate(versions[:4], 1):
            asyncio.run(policy.update_weights(number, weights))
            assert all(server.has(weights) for server in servers)
            assert act(policy, PROMPT)[0].weight_version == number
        whole, *deltas = sizes(tmp_path)
        assert len(deltas) == 3 and max(deltas) < whole / 20
        asyncio.run(policy.update_weights(5))  # what they were started with
        assert not list(tmp_path.iterdir())
        asyncio.run(policy.update_weights(6, versions[5]))
        assert sizes(tmp_path)[-1] == whole and all(s.has(versions[5]) for s in servers)


def test_a_server_that_restarts_and_one_that_joins_late_get_the_whole_weights(
    checkpoint, versions, tmp_path, monkeypatch
):
    monkeypatch.setattr("retool_env.rollout.vllm.served_weights._RESTART_SECONDS", 0.05)
    port = unused_port()
    late, first, again = Reader(checkpoint), Reader(checkpoint), Reader(checkpoint)
    with (
        serving(late) as url,
        policy_of(url, f"http://127.0.0.1:{port}", **options(tmp_path)) as policy,
    ):
        late.broken += ["pause"] * 99  # it misses versions
        with serving(first, port):
            policy.servers[1].aside_until = 0
            for number in (1, 2, 3):
                asyncio.run(policy.update_weights(number, versions[number]))
            assert first.has(versions[3]) and not late.loaded
        time.sleep(0.1)
        with serving(again, port):
            late.broken.clear()
            for server in policy.servers:
                server.aside_until = server.heard = 0.0
            turns = act(policy, *([*PROMPT, each] for each in range(8)))
            assert {turn.weight_version for turn in turns} == {3}
            assert late.has(versions[3]) and again.has(versions[3])
            assert late.loaded == again.loaded == 1
            assert len(sizes(tmp_path)) == 3 and max(sizes(tmp_path)[1:]) < sizes(tmp_path)[0]


def test_a_follower_brings_a_restarted_server_up_to_date(checkpoint, versions, tmp_path):
    server = Reader(checkpoint)
    with (
        serving(server) as url,
        policy_of(url, **options(tmp_path)) as leader,
        policy_of(url, **options(tmp_path)) as other,
    ):
        for number in (1, 2):
            asyncio.run(leader.update_weights(number, versions[number]))
        asyncio.run(other.follow(2))
        server.weights, server.tensors, other.servers[0].heard = "default", {}, 0.0
        assert act(other, PROMPT)[0].weight_version == 2 and server.has(versions[2])


def test_a_server_with_another_checksum_gets_no_turn_before_whole_weights(
    checkpoint, versions, tmp_path, caplog
):
    """Its machine has other bytes in a file than the trainer wrote."""
    good, bad = Reader(checkpoint), Reader(checkpoint)

    def read_damaged(folder):
        older = min(Path(folder).parent.iterdir())
        [file] = older.glob("*.safetensors")
        right = file.read_bytes()
        name = "model.layers.0.mlp.up_proj.weight"
        tensors = load_file(file)
        tensors[name] = tensors[name].flip(0)
        save_file(tensors, file)
        try:
            bad.read(folder)
        finally:
            file.write_bytes(right)

    def read_in_turn(server, read):
        def load(folder):
            while not good.has(versions[3]) and server is bad:
                time.sleep(0.01)
            read(folder)

        return load

    with serving_all(good, bad) as urls, policy_of(*urls, **options(tmp_path)) as policy:
        for number in (1, 2):
            asyncio.run(policy.update_weights(number, versions[number]))
        bad.load = read_in_turn(bad, read_damaged)
        asyncio.run(policy.update_weights(3, versions[3]))
        assert f"{urls[1]} has not loaded the weights of version 3" in caplog.text
        assert bad.has(versions[2]) and bad.paused and good.has(versions[3])
        assert {turn.weight_version for turn in act(policy, PROMPT, PROMPT)} == {3}
        assert not bad.bodies
        bad.load = bad.read
        whole = sizes(tmp_path)[0]
        for server in policy.servers:
            server.aside_until = 0.0
        asyncio.run(policy.update_weights(4, versions[4]))
        assert sizes(tmp_path) == [whole]
        assert good.has(versions[4]) and bad.has(versions[4]) and not bad.paused
        asyncio.run(policy.update_weights(5, versions[5]))
        assert sizes(tmp_path)[1] < whole / 20 and bad.has(versions[5])


def test_an_update_that_no_server_takes_ends_and_the_next_one_is_whole(
    checkpoint, versions, tmp_path
):
    server = Reader(checkpoint)
    with serving(server) as url, policy_of(url, **options(tmp_path)) as policy:
        asyncio.run(policy.update_weights(1, versions[1]))
        server.broken = ["load_checkpoint"] * 2
        with pytest.raises(PolicyUnavailable, match="did not load"):
            asyncio.run(policy.update_weights(2, versions[2]))
        asyncio.run(policy.update_weights(3, versions[3]))
        assert server.has(versions[3]) and len(sizes(tmp_path)) == 1
