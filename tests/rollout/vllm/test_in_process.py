"""The policy with its own vLLM engine: a real engine and a real tiny model, and transformers."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers.vllm_models import (
    CALLS,
    ENGINE,
    PROMPTS,
    RULES,
    assert_own_logprobs,
    greedy,
    logprobs_of,
    make_tagging_checkpoint,
    make_writer,
    needs_vllm,
    turns_of,
    turns_under_updates,
)

from agents.models.tiny import make_model
from retool_env.episode import decode
from retool_env.problems import ProblemList
from retool_env.rollout import PolicyUnavailable, RolloutEngine
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.rollout.vllm.gate import Gate
from retool_env.rollout.vllm.in_process import VLLMPolicy
from retool_env.transcript import StopReason, check_transcript


@pytest.fixture(scope="module")
def model():
    return make_model(0)[0].eval()


@pytest.fixture(scope="module")
def other():
    return make_model(7)[0].eval()


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = make_tagging_checkpoint(tmp_path_factory.mktemp("vllm") / "tiny", 0)
    with VLLMPolicy(folder, enforce_eager=True, **ENGINE) as made:
        yield made


@pytest.fixture(scope="module")
def writer(engine, sandbox):
    return make_writer(engine.tokenizer, sandbox)


@pytest.fixture
def policy(engine):
    engine.temperature, engine.top_p, engine.at_update = 1.0, 1.0, "cut"
    if engine.weight_version:
        asyncio.run(engine.update_weights(0))
    return engine


@pytest.fixture
def prompts(policy):
    return [policy.tokenizer.encode(text) for text in PROMPTS]


def cached_tokens(policy, prompt: list[int]) -> int:
    """The number of the prompt's tokens in the engine's cache."""

    async def ask():
        from vllm import SamplingParams

        sampling = SamplingParams(max_tokens=1)
        name = f"asked-{time.monotonic()}"
        async for output in policy.engine.generate({"prompt_token_ids": prompt}, sampling, name):
            return output.num_cached_tokens

    return policy.loop.run_blocking(ask())


@needs_vllm
def test_greedy_ids_are_those_of_transformers(policy, model, prompts):
    policy.temperature = 0
    turns = turns_of(policy, prompts)
    assert [turn.token_ids for turn in turns] == greedy(model, policy.tokenizer, prompts)
    assert all(set(turn.logprobs) == {0.0} for turn in turns)
    assert policy.context_length == 512


@needs_vllm
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.5)])
def test_logprobs_are_those_of_the_distribution_sampled_from(
    policy, model, prompts, temperature, top_p
):
    policy.temperature, policy.top_p = temperature, top_p
    for prompt, turn in zip(prompts, turns_of(policy, prompts), strict=True):
        expected = logprobs_of(model, prompt, turn, temperature, top_p)
        torch.testing.assert_close(torch.tensor(turn.logprobs), expected, atol=2e-3, rtol=0)


@needs_vllm
def test_a_seed_gives_the_same_turn_whatever_shares_its_batch(policy, prompts):
    together = [turn.token_ids for turn in turns_of(policy, prompts)]
    alone = [
        turns_of(policy, [prompt], seeds=[seed])[0].token_ids for seed, prompt in enumerate(prompts)
    ]
    assert together == alone
    seeds = [2**64 - 1 - seed for seed in range(len(prompts))]  # the engine's seeds have 64 bits
    assert [turn.token_ids for turn in turns_of(policy, prompts, seeds=seeds)] != together


@needs_vllm
def test_a_turn_stops_at_the_token_that_completes_a_tag_and_keeps_it_whole(policy, prompts):
    policy.temperature = 0
    ends = 0
    for prompt, free in zip(prompts, turns_of(policy, prompts), strict=True):
        texts = [decode(policy.tokenizer, free.token_ids[:n]) for n in range(41)]
        for at in range(10, 41):
            new = texts[at][len(texts[at - 1]) :]
            if len(new) > 2 and new.isascii():
                break  # a tag that ends inside of this token: its last character is surplus
        else:
            continue
        tag = new[:-1]
        first = next(n for n in range(41) if tag in texts[n])
        [turn] = turns_of(policy, [prompt], stop=["<never>", tag])
        assert turn.stop_reason == "tag" and turn.token_ids == free.token_ids[:first]
        ends += first == at and not decode(policy.tokenizer, turn.token_ids).endswith(tag)
    assert ends


@needs_vllm
def test_the_end_of_the_sequence_ends_a_turn_and_is_kept(policy, prompts):
    end = policy.tokenizer.eos_token_id
    turns = turns_of(policy, prompts * 6, budget=100)
    ended = [turn for turn in turns if turn.stop_reason == "eos"]
    assert ended and all(turn.token_ids.index(end) == len(turn.token_ids) - 1 for turn in ended)
    assert all(end not in turn.token_ids for turn in turns if turn.stop_reason == "length")


@needs_vllm
def test_a_prefix_is_read_once_and_new_weights_forget_it(policy, other):
    prompt = policy.tokenizer.encode("Compute 12 + 34. " * 20)
    turns_of(policy, [prompt])
    assert cached_tokens(policy, prompt) >= 128
    asyncio.run(policy.update_weights(1, other.state_dict()))
    assert cached_tokens(policy, prompt) == 0


@needs_vllm
def test_new_weights_are_served_exactly(policy, model, other, prompts, tmp_path):
    policy.temperature = 0
    old = greedy(model, policy.tokenizer, prompts)
    new = greedy(other, policy.tokenizer, prompts)
    assert old != new
    asyncio.run(policy.update_weights(3, other.state_dict()))
    turns = turns_of(policy, prompts)
    assert [turn.token_ids for turn in turns] == new
    assert {turn.weight_version for turn in turns} == {3} and policy.weight_version == 3
    asyncio.run(policy.update_weights(4))  # the folder's
    assert [turn.token_ids for turn in turns_of(policy, prompts)] == old
    asyncio.run(policy.update_weights(5, iter(other.named_parameters())))
    assert [turn.token_ids for turn in turns_of(policy, prompts)] == new


@needs_vllm
def test_a_turn_that_is_waited_for_has_the_weights_of_one_version(policy, model, other, prompts):
    policy.temperature, policy.at_update = 0, "wait"
    prompt = prompts[0]

    async def main():
        early = asyncio.create_task(policy.act(prompt, (), 300, 0))
        while not policy.engine.get_num_unfinished_requests():
            await asyncio.sleep(0.005)
        update = asyncio.create_task(policy.update_weights(9, other.state_dict()))
        while policy.gate.open and not update.done():
            await asyncio.sleep(0.005)
        late = asyncio.create_task(policy.act(prompt, (), 300, 0))
        await update
        return await early, await late

    early, late = asyncio.run(main())
    settings = {"budget": 300}
    assert [early.token_ids] == greedy(model, policy.tokenizer, [prompt], **settings)
    assert [late.token_ids] == greedy(other, policy.tokenizer, [prompt], **settings)
    assert (early.weight_version, late.weight_version) == (0, 9)


@needs_vllm
def test_updates_that_change_nothing_leave_greedy_turns_as_they_are(policy, model, prompts):
    policy.temperature = 0
    turns = turns_under_updates(policy, prompts, [(model.state_dict(),)], 400)
    expected = greedy(model, policy.tokenizer, prompts, budget=400)
    assert [turn.token_ids for turn in turns] == expected
    assert any(len(turn.weight_runs) > 2 for turn in turns)


@needs_vllm
def test_each_token_has_the_logprob_of_its_own_version(policy, model, other, prompts):
    turns = turns_under_updates(policy, prompts, [(), (other.state_dict(),)], 400)
    assert any(len(turn.weight_runs) > 2 for turn in turns)
    assert_own_logprobs(lambda version: (model, other)[version % 2], prompts, turns)


@needs_vllm
def test_turns_that_are_kept_go_on_with_their_cache(policy, model, other, prompts):
    """With the same weights the mixed cache is no mixture, so the turns are exact."""
    policy.temperature, policy.at_update, before = 0, "keep", policy.mixed_turns
    turns = turns_under_updates(policy, prompts, [(model.state_dict(),)], 400)
    expected = greedy(model, policy.tokenizer, prompts, budget=400)
    assert [turn.token_ids for turn in turns] == expected
    assert all(turn.weight_runs == () for turn in turns)
    assert len(prompts) // 2 <= policy.mixed_turns - before <= len(prompts)
    asyncio.run(policy.update_weights(policy.weight_version + 1, other.state_dict()))
    new = greedy(other, policy.tokenizer, prompts)  # nothing of them is read from the older cache
    assert [turn.token_ids for turn in turns_of(policy, prompts)] == new


@needs_vllm
def test_a_turn_that_waits_for_new_weights_reads_nothing_from_the_kept_cache(
    policy, model, other, prompts
):
    policy.temperature, policy.at_update = 0, "keep"
    asyncio.run(policy.update_weights(policy.weight_version + 1, model.state_dict()))
    prompts = [(ids * 200)[:200] for ids in prompts]  # more than a block
    turns_of(policy, prompts)  # the cache holds the prompts' blocks of these weights

    async def main():
        policy.gate.hold()
        turns = [policy.act(ids, (), 40, 1) for ids in prompts]
        tasks = [asyncio.ensure_future(turn) for turn in turns]
        await asyncio.sleep(0.1)
        await policy.update_weights(policy.weight_version + 1, other.state_dict())
        policy.gate.release()
        return await asyncio.gather(*tasks)

    turns = policy.loop.run_blocking(main())
    assert [turn.token_ids for turn in turns] == greedy(other, policy.tokenizer, prompts, budget=40)
    assert {turn.weight_version for turn in turns} == {policy.weight_version}


@needs_vllm
def test_whole_episodes_are_the_same_under_updates_that_change_nothing(policy, writer, sandbox):
    """Cuts fall into tags, results and answers, too."""
    policy.temperature = 0
    weights = writer.state_dict()
    asyncio.run(policy.update_weights(2, weights))
    expected = episodes(policy, sandbox)
    over = threading.Event()

    def update():
        seconds = 0.02
        while not over.wait(seconds):
            asyncio.run(policy.update_weights(policy.weight_version + 1, weights))
            seconds *= 1.1

    thread = threading.Thread(target=update)
    thread.start()
    try:
        got = episodes(policy, sandbox)
    finally:
        over.set()
        thread.join()
    assert [t.completion_ids for t in got] == [t.completion_ids for t in expected]
    assert [t.stop_reason for t in got] == [t.stop_reason for t in expected]
    assert any(span.weight_runs for t in got for span in t.spans)
    for transcript in got:
        check_transcript(transcript)


@needs_vllm
def test_weights_that_are_not_the_models_are_refused_and_the_old_ones_stay(
    policy, model, other, prompts
):
    weights = other.state_dict()
    missing = {name: each for name, each in weights.items() if "layers.2" not in name}
    with pytest.raises(
        ValueError, match=r"9 of the model's weights are missing, for example 'model.layers.2"
    ):
        asyncio.run(policy.update_weights(1, missing))
    renamed = {f"base_model.{name}": each for name, each in weights.items()}
    with pytest.raises(ValueError, match=r"no weight 'base_model\.model"):
        asyncio.run(policy.update_weights(1, renamed))
    policy.temperature = 0
    [turn] = turns_of(policy, prompts[:1])
    assert turn.weight_version == 0
    assert [turn.token_ids] == greedy(model, policy.tokenizer, prompts[:1])


def abandoned() -> Path:
    """The weights' folder of a process that was killed."""
    code = (
        "from retool_env.rollout.vllm.passing_folder import passing_folder; import os;"
        "passing = passing_folder(1); print(passing.__enter__(), flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    assert folder.is_dir()
    return folder


def assert_no_turn_waits(policy, prompt):
    with pytest.raises(RuntimeError, match="did not load the weights of version 9 to the end"):
        asyncio.run(asyncio.wait_for(policy.act(prompt, (), 5, 0), 60))


@needs_vllm
def test_when_weights_fail_to_load_turns_are_refused_until_others_are_loaded(
    policy, model, prompts, tmp_path, monkeypatch
):
    policy.temperature = 0
    with monkeypatch.context() as patch:
        patch.setattr(policy, "model", str(tmp_path / "nothing"))
        with pytest.raises(RuntimeError, match="did not load the weights of version 9"):
            asyncio.run(policy.update_weights(9))
    assert_no_turn_waits(policy, prompts[0])
    asyncio.run(policy.update_weights(1))
    turns = turns_of(policy, prompts)
    assert [turn.token_ids for turn in turns] == greedy(model, policy.tokenizer, prompts)
    assert {turn.weight_version for turn in turns} == {1}


@needs_vllm
def test_when_an_update_is_cancelled_while_it_loads_turns_are_refused(policy, prompts, monkeypatch):
    loading = threading.Event()

    async def load(*_, **__):
        loading.set()
        await asyncio.Event().wait()

    async def cancel():
        update = asyncio.create_task(policy.update_weights(9))
        assert await asyncio.to_thread(loading.wait, 20)
        update.cancel()
        await asyncio.gather(update, return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(policy.engine, "collective_rpc", load)
        asyncio.run(cancel())
    assert_no_turn_waits(policy, prompts[0])
    asyncio.run(policy.update_weights(1))
    assert turns_of(policy, prompts)[0].weight_version == 1


@needs_vllm
def test_a_turn_that_the_engine_fails_at_can_be_tried_again(policy, prompts, monkeypatch):
    async def fail(*_, **__):
        raise KeyError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(policy.engine, "add_request", fail)  # vLLM's own error for it says nothing
        with pytest.raises(PolicyUnavailable, match=r"KeyError\('lost'\)"):
            turns_of(policy, prompts[:1])
    assert turns_of(policy, prompts[:1])


@needs_vllm
def test_a_sleeping_engine_takes_no_weights(policy, prompts, other, monkeypatch):
    """On a CPU, sleep only pauses the engine."""
    monkeypatch.setattr(policy, "sleep_mode", True)
    asyncio.run(policy.sleep())
    for weights in (None, other.state_dict()):
        with pytest.raises(RuntimeError, match="wake_up"):
            asyncio.run(policy.update_weights(1, weights))
    asyncio.run(policy.wake_up())
    assert turns_of(policy, prompts)[0].weight_version == 0
    asyncio.run(policy.update_weights(1, other.state_dict()))
    assert turns_of(policy, prompts)[0].weight_version == 1


@needs_vllm
def test_a_cancelled_turn_ends_in_the_engine(policy, prompts):
    policy.temperature = 0
    prompt, unfinished = prompts[1], policy.engine.get_num_unfinished_requests
    [whole] = turns_of(policy, [prompt], budget=480)
    assert cached_tokens(policy, [*prompt, *whole.token_ids]) >= 384

    async def cancel():
        await policy.update_weights(0)  # empties the cache
        task = asyncio.create_task(policy.act(prompt, (), 480, 0))
        while not unfinished():
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(60):
            while unfinished():
                await asyncio.sleep(0.005)

    asyncio.run(cancel())
    # What the engine has in its cache is what it has sampled.
    assert cached_tokens(policy, [*prompt, *whole.token_ids]) < 384
    assert turns_of(policy, [prompt])


@needs_vllm
def test_a_budget_beyond_the_context_is_refused(policy):
    with pytest.raises(ValueError, match="context"):
        turns_of(policy, [[5] * 500], budget=20)


@needs_vllm
def test_it_says_which_checkpoint_it_was_loaded_from(policy):
    assert policy.checkpoint == policy.model  # where the engine looks for `retool.json`


@needs_vllm
def test_sleep_is_refused_where_there_is_no_cuda(policy):
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    with pytest.raises(RuntimeError, match="sleep_mode"):
        asyncio.run(policy.sleep())
    with pytest.raises(RuntimeError, match="sleep_mode"):
        asyncio.run(policy.wake_up())
    with pytest.raises(ValueError, match="CUDA"):
        VLLMPolicy(policy.model, sleep_mode=True)


def episodes(policy, sandbox, n=1, seed=0):
    engine = RolloutEngine(policy, RULES, sandbox)
    return [transcript for group in engine.run(CALLS, n, seed) for transcript in group]


@needs_vllm
def test_whole_episodes_with_calls_are_those_of_transformers(policy, writer, sandbox):
    policy.temperature = 0
    asyncio.run(policy.update_weights(2, writer.state_dict()))
    expected = episodes(TransformersPolicy(writer, policy.tokenizer, temperature=0), sandbox)
    got = episodes(policy, sandbox)
    assert [t.completion_ids for t in got] == [t.completion_ids for t in expected]
    assert [t.spans for t in got] != [t.spans for t in expected]  # by their weights' version
    assert {t.stop_reason for t in got} == {t.stop_reason for t in expected}
    # The model has learnt its task: a call or two, then the answer; in the second case its last
    # token is longer than the tag.
    assert [len(t.calls) for t in got] == [1, 2] * 4
    assert all(t.stop_reason is StopReason.ANSWERED and t.correct for t in got)
    for transcript in got:
        check_transcript(transcript)
        surplus = [span.surplus for span in transcript.spans if span.author == "model"]
        assert surplus == ([4, 4, 0] if len(transcript.calls) == 2 else [0, 0])
        assert all(call.execution.stdout == "42\n" for call in transcript.calls)


@needs_vllm
def test_episodes_logprobs_are_those_of_one_pass_over_the_whole(policy, writer, sandbox):
    asyncio.run(policy.update_weights(2, writer.state_dict()))
    transcripts = episodes(policy, sandbox, n=4, seed=5)
    assert len({tuple(t.completion_ids) for t in transcripts}) > len(CALLS)  # not all are certain
    for transcript in transcripts:
        check_transcript(transcript)
        ids = torch.tensor([[*transcript.prompt_ids, *transcript.completion_ids]])
        with torch.no_grad():
            logprobs = writer(ids).logits[0, :-1].log_softmax(-1)
        expected = logprobs.gather(-1, ids[0, 1:, None])[len(transcript.prompt_ids) - 1 :, 0]
        mask = torch.tensor(transcript.loss_mask, dtype=torch.bool)
        got = torch.tensor(transcript.logprobs)
        torch.testing.assert_close(got[mask], expected[mask], atol=2e-3, rtol=0)


@needs_vllm
def test_a_greedy_fork_with_the_true_result_is_its_parent_token_for_token(policy, writer, sandbox):
    policy.temperature = 0
    asyncio.run(policy.update_weights(5, writer.state_dict()))
    engine = RolloutEngine(policy, RULES, sandbox)
    [[parent]] = engine.run([CALLS[1]])
    assert len(parent.calls) == 2
    asyncio.run(policy.update_weights(6, writer.state_dict()))  # nothing of the prefix is cached
    for call in (1, 2):
        [fork] = engine.fork(parent, call, seed=99)
        check_transcript(fork)
        assert fork.completion_ids == parent.completion_ids and fork.reward == parent.reward
        versions = [span.weight_version for span in fork.spans if span.author == "model"]
        assert versions == [5] * call + [6] * (3 - call)  # the prefix keeps its own versions


@needs_vllm
def test_the_faults_of_an_episode_are_those_of_transformers(policy, writer, sandbox):
    policy.temperature = 0
    asyncio.run(policy.update_weights(2, writer.state_dict()))
    faults = {"rate": 0.5, "kinds": ["timeout", "wrong_value", "stale", "gone"], "seed": 3}
    rules = dataclasses.replace(RULES, faults=faults)
    policies = policy, TransformersPolicy(writer, policy.tokenizer, temperature=0)
    runs = [RolloutEngine(one, rules, sandbox).run(CALLS, 3) for one in policies]
    kinds = set()
    for a, b in zip(*([t for group in groups for t in group] for groups in runs), strict=True):
        pairs = [*zip(a.calls, b.calls, strict=False)]  # after a fault, ties may fall otherwise
        assert pairs and all(one.execution == other.execution for one, other in pairs)
        kinds |= {one.execution.fault and one.execution.fault.kind for one, _ in pairs}
    assert len(kinds) >= 4


@needs_vllm
def test_a_run_that_is_cancelled_leaves_no_request_behind(policy, sandbox):
    engine = RolloutEngine(policy, RULES, sandbox)

    async def run():
        async for _ in engine.groups(CALLS, 8, seed=1):
            pass

    async def cancel() -> list[bool]:
        task = asyncio.create_task(run())
        while policy.engine.get_num_unfinished_requests() < 16:
            await asyncio.sleep(0.005)
        # The scheduler forgets its cache if no request holds any of it.
        forgets = [await policy.loop.run(policy.engine.reset_prefix_cache())]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        forgets.append(await policy.loop.run(policy.engine.reset_prefix_cache()))
        return forgets

    assert asyncio.run(cancel()) == [False, True]
    assert not policy.engine.get_num_unfinished_requests()
    assert engine.progress.generating == 0


@needs_vllm
def test_runs_of_an_engine_have_event_loops_of_their_own(policy, writer, sandbox):
    asyncio.run(policy.update_weights(2, writer.state_dict()))
    first, second = (episodes(policy, sandbox, seed=3) for _ in range(2))
    assert [t.completion_ids for t in first] == [t.completion_ids for t in second]
    sampled = [span for t in first for span in t.spans if span.author == "model"]
    assert sampled and {span.weight_version for span in sampled} == {2}


@pytest.mark.parametrize("settings", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}])
def test_bad_sampling_is_refused(settings):
    with pytest.raises(ValueError, match="must"):
        VLLMPolicy("nowhere", **settings)


