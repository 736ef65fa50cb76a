"""The worker's samples in TRL's asynchronous trainer: its queue, batchers and collator."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import importlib
import inspect
import itertools
import math
import queue
import statistics
import sys
import threading
import time
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from trl.experimental.async_grpo import (
    AsyncGRPOConfig,
    AsyncGRPOTrainer,
    async_grpo_trainer,
    packing,
)
from trl.experimental.async_grpo.async_grpo_trainer import (
    DataCollatorForRollout,
    FixedCountBatcher,
    RolloutQueueDataset,
    RolloutWorkerProtocol,
    TokenBudgetBatcher,
    WeightTransferProtocol,
    _iter_vllm_named_params,
    _reduce_metric,
)
from trl.experimental.async_grpo.async_rollout_worker import RolloutGroup, _AsyncRolloutLoop

from agents.models.tiny import make_checkpoint, make_model, make_tokenizer
from retool_env.episode import Generation
from retool_env.integrations import trl_async
from retool_env.integrations.trl import problem_dataset
from retool_env.integrations.trl_async import (
    EngineRolloutWorker,
    PolicyWeightTransfer,
    group_samples,
)
from retool_env.problems import Problem, ProblemList
from retool_env.rollout import PolicyUnavailable, RolloutEngine, ScriptedPolicy, TextPolicy
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import StopReason, Transcript, check_transcript

RULES = Rules(max_tokens=200, prompt_template="{query}\n")
PROBLEMS = ProblemList(
    Problem(id=str(i), question=f"{i} * 7?", answer=str(i * 7)) for i in range(6)
)
N = 4
WAIT = 60.0


class Box:
    """A sandbox that prints 7, or fails if the program says so; `release` lets programs end."""

    def __init__(self, held: bool = False) -> None:
        self.entered, self.running = threading.Semaphore(0), 0
        self.release = threading.Event()
        self.held = held

    async def run_async(self, code, limits=None, **_):
        self.running += 1
        self.entered.release()
        try:
            if self.held:
                await asyncio.to_thread(self.release.wait, 10.0)
        finally:
            self.running -= 1
        if "fail" in code:
            return Execution(Outcome.INFRASTRUCTURE, "", "gone")
        return Execution(Outcome.OK, "7\n")


class Writer(ScriptedPolicy):
    """Runs a program, then answers; turns and log-probs differ between any two rollouts."""

    def __init__(self, program="print({number} * 7 + {wrong})"):
        super().__init__(lambda text: "", make_tokenizer())
        self.program = program

    async def act(self, token_ids, stop, budget, seed):
        self.loop = asyncio.get_running_loop()
        text = self.tokenizer.decode(token_ids)
        number = int(text.split(" * ")[0])
        if "<interpreter>" not in text:
            program = self.program.format(number=number, wrong=seed % 2)
            turn = f"Compute {seed % 10**6}\n<code>\n{program}\n</code>"
        else:
            turn = f"<answer>{text.split('<interpreter>')[1].split('<')[0].strip()}</answer>"
        ids = tuple(self.tokenizer.encode(turn))
        logprobs = tuple(-0.001 * (1 + (seed + i) % 997) for i in range(len(ids)))
        return Generation(ids, logprobs, "tag")


@pytest.fixture(autouse=True, scope="module")
def trls_logging():
    PartialState(cpu=True)  # without it accelerate's loggers refuse


@pytest.fixture
def make_worker():
    made = []

    def make(policy=None, box=None, ahead=2 * N, rules=RULES, concurrency=256, **more):
        engine = RolloutEngine(policy or Writer(), rules, box or Box(), concurrency, attempts=1)
        worker = EngineRolloutWorker(engine, PROBLEMS, N, ahead, **more)
        made.append(worker)
        return worker

    yield make
    for worker in made:
        worker.stop()


def trl_dataset(worker, version=lambda: 0, max_staleness=3, stale_after_s=300.0):
    return RolloutQueueDataset(
        worker.rollout_buffer,
        version,
        worker.check_health,
        stale_after_s,
        metrics=defaultdict(list),
        max_staleness=max_staleness,
        poll_interval_s=0.05,
    )


def logged(worker):
    """The figures that the trainer's `log` makes from the worker's metrics."""
    values = defaultdict(list)
    while not worker.metrics_queue.empty():
        for key, value in worker.metrics_queue.get_nowait().items():
            values[key].append(value)
    return {key: _reduce_metric(key, each) for key, each in values.items()}


def settled(policy):
    """Let the worker's loop, in which the policy is asked, do whatever it can do."""
    for _ in range(20):
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), policy.loop).result(WAIT)


