"""The policy on servers, against a real `vllm serve` and a real tiny model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import torch
from helpers.vllm_models import (
    ENGINE,
    PROMPTS,
    assert_own_logprobs,
    greedy,
    logprobs_of,
    needs_vllm,
    turns_of,
    turns_under_updates,
)
from helpers.vllm_servers import Served, serving, serving_apart, unused_port
from peft import LoraConfig, get_peft_model

from agents.models.tiny import make_checkpoint, make_model, make_tokenizer
from retool_env.episode import decode
from retool_env.problems import Problem
from retool_env.rollout import PolicyUnavailable, RolloutEngine
from retool_env.rollout.vllm.server import VLLMServerPolicy
from retool_env.rules import Rules
from retool_env.training.trained_weights import trained_adapter, trained_weights
from retool_env.transcript import StopReason, Transcript, check_transcript


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("retool_env.servers.hosts._FIRST_ASIDE", 0.02)


OWN_ARGUMENTS = ["--worker-extension-cls", "retool_env.rollout.vllm.worker.WeightLoader"]
"""The options that `trl vllm-serve` adds to `vllm serve`; the real server is started with them."""
TRL_ARGUMENTS = [
    "--enable-scale-out",
    *("--weight-transfer-config", '{"backend": "nccl"}'),
    *("--logprobs-mode", "processed_logprobs"),
    *("--max-logprobs", "-1"),
]
"""What `trl vllm-serve` adds to `vllm serve`; the real server is started so."""
MORE_ARGUMENTS = [
    *("--weight-transfer-config", '{"backend": "gloo"}'),  # the last one counts
    *("--enable-lora", "--max-loras", "2", "--max-lora-rank", "8"),
]
"""The options for the ways of new weights beside files."""


def test_trls_own_server_is_the_real_one_here(monkeypatch):
    serve = pytest.importorskip("trl.scripts.vllm_serve")
    monkeypatch.setattr(serve, "is_vllm_available", lambda **_: True)
    ran = []
    monkeypatch.setattr(os, "execve", lambda *arguments: ran.append(arguments))
    with pytest.warns(FutureWarning, match="only runs vLLM's own server"):
        serve.main(serve.ScriptArguments(model="m"), OWN_ARGUMENTS)
    [(_, command, environment)] = ran
    assert command[1:5] == ["-m", "vllm.entrypoints.cli.main", "serve", "m"]
    added = [*TRL_ARGUMENTS, *OWN_ARGUMENTS]
    assert command[-len(added) :] == added and environment["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.fixture(scope="module")
def model():
    return make_model(0)[0].eval()


@pytest.fixture(scope="module")
def weights():
    return make_model(7)[0].state_dict()


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """A starting `vllm serve`, a real one, and its URL."""
    folder = make_checkpoint(tmp_path_factory.mktemp("served") / "tiny", 0)
    port, log = unused_port(), folder / "log"
    # Not `vllm serve`, since the build for the CPU has another name than that command looks for.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--port", str(port), "--enforce-eager", "--api-key", "secret"]
    command += [*TRL_ARGUMENTS, *MORE_ARGUMENTS, *OWN_ARGUMENTS]
    for name, value in ENGINE.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "VLLM_SERVER_DEV_MODE": "1",
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            },
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/health")
                break
            time.sleep(0.2)
        else:
            raise AssertionError(f"vllm serve did not start:\n{log.read_text()[-3000:]}")
        yield process, url
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def real(process):
    """The URL of a real `vllm serve`."""
    return process[1]


def metric(url: str, name: str) -> float:
    """A number from a real server's metrics."""
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    [line] = [line for line in text.splitlines() if line.startswith(f"vllm:{name}{{")]
    return float(line.split()[-1])


