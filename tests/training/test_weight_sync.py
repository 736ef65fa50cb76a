"""The weights of a step on their way to the policies of one process and of two."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from agents.models.tiny import make_checkpoint, make_model
from retool_env.rollout.policy import Policy
from retool_env.rollout.weight_files import MARK, WeightFiles
from retool_env.rollout.weights import Parts
from retool_env.servers.background import BackgroundLoop
from retool_env.training import processes, weight_sync
from retool_env.training.weight_sync import WeightSync


class Processes:
    """Processes of a run, as threads."""

    def __init__(self, number):
        self.number = number
        self._values, self._barrier = [None] * number, threading.Barrier(number)
        self._thread = threading.local()

    def accelerator(self, rank):
        self._thread.rank = rank
        return SimpleNamespace(
            num_processes=self.number, process_index=rank, is_main_process=rank == 0
        )

    def everywhere(self, value):
        self._values[self._thread.rank] = value
        self._barrier.wait(20)
        values = [*self._values]
        self._barrier.wait(20)
        return values


class Shared(Policy):
    """A policy on servers that several processes share; it notes its calls."""

    shares_servers, weights_dtype = True, "bfloat16"

    def __init__(self, files=None, model=None):
        self.files, self.calls, self.root = files, [], model
        self.writes_parts = files is not None

    async def act(self, token_ids, stop, budget, seed):
        raise NotImplementedError

    def write_part(self, parts, weights, rank):
        self.files.write_part(parts, weights, self.root, rank)
        self.calls.append(f"part {rank} of {parts.ranks}")

    async def update_weights(self, version, weights=None):
        if isinstance(weights, Parts):
            assert weights.name.startswith(f"{version}-")
            self.folder = await self.files.write(weights.name, weights, self.root)
        else:
            self.got = dict(weights)
        self.calls.append(f"update {version}")

    async def hold(self, cut=True):
        self.calls.append("hold" if cut else "shut")

    async def follow(self, version):
        self.calls.append(f"follow {version}")


@pytest.fixture
def loop():
    loop = BackgroundLoop("test")
    yield loop
    loop.close()


@pytest.fixture
def sync_all(monkeypatch, loop):
    def sync_all(policies, model, number):
        made = Processes(len(policies))
        for module in (processes, weight_sync):
            monkeypatch.setattr(module, "everywhere", made.everywhere)
        syncs = [WeightSync(policy, loop) for policy in policies]

        def sync(rank):
            accelerator = made.accelerator(rank)
            step = SimpleNamespace(number=number, model=model, accelerator=accelerator)
            syncs[rank].sync(step)
            syncs[rank].sync(step)  # the weights of a step are given once

        with ThreadPoolExecutor(len(policies)) as threads:
            return [threads.submit(sync, rank) for rank in range(len(policies))]

    return sync_all


def test_every_process_writes_its_part_and_the_first_lets_the_servers_load(tmp_path, sync_all):
    root = str(make_checkpoint(tmp_path / "model", 0))
    model = make_model(7)[0]
    policies = [Shared(WeightFiles(tmp_path / "shared"), root) for _ in range(2)]
    for done in sync_all(policies, model, 4):
        done.result()
    assert policies[0].calls == ["part 0 of 2", "shut", "hold", "update 4"]
    assert policies[1].calls == ["part 1 of 2", "shut", "hold", "follow 4"]
    [folder] = (tmp_path / "shared").iterdir()
    assert str(folder) == policies[0].folder and (folder / MARK).exists()
    parts = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    assert len(parts) == 2 and not parts[0].keys() & parts[1].keys()
    for name, tensor in (parts[0] | parts[1]).items():
        assert torch.equal(tensor, model.state_dict()[name].to(torch.bfloat16))


def test_a_process_that_can_not_write_ends_the_update_on_all(tmp_path, sync_all):
    root = str(make_checkpoint(tmp_path / "model", 0))
    (tmp_path / "file").touch()
    policies = [Shared(WeightFiles(tmp_path / "shared"), root) for _ in range(2)]
    policies[1].files = WeightFiles(tmp_path / "file")  # not a folder
    first, second = sync_all(policies, make_model(7)[0], 4)
    assert isinstance(second.exception(), OSError)
    assert "process 1 failed" in str(first.exception())
    assert policies[0].calls == ["part 0 of 2"] and policies[1].calls == []


@pytest.mark.parametrize("number", [1, 2])
def test_without_parts_one_process_gives_all_weights(sync_all, number):
    model = make_model(7)[0]
    policies = [Shared() for _ in range(number)]
    for done in sync_all(policies, model, 3):
        done.result()
    both = [["shut", "hold", last] for last in ("update 3", "follow 3")]
    expected = [["update 3"]] if number == 1 else both
    assert [policy.calls for policy in policies] == expected
    assert policies[0].got.keys() == model.state_dict().keys()
    assert {tensor.dtype for tensor in policies[0].got.values()} == {torch.bfloat16}


def test_a_policy_of_adapters_gets_the_adapter(sync_all):
    model = get_peft_model(make_model(7)[0], LoraConfig(r=4, target_modules=["q_proj"]))

    class Adapted(Shared):
        takes_adapter = True

        async def update_weights(self, version, weights=None):
            self.got = weights.config["r"], dict(weights.tensors)

    sync_all([policy := Adapted()], model, 3)[0].result()
    rank, tensors = policy.got
    assert rank == 4 and tensors and all("lora_" in name for name in tensors)