def reference_advantages(rewards):
    mean, deviation = statistics.fmean(rewards), statistics.pstdev(rewards)
    return [(reward - mean) / (deviation + 1e-8) for reward in rewards]


@pytest.mark.parametrize(
    ("protocol", "ours"),
    [
        (RolloutWorkerProtocol, EngineRolloutWorker),
        (WeightTransferProtocol, PolicyWeightTransfer),
    ],
)
def test_the_protocols_methods_are_there_with_their_parameters(protocol, ours):
    methods = [name for name in vars(protocol) if inspect.isfunction(vars(protocol)[name])]
    methods = [name for name in methods if not name.startswith("_")]
    assert len(methods) >= 4
    for name in methods:
        theirs = inspect.signature(getattr(protocol, name)).parameters
        assert list(inspect.signature(getattr(ours, name)).parameters) == list(theirs)


def test_a_trl_without_the_experimental_modules_is_told_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, RolloutGroup.__module__, None)
    monkeypatch.delitem(sys.modules, trl_async.__name__)
    with pytest.raises(ImportError, match=r"of TRL 1\.16.*pip install 'trl>=1\.16,<1\.17'"):
        importlib.import_module(trl_async.__name__)


def test_the_protocols_attributes_are_queues_and_the_engine_stays_the_callers():
    policy = Writer()
    engine = RolloutEngine(policy, RULES, Box())
    worker = EngineRolloutWorker(engine, PROBLEMS, N, N)
    worker.update_model_version(3)
    for name in RolloutWorkerProtocol.__annotations__:
        assert isinstance(getattr(worker, name), queue.Queue)
    assert engine.policy is policy and policy.weight_version == 0


@pytest.mark.parametrize("budget", [0, 400])
def test_what_the_collator_makes_are_the_transcripts_numbers(make_worker, sandbox, budget):
    groups = {}
    worker = make_worker(box=sandbox, ahead=3 * N, on_group=groups.__setitem__)
    worker.start()
    dataset = trl_dataset(worker)
    batcher = (
        TokenBudgetBatcher(dataset, 2, budget, dataset.metrics)
        if budget
        else FixedCountBatcher(dataset, 2, 2 * N)
    )
    collator = DataCollatorForRollout(pad_token_id=0, num_processes=2, token_budget=budget)
    seen = 0
    for rows in itertools.islice(batcher, 6):
        batch = collator([rows])
        for number, row in enumerate(rows):
            seen += check_row({key: values[number] for key, values in batch.items()}, row, groups)
    assert seen >= 4 * N and collator.groups_trained <= groups.keys()


def check_row(packed, row, groups):
    """Compare one packed row with the transcripts that it must come from; returns how many."""
    kept = packed["attention_mask"].bool()
    ids, positions = packed["input_ids"][kept], packed["position_ids"][kept]
    ends = [end for end in packed["tree_cu_seqlens_k"].tolist() if end >= 0]
    index = packed["tree_kv_index"]
    paths = {tuple(ids[index[a:b]].tolist()) for a, b in itertools.pairwise(ends)}
    terms = packed["token_index"] >= 0
    for i, sample in enumerate(row.samples):
        group = groups[sample["group_id"]]
        rewards = [t.reward for t in group]
        [at] = [
            k
            for k, t in enumerate(group)
            if t.prompt_ids + t.completion_ids == sample["input_ids"].tolist()
        ]
        transcript = group[at]
        assert tuple(transcript.prompt_ids + transcript.completion_ids) in paths
        mask = [0] * len(transcript.prompt_ids) + transcript.loss_mask
        logprobs = [0.0] * len(transcript.prompt_ids) + transcript.logprobs
        sampled = [p for p, own in enumerate(mask) if own]
        own = terms & (packed["segment_id"] == i)
        before = packed["token_index"][own]
        assert (positions[before] + 1).tolist() == sampled
        labels = packed["shift_labels"][kept][before].tolist()
        assert labels == [sample["input_ids"][p] for p in sampled]
        wanted = torch.tensor([logprobs[p] for p in sampled])
        assert torch.equal(packed["old_log_probs"][own], wanted)
        advantage = torch.tensor(reference_advantages(rewards)[at])
        assert torch.allclose(packed["advantages"][own], advantage, rtol=1e-6, atol=1e-9)
        assert sample["metrics"] == {
            "reward": transcript.reward,
            "reward_std": pytest.approx(statistics.pstdev(rewards)),
        }
        assert 0 < len(sampled) < len(transcript.completion_ids) and transcript.calls[0].ok
    return len(row.samples)