@pytest.fixture
def served(real):
    """Make policies on the real server."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(
            VLLMServerPolicy([real], make_tokenizer(), token="secret", **settings)
        )


@pytest.fixture
def prompts():
    return [make_tokenizer().encode(text) for text in PROMPTS]


@needs_vllm
def test_a_real_servers_greedy_ids_are_those_of_transformers(served, model, prompts):
    policy = served(temperature=0)
    assert policy.context_length == 512
    turns = turns_of(policy, prompts)
    assert [turn.token_ids for turn in turns] == greedy(model, policy.tokenizer, prompts)
    tag = decode(policy.tokenizer, turns[0].token_ids)[7:10]
    [turn] = turns_of(policy, prompts[:1], stop=[tag])
    assert turn.stop_reason == "tag" and tag in decode(policy.tokenizer, turn.token_ids)
    assert turn.token_ids == turns[0].token_ids[: len(turn.token_ids)] != turns[0].token_ids


@needs_vllm
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.5)])
def test_a_real_servers_logprobs_are_those_of_the_distribution_sampled_from(
    served, model, prompts, temperature, top_p
):
    policy = served(temperature=temperature, top_p=top_p)
    seeds = [2**64 - 1 - seed for seed in range(len(prompts))]
    turns = turns_of(policy, prompts, seeds=seeds)
    for prompt, turn in zip(prompts, turns, strict=True):
        expected = logprobs_of(model, prompt, turn, temperature, top_p)
        torch.testing.assert_close(torch.tensor(turn.logprobs), expected, atol=2e-3, rtol=0)
    again = turns_of(policy, prompts, seeds=seeds)
    assert [turn.token_ids for turn in again] == [turn.token_ids for turn in turns]


@needs_vllm
def test_a_real_server_hears_of_a_cancelled_turn(served, prompts, real):
    # More than the server can do while it is asked whether it has begun, on a slow machine too.
    policy, budget, count = served(temperature=0), 400, 400
    turns = turns_of(policy, prompts, budget=budget)
    endless = next(
        prompt for prompt, turn in zip(prompts, turns, strict=True) if len(turn.token_ids) == budget
    )

    async def running() -> float:
        return await asyncio.to_thread(metric, real, "num_requests_running")

    async def cancel():
        tasks = [
            asyncio.create_task(policy.act(endless, (), budget, seed)) for seed in range(count)
        ]
        async with asyncio.timeout(60):
            while not await running():
                await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(60):
            while await running():
                await asyncio.sleep(0.05)

    before = metric(real, "generation_tokens_total")
    asyncio.run(cancel())
    assert metric(real, "generation_tokens_total") - before < count * budget / 2
    assert policy.servers[0].in_flight == 0


@needs_vllm
def test_a_real_server_takes_new_weights(served, model, prompts, tmp_path):
    policy = served(temperature=0)
    other = make_model(7)[0].eval()
    folder = make_checkpoint(tmp_path / "new", 7)
    asyncio.run(policy.update_weights(4, folder))
    turns = turns_of(policy, prompts)
    assert [turn.token_ids for turn in turns] == greedy(other, policy.tokenizer, prompts)
    assert {turn.weight_version for turn in turns} == {4}
    with pytest.raises(PolicyUnavailable, match="did not load"):
        asyncio.run(policy.update_weights(5, tmp_path / "nothing"))
    asyncio.run(policy.update_weights(6))  # what it was started with
    turns = turns_of(policy, prompts)
    assert [turn.token_ids for turn in turns] == greedy(model, policy.tokenizer, prompts)


@needs_vllm
def test_tensors_reach_a_real_server_and_what_it_has_read_is_forgotten(
    served, real, model, prompts, weights, tmp_path
):
    policy = served(temperature=0, weights_folder=tmp_path, weights_dtype="float32")
    other = served(temperature=0)
    long = policy.tokenizer.encode("Compute 12 + 34. " * 20)

    def reused() -> float:
        before = metric(real, "prefix_cache_hits_total")
        turns_of(policy, [long])
        return metric(real, "prefix_cache_hits_total") - before

    reused()
    assert reused() >= len(long) - 128
    asyncio.run(policy.update_weights(7, weights))
    asyncio.run(other.follow(7))
    assert reused() == 0
    new = greedy(make_model(7)[0].eval(), policy.tokenizer, prompts)
    for each in (policy, other):
        turns = turns_of(each, prompts)
        assert [turn.token_ids for turn in turns] == new
        assert {turn.weight_version for turn in turns} == {7}
    asyncio.run(policy.update_weights(8))
    turns = turns_of(policy, prompts)
    assert [turn.token_ids for turn in turns] == greedy(model, policy.tokenizer, prompts)


@needs_vllm
@pytest.mark.parametrize("way", ["files", "delta", "gloo"])
def test_a_real_server_cuts_turns_which_go_on_under_the_new_weights(
    served, real, model, prompts, weights, tmp_path, way
):
    prompts = 4 * prompts  # so many that a fast machine samples them for some seconds
    folder = None if way == "gloo" else tmp_path
    options = {"weights": way, "weights_folder": folder, "weights_dtype": "float32"}
    policy = served(temperature=0, **options)
    asyncio.run(policy.update_weights(1))  # what it was started with
    turns = turns_under_updates(policy, prompts, [(model.state_dict(),)], 400)
    expected = greedy(model, policy.tokenizer, prompts, budget=400)
    assert [turn.token_ids for turn in turns] == expected
    assert any(len(turn.weight_runs) > 2 for turn in turns)
    policy = served(**options)
    policy.temperature = 1.0
    other = make_model(7)[0].eval()
    updates = [(model.state_dict(),), (weights,)]
    turns = turns_under_updates(policy, prompts, updates, 400)
    assert any(len(turn.weight_runs) > 2 for turn in turns)
    assert_own_logprobs(lambda version: (model, other)[version % 2], prompts, turns)
    assert policy.retried == 0 and not metric(real, "num_requests_waiting")


@needs_vllm
def test_turns_of_a_policy_that_follows_go_on_under_the_new_weights(
    served, model, prompts, weights, tmp_path
):
    options = {"weights_folder": tmp_path, "weights_dtype": "float32"}
    leader, other = served(**options), served(**options)
    trained = make_model(7)[0].eval()

    async def main():
        acts = [
            asyncio.create_task(policy.act(ids, (), 400, i))
            for i, ids in enumerate(prompts)
            for policy in (other, leader)
        ]
        pairs = (2, weights), (3, model.state_dict()), (4, weights)
        for version, state in pairs:
            await asyncio.sleep(0.2)
            await asyncio.gather(other.hold(), leader.hold())
            await leader.update_weights(version, state)
            await other.follow(version)
        return await asyncio.gather(*acts)

    asyncio.run(leader.update_weights(1, model.state_dict()))
    asyncio.run(other.follow(1))
    turns = asyncio.run(main())
    assert any(len(turn.weight_runs) > 1 for turn in turns)
    assert other.retried == leader.retried == 0
    twice = [prompt for prompt in prompts for _ in range(2)]
    assert_own_logprobs(lambda version: (trained, model)[version % 2], twice, turns)


@needs_vllm
def test_weights_are_transferred_to_a_real_server(served, real, model, prompts):
    policy = served(temperature=0, weights="gloo", weights_dtype="float32")
    other = make_model(7)[0].eval()
    for version, trained in ((21, other), (22, model)):
        asyncio.run(policy.update_weights(version, trained_weights(trained)))
        turns = turns_of(policy, prompts)
        assert [t.token_ids for t in turns] == greedy(trained, policy.tokenizer, prompts)
        assert {turn.weight_version for turn in turns} == {version}
        if version == 21:  # a killed run began an update here, and had half of its tensors sent
            urllib.request.urlopen(f"{real}/pause?mode=wait", data=b"")
            urllib.request.urlopen(f"{real}/start_weight_update", data=b"")
    weights = dict(trained_weights(other))
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(PolicyUnavailable, match="received other weights than were sent"),
    ):
        patch.setattr("retool_env.rollout.vllm.transfer.checksum", lambda pairs: 7)
        asyncio.run(policy.update_weights(23, weights))
    with pytest.raises(PolicyUnavailable, match="with the next update"):
        turns_of(policy, prompts[:1])
    asyncio.run(policy.update_weights(24))  # what it was started with
    turns = turns_of(policy, prompts)
    assert [turn.token_ids for turn in turns] == greedy(model, policy.tokenizer, prompts)


@needs_vllm
def test_each_turn_on_a_real_server_has_its_own_adapter(served, real, model, prompts, tmp_path):
    policy = served(temperature=0, weights="adapter", weights_folder=tmp_path)
    for version in (31, 32, 33, 34):
        torch.manual_seed(version)
        config = LoraConfig(r=4, target_modules=["q_proj", "up_proj", "down_proj"])
        adapted = get_peft_model(make_model(0)[0], config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.3 * torch.randn_like(parameter))
        merged = make_model(0)[0].eval()
        merged.load_state_dict(dict(trained_weights(adapted)))
        asyncio.run(policy.update_weights(version, trained_adapter(adapted)))
        turns = turns_of(policy, prompts)
        assert [t.token_ids for t in turns] == greedy(merged, policy.tokenizer, prompts)
        assert {turn.weight_version for turn in turns} == {version}
    assert sorted(each.name[:3] for each in tmp_path.iterdir()) == ["33-", "34-"]
    asyncio.run(policy.update_weights(35))  # the model without an adapter
    turns = turns_of(policy, prompts)
    assert [turn.token_ids for turn in turns] == greedy(model, policy.tokenizer, prompts)


@needs_vllm
def test_what_an_earlier_run_has_left_on_a_real_server(served, real, model, prompts, caplog):
    asyncio.run(served().update_weights(12))
    caplog.clear()
    policy = served(temperature=0)
    [record] = caplog.records
    assert "has weights that an earlier run left there, 12-" in record.message
    urllib.request.urlopen(f"{real}/pause?mode=wait", data=b"")
    late = served(attempts=2)
    assert "is paused" in caplog.records[-1].message
    with pytest.raises(PolicyUnavailable, match="is paused"):
        turns_of(late, prompts)
    asyncio.run(policy.update_weights(13))  # what it was started with
    turns = turns_of(policy, prompts)
    assert [turn.token_ids for turn in turns] == greedy(model, policy.tokenizer, prompts)
    assert turns_of(late, prompts)


def run_while_one_is_killed(policy, sandbox, kill) -> list[Transcript]:
    """Run episodes, all of which must end, while `kill` runs in a thread."""
    rules = Rules(max_tokens=300, prompt_template="{query}\n", void_turn="continue", max_calls=5)
    problems = [Problem(id=str(i), question=f"Compute {i}", answer="42") for i in range(12)]
    engine = RolloutEngine(policy, rules, sandbox)
    killer = threading.Thread(target=kill)
    killer.start()
    transcripts = [group[0] for group in engine.run(problems, 1, seed=3)]
    killer.join()
    for transcript in transcripts:
        check_transcript(transcript)
        assert transcript.stop_reason not in (None, StopReason.INFRASTRUCTURE)
    assert policy.retried and not engine.progress.retried
    assert engine.progress.done == len(problems)
    return transcripts


def turns_in(transcripts: list[Transcript]) -> list[tuple[int, ...]]:
    return [s.token_ids for each in transcripts for s in each.spans if s.author == "model"]


CODE = make_tokenizer().encode("<code>\n```python\nprint(6 * 7)\n```\n</code>")


@needs_vllm
def test_a_server_killed_in_a_run_costs_a_retry_and_no_episode(served, real, sandbox):
    name = served().model
    with serving_apart(model=name, written=CODE, delay=0.3) as (url, fake):

        def kill():
            events = map(str.strip, fake.stdout)
            next(event for event in events if event == "end")  # it has answered,
            next(event for event in events if event == "turn")  # and is to answer again
            fake.kill()

        with VLLMServerPolicy([real, url], make_tokenizer(), token="secret") as policy:
            transcripts = run_while_one_is_killed(policy, sandbox, kill)
    turns = turns_in(transcripts)
    assert 0 < turns.count(tuple(CODE)) < len(turns)
    assert not policy.servers[0].failures and policy.servers[1].failures


@needs_vllm
def test_a_real_server_killed_in_a_run_costs_a_retry_and_no_episode(process, served, sandbox):
    """The last test of this file, since it ends the real server."""
    server, url = process
    fake = Served(model=served().model, written=CODE)

    def kill():
        while not metric(url, "num_requests_running"):
            pass
        os.killpg(server.pid, signal.SIGKILL)

    with (
        serving(fake) as other,
        VLLMServerPolicy([url, other], make_tokenizer(), token="secret") as policy,
    ):
        transcripts = run_while_one_is_killed(policy, sandbox, kill)
    assert tuple(CODE) in turns_in(transcripts)
    assert policy.servers[0].failures and not policy.servers[1].failures