def test_without_vllm_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"retool-env\[vllm\]"):
        VLLMPolicy("nowhere")


def test_importing_the_policies_imports_no_engine_and_no_client():
    code = (
        "import sys, retool_env.rollout.vllm, retool_env.rollout.vllm.server\n"
        "heavy = ('torch', 'transformers', 'vllm', 'httpx')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@needs_vllm
def test_grpo_trains_on_what_it_samples_and_it_samples_from_what_is_trained(
    policy, sandbox, tmp_path
):
    """Each step's weights reach the engine; else its samples would be far from the model."""
    trl = pytest.importorskip("trl", reason="pip install 'retool-env[train]'")
    from transformers import AutoModelForCausalLM

    from retool_env.integrations.trl import (
        EngineGRPOTrainer,
        EngineRollouts,
        episode_reward,
        problem_dataset,
    )

    rules = dataclasses.replace(
        RULES, max_tokens=24, reward=lambda transcript: float(sum(transcript.completion_ids) % 2)
    )
    problems = ProblemList(CALLS)
    trainer = EngineGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy.model, dtype=torch.float32),
        reward_funcs=episode_reward,
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=24,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            bf16=False,
            shuffle_dataset=False,
            disable_tqdm=True,
            gradient_checkpointing=False,
        ),
        train_dataset=problem_dataset(problems, 6, seed=0),
        processing_class=policy.tokenizer,
        rollout_func=EngineRollouts(RolloutEngine(policy, rules, sandbox), problems),
    )
    started = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    trainer.rollout_func.close()
    moved = max(
        (now - then).abs().max().item()
        for now, then in zip(trainer.model.parameters(), started, strict=True)
    )
    logs = [log for log in trainer.state.log_history if "reward" in log]
    assert len(logs) == 3 and moved > 1e-2 and policy.weight_version == 2
    assert all(log["offpolicy/difference_max"] < 1e-3 for log in logs)
    assert all(log["rollout/weight_lag_max"] == 0 for log in logs)