def finished(reward, prompt="q", text="hm", stop_reason=StopReason.VOID_TURN):
    engine = RolloutEngine(
        ScriptedPolicy(lambda _: text, make_tokenizer()), dataclasses.replace(RULES), Box()
    )
    [[transcript]] = engine.run([Problem(id="p", question=prompt, answer="1")])
    return dataclasses.replace(transcript, reward=reward, stop_reason=stop_reason)


@pytest.mark.parametrize(
    "rewards",
    [[1.0, -1.0], [1.0, 1.0, -1.0, -1.0, -1.0], [0.25, 0.5, 3.75], [1.0, 1.0, 1.0], [1e-4, 0.0]],
)
def test_advantages_are_as_trls_own_worker_makes_them(rewards):
    group = [finished(reward) for reward in rewards]
    advantages = [sample.advantage for sample in group_samples(group, 0)]
    assert advantages == pytest.approx(reference_advantages(rewards), rel=1e-12, abs=1e-12)
    row = SimpleNamespace(input_ids=[1], completion_mask=[1], old_log_probs=[0.0])
    theirs = RolloutGroup(
        **dict.fromkeys(("prompts", "completions", "completions_ids"), [[]] * len(rewards)),
        reward_kwargs={},
        completions_sequences=[[row]] * len(rewards),
        tool_call_counts=[0] * len(rewards),
        tool_failure_counts=[0] * len(rewards),
        model_version=0,
        group_id=0,
        env_rewards=[],
        rollout_rewards=[],
    )
    loop = SimpleNamespace(
        reward_funcs=[lambda **_: rewards],
        reward_func_names=["reward"],
        _env_reward_types=[],
        _provides_rollout_reward=False,
    )
    scored = asyncio.run(_AsyncRolloutLoop._score_group(loop, theirs))
    wanted = [sample.advantage for sample in scored]
    assert advantages == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def test_an_episode_without_a_sampled_token_counts_for_the_mean_but_is_no_sample():
    silent = finished(-1.0)
    silent = dataclasses.replace(silent, spans=silent.spans[:1], stop_reason=StopReason.CANCELLED)
    samples = group_samples([finished(1.0), silent, finished(-1.0)], 5)
    wanted = reference_advantages([1.0, -1.0, -1.0])
    assert [sample.advantage for sample in samples] == pytest.approx([wanted[0], wanted[2]])
    assert all(sample.completion_mask.sum() > 0 and sample.group_id == 5 for sample in samples)


def test_a_samples_version_is_that_of_the_oldest_weights_of_any_of_its_tokens():
    old = finished(1.0)
    runs = ((5, 1), (3, len(old.spans[1].token_ids) - 1))
    span = dataclasses.replace(old.spans[1], weight_version=5, weight_runs=runs)
    mixed = dataclasses.replace(old, spans=(old.spans[0], span, *old.spans[2:]))
    assert [each.model_version for each in group_samples([mixed, old], 0)] == [3, 0]


class Failing(Writer):
    """Its programs fail in the rollouts that are named."""

    def __init__(self, fails):
        super().__init__()
        self.fails, self.begun = fails, itertools.count()

    async def act(self, token_ids, stop, budget, seed):
        first = "<interpreter>" not in self.tokenizer.decode(token_ids)
        failed = first and next(self.begun) in self.fails
        self.program = "fail" if failed else "print({number} * 7 + {wrong})"
        return await super().act(token_ids, stop, budget, seed)


def test_a_failed_episode_is_as_if_it_had_not_been(make_worker, sandbox):
    class Mixed(Box):
        async def run_async(self, code, limits=None, **more):
            if "fail" in code:
                return Execution(Outcome.INFRASTRUCTURE, "", "gone")
            return await sandbox.run_async(code, limits, **more)

    groups, done = {}, threading.Semaphore(0)

    def note(number, group):
        groups[number] = group
        done.release()

    worker = make_worker(Failing({1, 2, 4, 6, 7}), Mixed(), ahead=N, on_group=note)
    worker.start()
    [first] = taken(worker, N - 2, {0})
    assert done.acquire(timeout=WAIT) and done.acquire(timeout=WAIT)
    others = [t for t in groups[0] if t.stop_reason is not StopReason.INFRASTRUCTURE]
    assert len(others) == 2 and {t.reward for t in groups[0]} >= {None}
    alone = group_samples(others, 0)
    for ours, wanted in zip(first, alone, strict=True):
        assert ours.input_ids.tolist() == wanted.input_ids.tolist()
        assert ours.advantage == wanted.advantage
    # The second group has one scored episode, with nothing to compare it with.
    assert sum(t.reward is not None for t in groups[1]) == 1
    [third] = taken(worker, N, {2})
    assert len(third) == N
    figures = logged(worker)
    assert figures["env/failed_total"] == 5.0 and figures["rollout/skipped_groups_total"] == 1.0


def taken(worker, number, group_ids):
    """The next samples, by group."""
    samples = [worker.rollout_buffer.get(timeout=WAIT) for _ in range(number)]
    groups = defaultdict(list)
    for sample in samples:
        groups[sample.group_id].append(sample)
    assert groups.keys() == set(group_ids)
    return list(groups.values())


def test_groups_enter_the_queue_whole_and_in_the_transcripts_order(make_worker):
    groups = {}
    worker = make_worker(ahead=4 * N, on_group=groups.__setitem__)
    worker.start()
    samples = [worker.rollout_buffer.get(timeout=WAIT) for _ in range(12 * N)]
    for start in range(0, len(samples), N):
        group = samples[start : start + N]
        [number] = {sample.group_id for sample in group}
        ids = [t.prompt_ids + t.completion_ids for t in groups[number]]
        assert [sample.input_ids.tolist() for sample in group] == ids
        for transcript in groups[number]:
            check_transcript(transcript)
    numbers = [sample.group_id for sample in samples[::N]]
    assert len(set(numbers)) == 12


def test_problems_come_in_random_order_each_before_any_comes_again(make_worker):
    orders = []
    for seed in (1, 1, 2):
        groups = {}
        worker = make_worker(ahead=N, seed=seed, on_group=groups.__setitem__)
        worker.start()
        for _ in range(12 * N):
            worker.rollout_buffer.get(timeout=WAIT)
        worker.stop()
        order = [groups[number][0].problem.id for number in range(12)]
        for start in (0, 6):
            assert sorted(order[start : start + 6]) == [str(i) for i in range(6)]
        written = [t.response_text.split("\n")[0] for n in range(12) for t in groups[n]]
        assert len(set(written)) == 12 * N  # every rollout is sampled with a seed of its own
        orders.append((order, written))
    assert not set(orders[0][1]) & set(orders[2][1])
    assert orders[0] == orders[1] != orders[2] and orders[0][0][:6] != orders[0][0][6:]


def test_a_sample_has_the_version_of_its_oldest_turn_and_trl_drops_it_when_stale(make_worker):
    box = Box(held=True)
    groups = {}
    worker = make_worker(box=box, ahead=N, on_group=groups.__setitem__)
    worker.update_model_version(1)  # as the trainer does, before it starts the worker
    worker.start()
    for _ in range(N):
        assert box.entered.acquire(timeout=WAIT)
    worker.update_model_version(4)
    box.held = False
    box.release.set()
    dataset = trl_dataset(worker, version=lambda: 4, max_staleness=2)
    samples = list(itertools.islice(dataset, N))
    assert {sample["group_id"] for sample in samples} == {1}
    assert sum(dataset.metrics["sample/dropped_stale_total"]) == N
    assert dataset.metrics["sample/staleness_max"] == [0.0] * N
    assert all(0 <= wait < WAIT for wait in dataset.metrics["sample/time_in_queue_s"])
    assert len(dataset.metrics["sample/time_in_queue_s"]) == N
    versions = [[s.weight_version for s in t.spans if s.author == "model"] for t in groups[0]]
    assert versions == [[1, 4]] * N
    figures = worker.metrics_queue.get(timeout=WAIT)
    assert figures["rollout/weight_lag"] == (3 * N, N) and figures["rollout/weight_lag_max"] == 3.0
    kept = trl_dataset(make_stale(groups[0]), version=lambda: 4, max_staleness=3)
    assert len(list(itertools.islice(kept, N))) == N