@needs_vllm
def test_an_engine_that_is_killed_ends_the_turn_and_the_update_that_wait_for_it(other, tmp_path):
    left = abandoned()
    try:
        policy = VLLMPolicy(
            make_tagging_checkpoint(tmp_path / "tiny", 0), enforce_eager=True, **ENGINE
        )
        removed = not left.exists()
    finally:
        shutil.rmtree(left, ignore_errors=True)
    [process] = policy.engine.engine_core.resources.engine_manager.processes

    async def kill() -> list[BaseException]:
        waiting = [asyncio.create_task(policy.act([5] * 10, (), 480, 0))]
        while not policy.engine.get_num_unfinished_requests():
            await asyncio.sleep(0.005)
        os.kill(process.pid, signal.SIGSTOP)  # so that it answers none of them
        policy.gate = Gate()  # the update is not to wait for the turn
        waiting.append(asyncio.create_task(policy.update_weights(9, other.state_dict())))
        while policy.gate.open:
            await asyncio.sleep(0.005)
        waiting.append(asyncio.create_task(policy.act([5], (), 4, 0)))
        os.kill(process.pid, signal.SIGKILL)
        return await asyncio.gather(*waiting, return_exceptions=True)

    with policy:
        assert removed
        for error in asyncio.run(asyncio.wait_for(kill(), 60)):
            assert type(error) is RuntimeError and "engine process has died" in str(error)
        for call in (policy.act([5], (), 4, 0), policy.update_weights(10)):
            with pytest.raises(RuntimeError, match="engine process has died"):
                asyncio.run(asyncio.wait_for(call, 60))
        assert policy.weight_version == 0
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(policy.act([5], (), 4, 0))


@needs_vllm
def test_closing_ends_a_turn_that_is_under_way_with_an_error(policy, prompts):
    """The last test of this file, since it ends the engine."""

    async def close():
        turn = asyncio.create_task(policy.act(prompts[0], (), 480, 0))
        while not policy.engine.get_num_unfinished_requests():
            await asyncio.sleep(0.005)
        await asyncio.to_thread(policy.close)
        with pytest.raises(RuntimeError, match="closed"):
            await turn

    asyncio.run(asyncio.wait_for(close(), 60))