def test_a_turn_during_which_the_weights_change_is_of_those_that_it_began_with(make_worker):
    begun, go = threading.Semaphore(0), threading.Event()

    class Slow(Writer):
        async def act(self, token_ids, stop, budget, seed):
            begun.release()
            await asyncio.to_thread(go.wait, 10.0)
            return await super().act(token_ids, stop, budget, seed)

    worker = make_worker(Slow(), ahead=N)
    worker.start()
    for _ in range(N):
        assert begun.acquire(timeout=WAIT)
    worker.update_model_version(1)
    go.set()
    [group] = taken(worker, N, {0})
    assert [sample.model_version for sample in group] == [0] * N


def make_stale(group):
    buffer = queue.Queue()
    for sample in group_samples(group, 0):
        buffer.put(sample)
    return SimpleNamespace(rollout_buffer=buffer, check_health=None)


def test_never_more_samples_than_stated_wait_or_are_under_way(make_worker):
    begun, done, counts = itertools.count(1), [], []
    finished_groups = threading.Semaphore(0)

    class Counting(Writer):
        async def act(self, token_ids, stop, budget, seed):
            if "<interpreter>" not in self.tokenizer.decode(token_ids):
                counts.append((next(begun) - len(done) * N) + worker.rollout_buffer.qsize())
            return await super().act(token_ids, stop, budget, seed)

    def note(number, group):
        done.append(number)
        finished_groups.release()

    policy = Counting()
    worker = make_worker(policy, ahead=2 * N + 1, on_group=note)
    worker.start()
    for _ in range(2):
        assert finished_groups.acquire(timeout=WAIT)
    settled(policy)
    assert (len(counts), worker.rollout_buffer.qsize()) == (2 * N, 2 * N)
    for _ in range(N - 2):
        worker.rollout_buffer.get(timeout=WAIT)
    settled(policy)
    assert len(counts) == 2 * N
    worker.rollout_buffer.get(timeout=WAIT)
    assert finished_groups.acquire(timeout=WAIT)
    settled(policy)
    assert len(counts) == 3 * N and worker.rollout_buffer.qsize() == 2 * N + 1
    for _ in range(10 * N):
        worker.rollout_buffer.get(timeout=WAIT)
    assert max(counts) <= 2 * N + 1


def test_the_engines_bounds_hold_over_all_groups(make_worker):
    most = []

    class Counting(Box):
        async def run_async(self, code, limits=None, **_):
            self.running += 1
            most.append(self.running)
            for _ in range(20):  # so that whatever else may begin does
                await asyncio.sleep(0)
            self.running -= 1
            return Execution(Outcome.OK, "7\n")

    worker = make_worker(box=Counting(), ahead=8 * N, concurrency=3)
    worker.start()
    for _ in range(10 * N):
        worker.rollout_buffer.get(timeout=WAIT)
    assert max(most) <= 3


def test_stopping_cancels_what_is_under_way_and_leaves_no_thread(make_worker):
    class Endless(Box):
        async def run_async(self, code, limits=None, **_):
            self.running += 1
            self.entered.release()
            try:
                await asyncio.Event().wait()
            finally:
                self.running -= 1

    before = set(threading.enumerate())
    box = Endless()
    worker = make_worker(box=box, ahead=3 * N)
    worker.start()
    for _ in range(3 * N):
        assert box.entered.acquire(timeout=WAIT)
    assert box.running == 3 * N and set(threading.enumerate()) - before
    worker.check_health(300.0)
    worker.stop()
    assert box.running == 0 and set(threading.enumerate()) == before
    worker.stop()
    with pytest.raises(RuntimeError, match="does not run"):
        worker.check_health(300.0)


def test_stopping_ends_the_models_requests(make_worker):
    begun = threading.Event()

    class Watched(TransformersPolicy):
        async def act(self, *args):
            begun.set()
            return await super().act(*args)

    model, tokenizer = make_model(seed=0)
    policy = Watched(model, tokenizer)
    worker = make_worker(policy, rules=dataclasses.replace(RULES, max_tokens=400))
    worker.start()
    assert begun.wait(WAIT)
    worker.stop()
    until = time.monotonic() + WAIT
    while policy.batcher.pending and time.monotonic() < until:  # it leaves at the next token
        time.sleep(0.01)
    assert not policy.batcher.pending
    assert asyncio.run(TransformersPolicy.act(policy, [5, 6], [], 3, 0)).token_ids


def test_a_worker_runs_once_at_a_time_and_goes_on_after_a_stop(make_worker):
    worker = make_worker(ahead=N)
    with pytest.raises(RuntimeError, match="does not run"):
        worker.check_health(300.0)
    worker.stop()  # before it began
    worker.start()
    with pytest.raises(RuntimeError, match="runs already"):
        worker.start()
    taken(worker, N, {0})
    worker.stop()
    while not worker.rollout_buffer.empty():
        worker.rollout_buffer.get_nowait()
    worker.start()
    assert worker.rollout_buffer.get(timeout=WAIT).group_id > 0


def test_an_error_reaches_the_trainer_after_what_was_produced(make_worker):
    class Breaking(Writer):
        async def act(self, token_ids, stop, budget, seed):
            if next(calls) >= 2 * N:
                raise ValueError("the model broke")
            return await super().act(token_ids, stop, budget, seed)

    calls = itertools.count()
    worker = make_worker(Breaking(), ahead=N)
    worker.start()
    dataset = iter(trl_dataset(worker))
    assert {next(dataset)["group_id"] for _ in range(N)} == {0}
    with pytest.raises(RuntimeError, match="the model broke") as caught:
        next(dataset)
    assert type(caught.value.__cause__) is ValueError


def test_an_error_in_the_callers_function_reaches_the_trainer(make_worker):
    def refuse(number, group):
        raise OSError("disk full")

    worker = make_worker(on_group=refuse)
    worker.start()
    with pytest.raises(RuntimeError, match="disk full"):
        next(iter(trl_dataset(worker)))


@pytest.fixture
def clock(monkeypatch):
    """The worker's clock, which stands still until it is set."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, time=lambda: clock.now)
    monkeypatch.setattr(trl_async, "time", clock)
    return clock


def test_episodes_that_hang_are_told(make_worker, clock):
    box = Box(held=True)
    worker = make_worker(box=box, ahead=N)
    worker.start()
    for _ in range(N):
        assert box.entered.acquire(timeout=WAIT)
    clock.now = 299.0
    worker.check_health(300.0)
    clock.now = 301.0
    with pytest.raises(RuntimeError, match=f"nothing in 301 s, and {N} episodes are in flight$"):
        worker.check_health(300.0)
    with pytest.raises(RuntimeError, match="nothing in 301 s"):
        next(iter(trl_dataset(worker)))
    worker.update_model_version(2)  # the trainer was moving weights meanwhile
    worker.check_health(300.0)
    box.release.set()


def test_a_worker_that_waits_for_the_trainer_is_well(make_worker, clock):
    begun, go = threading.Semaphore(0), threading.Event()

    class Slow(Writer):
        async def act(self, token_ids, stop, budget, seed):
            begun.release()
            await asyncio.to_thread(go.wait, 10.0)
            return await super().act(token_ids, stop, budget, seed)

    go.set()
    policy = Slow()
    worker = make_worker(policy, ahead=N)
    worker.start()
    taken(worker, N - 1, {0})
    settled(policy)
    clock.now = 1000.0
    worker.check_health(300.0)
    go.clear()
    worker.rollout_buffer.get(timeout=WAIT)  # now there is room, and the time runs from here
    for _ in range(3 * N):
        assert begun.acquire(timeout=WAIT)
    worker.check_health(300.0)
    go.set()


def test_a_turn_that_ends_is_a_sign_of_life(make_worker, clock):
    begun, go, box = threading.Semaphore(0), threading.Event(), Box(held=True)

    class Slow(Writer):
        async def act(self, token_ids, stop, budget, seed):
            begun.release()
            await asyncio.to_thread(go.wait, 10.0)
            return await super().act(token_ids, stop, budget, seed)

    worker = make_worker(Slow(), box, ahead=N)
    worker.start()
    for _ in range(N):
        assert begun.acquire(timeout=WAIT)
    clock.now = 250.0
    go.set()
    for _ in range(N):
        assert box.entered.acquire(timeout=WAIT)
    clock.now = 500.0
    worker.check_health(300.0)
    clock.now = 551.0
    with pytest.raises(RuntimeError, match="nothing in 301 s"):
        worker.check_health(300.0)
    box.release.set()


def test_turns_that_end_are_no_sign_of_life_while_all_episodes_fail(make_worker, clock):
    box = Box(held=True)
    fails = set(range(N, 10**6))
    done = threading.Semaphore(0)
    worker = make_worker(Failing(fails), box, ahead=N, on_group=lambda *_: done.release())
    worker.start()
    for _ in range(N):
        assert box.entered.acquire(timeout=WAIT)
    clock.now = 1000.0
    box.release.set()
    taken(worker, N, {0})
    for _ in range(3):
        assert done.acquire(timeout=WAIT)
    worker.check_health(300.0)
    clock.now = 2000.0
    with pytest.raises(RuntimeError, match=r"last [1-9]\d* groups failed"):
        next(iter(trl_dataset(worker)))


def test_a_policy_that_is_gone_is_told(make_worker, clock):
    class Gone(Writer):
        async def act(self, token_ids, stop, budget, seed):
            clock.now += 50.0
            raise PolicyUnavailable("no server answers")

    worker = make_worker(Gone())
    worker.start()
    with pytest.raises(RuntimeError, match="groups failed"):
        next(iter(trl_dataset(worker)))


def test_the_environments_figures_are_those_of_all_scored_episodes(make_worker, sandbox):
    groups = {}
    worker = make_worker(box=sandbox, ahead=N, on_group=groups.__setitem__)
    worker.start()
    for _ in range(3 * N):
        worker.rollout_buffer.get(timeout=WAIT)
    worker.stop()
    figures = logged(worker)
    scored = [t for group in groups.values() for t in group]
    assert figures["env/accuracy"] == statistics.fmean(bool(t.correct) for t in scored)
    assert 0 < figures["env/accuracy"] < 1
    assert figures["env/code_ratio"] == figures["env/calls_per_episode"] == 1.0
    assert figures["env/call_pass_rate"] == 1.0 and figures["env/failed_total"] == 0.0
    assert figures["rollout/weight_lag"] == figures["rollout/weight_lag_max"] == 0.0


@pytest.mark.parametrize(("n", "ahead"), [(1, 8), (4, 3)])
def test_groups_that_cannot_be_are_refused(n, ahead):
    engine = RolloutEngine(Writer(), RULES, Box())
    with pytest.raises(ValueError, match="at least 2 rollouts"):
        EngineRolloutWorker(engine, PROBLEMS, n, ahead)


@pytest.mark.parametrize(
    ("setting", "trainers", "message"),
    [
        ({"top_p": 0.7}, 1.0, "top_p"),
        ({"temperature": 0.7}, 1.0, r"temperature 0\.7"),
        ({"temperature": 0.0}, 0.0, "above 0"),
    ],
)
def test_policies_that_cannot_be_trained_are_refused(setting, trainers, message):
    policy = Writer()
    engine = RolloutEngine(policy, RULES, Box())
    for name, value in setting.items():
        setattr(policy, name, value)
    with pytest.raises(ValueError, match=message):
        EngineRolloutWorker(engine, PROBLEMS, N, N, temperature=trainers)


def test_a_policy_of_text_cannot_be_trained():
    class Text(TextPolicy):
        async def write(self, transcript, stop, seed):
            raise AssertionError("a turn was asked for")

    engine = RolloutEngine(Text(), dataclasses.replace(RULES, max_tokens=None), Box())
    with pytest.raises(ValueError, match="of text"):
        EngineRolloutWorker(engine, PROBLEMS, N, N)


def test_weights_that_trl_streams_reach_the_policy():
    model, tokenizer = make_model(seed=0)
    adapted, _ = make_model(seed=2)
    adapted = get_peft_model(adapted, LoraConfig(r=2, init_lora_weights=False))
    adapted.merge_adapter()  # as TRL does before it streams
    sources = [make_model(seed=1)[0], copy.deepcopy(model), adapted]
    policy = TransformersPolicy(model, tokenizer)
    transfer = PolicyWeightTransfer(policy)
    transfer.init_weight_transfer()
    for number, source in enumerate(sources, 1):
        transfer.pause()
        transfer.send_weights(_iter_vllm_named_params(source))
        transfer.resume()
        assert policy.weight_version == number
        ids = torch.tensor([[5, 6, 7]])
        assert torch.equal(policy.model(ids).logits, source(ids).logits)
    with pytest.raises(ValueError, match="the model has no weight"):
        transfer.send_weights(iter([("lm_head.bias", torch.zeros(3))]))
    transfer.destroy()


def plain_attention():
    """Replaces the trainer's kernel by torch on the CPU, so that the trainer runs here."""

    def flash_attn_varlen_func(q, k, v, cu_q, cu_k, *_, softmax_scale, causal, window_size):
        outputs = []
        cu_q, cu_k = cu_q.tolist(), cu_k.tolist()
        for (a, b), (c, d) in zip(itertools.pairwise(cu_q), itertools.pairwise(cu_k), strict=True):
            seen = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
            heads = [x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d])]
            outputs.append(
                torch.nn.functional.scaled_dot_product_attention(
                    *heads, attn_mask=seen, scale=softmax_scale
                ).transpose(0, 1)
            )
        assert causal and window_size == (-1, -1)
        return torch.cat(outputs)

    return SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)


def test_trls_trainer_trains_on_the_worker(tmp_path, monkeypatch, make_worker):
    monkeypatch.setattr(packing, "_flash_attn", plain_attention)
    monkeypatch.setattr(async_grpo_trainer, "get_peak_flops_per_device", lambda *_: None)
    checkpoint = str(make_checkpoint(tmp_path / "model", seed=0))
    model, tokenizer = make_model(seed=1)  # other weights, until the trainer sends its own

    def reward(transcript: Transcript) -> float:
        return len(set(transcript.completion_ids)) / 10

    rules = Rules(max_tokens=24, prompt_template="{query}\n", reward=reward)
    groups = {}
    policy = TransformersPolicy(model, tokenizer)
    worker = make_worker(policy, ahead=2 * N, rules=rules, on_group=groups.__setitem__)
    calls = []
    for name in ("start", "stop", "update_model_version"):
        method = getattr(worker, name)
        monkeypatch.setattr(
            worker, name, lambda *a, n=name, m=method: (calls.append((n, *a)), m(*a))
        )
    trainer = AsyncGRPOTrainer(
        model=checkpoint,
        args=AsyncGRPOConfig(
            output_dir=str(tmp_path / "run"),
            max_steps=3,
            per_device_train_batch_size=2 * N,
            gradient_accumulation_steps=1,
            num_generations=N,
            token_budget=0,
            learning_rate=1e-3,
            max_staleness=4,
            report_to="none",
            bf16=False,
            use_cpu=True,
            disable_tqdm=True,
            gradient_checkpointing=False,
            save_strategy="no",
        ),
        train_dataset=problem_dataset(PROBLEMS, 60, seed=0),
        rollout_worker=worker,
        weight_transfer=PolicyWeightTransfer(policy),
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    versions = [("update_model_version", number) for number in (1, 2, 3, 4)]
    assert calls == [versions[0], ("start",), *versions[1:], ("stop",)]
    own = dict(policy.model.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(own[name], parameter) and not torch.equal(parameter, before[name])
    first, *_ = logs = [log for log in trainer.state.log_history if "kl" in log]
    assert len(logs) == 3 and all(math.isfinite(log["loss"]) for log in logs)
    # The first step's samples are the initial weights': the trainer finds the engine's log-probs.
    assert first["ratio"] == pytest.approx(1.0, abs=1e-3) and abs(first["kl"]) < 1e-5
    # Two batches of two groups: one is fetched ahead.
    rewards = [t.reward for group in list(groups.values())[:4] for t in group]
    assert first["reward"] == pytest.approx(statistics.fmean(rewards))
    assert first["env/code_ratio"] == 0.0 and first["rollout/skipped_groups_total"] == 0.0
    assert logs[-1]["sample/staleness_max"] <= 4
