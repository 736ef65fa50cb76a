"""Whole runs with a real model: equal seeds give equal episodes, and no token is computed twice."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random

import pytest
import torch

from agents.models.tiny import make_model
from benchmarks.parts.chains import endless
from retool_env.episode import Episode, Generation
from retool_env.problems import Problem
from retool_env.rollout import RolloutEngine
from retool_env.rollout.transformers.batching import BLOCK
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import check_transcript

RULES = Rules(max_tokens=150, max_calls=2, prompt_template="Question {query}\n", void_turn="end")
PROBLEMS = [Problem(str(i), f"{i} and " * (i % 3 + 1), "1") for i in range(5)]


@pytest.fixture(scope="module")
def tiny():
    """A model that writes no tags by itself."""
    model, tokenizer = make_model(seed=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine several would mostly wait for each other
    yield endless(model.eval(), tokenizer), tokenizer
    torch.set_num_threads(threads)


class Calling(TransformersPolicy):
    """Adds a tag to each turn of the model: a call after fewer than two results, else an answer.

    A random model makes no calls. The tag has the log-prob 0, since it is certain.
    """

    async def act(self, token_ids, stop, budget, seed) -> Generation:
        length = random.Random(seed).randrange(4, 20)
        turn = await super().act(token_ids, (), min(length, budget), seed)
        results = self.tokenizer.decode(token_ids).count("<interpreter>")
        tail = "<code>1</code>" if results < 2 else "<answer>1</answer>"
        ids = self.tokenizer.encode(tail)
        logprobs = (*turn.logprobs, *[0.0] * len(ids))
        return Generation((*turn.token_ids, *ids), logprobs, "tag", 0.0, turn.weight_version)


class Tool:
    """Prints the requested number of ones, after a pause that differs from call to call."""

    def __init__(self, seed: int = 0) -> None:
        self.chance = random.Random(seed)

    async def run_async(self, code, limits=None, **_) -> Execution:
        await asyncio.sleep(self.chance.random() / 200)
        return Execution(Outcome.OK, "1" * 20 + "\n")


def rollouts(tiny, seed=3, concurrency=256, max_batch=128, tool_seed=0, tokens_in_flight=None):
    policy = Calling(*tiny, max_batch=max_batch)
    engine = RolloutEngine(policy, RULES, Tool(tool_seed), concurrency, tokens_in_flight)
    return [t for group in engine.run(PROBLEMS, n=2, seed=seed) for t in group]


def test_a_seed_gives_the_same_transcripts_however_they_interleave(tiny):
    first = rollouts(tiny)
    assert {len(t.calls) for t in first} == {2}
    assert len({tuple(t.completion_ids) for t in first}) == len(first) == 10
    for other in (
        rollouts(tiny, tool_seed=1),
        rollouts(tiny, concurrency=1),
        rollouts(tiny, max_batch=3, tool_seed=2),
        rollouts(tiny, tokens_in_flight=500),
    ):
        for a, b in zip(first, other, strict=True):
            assert a.prompt_ids == b.prompt_ids and a.completion_ids == b.completion_ids
            assert a.loss_mask == b.loss_mask and a.text == b.text and a.reward == b.reward
            # The order of sums, and with it the last digits, depends on the rest of the batch.
            assert a.logprobs == pytest.approx(b.logprobs, abs=2e-4)


def test_another_seed_gives_other_transcripts(tiny):
    first = rollouts(tiny)
    for seed in (4, (3, 0)):
        pairs = zip(first, rollouts(tiny, seed), strict=True)
        assert not any(a.completion_ids == b.completion_ids for a, b in pairs)


def test_each_turn_tells_the_weights_that_sampled_it(tiny):
    """The weights change while programs run: each turn has the version of the weights it used."""
    policy = Calling(*tiny)
    versions = itertools.count(7)

    class Updating(Tool):
        def __init__(self):
            self.all_here, self.waiting = asyncio.Condition(), 0

        async def run_async(self, code, limits=None, **_) -> Execution:
            async with self.all_here:
                self.waiting += 1
                if self.waiting % 6 == 0:
                    await policy.update_weights(next(versions))
                    self.all_here.notify_all()
                else:
                    await self.all_here.wait()
            return Execution(Outcome.OK, "1\n")

    async def drive():
        await policy.update_weights(5)
        engine = RolloutEngine(policy, RULES, Updating())
        return [t async for _, group in engine.groups(PROBLEMS[:2], n=3) for t in group]

    transcripts = asyncio.run(asyncio.wait_for(drive(), 60))
    assert len(transcripts) == 6
    for transcript in transcripts:
        check_transcript(transcript)
        versions_of = [s.weight_version for s in transcript.spans if s.author == "model"]
        assert versions_of == [5, 7, 8] and transcript.weight_version == 5


def test_an_episode_is_of_the_version_that_sampled_its_first_turn(tiny):
    """The version at the beginning of the episode does not matter."""
    policy = Calling(*tiny)

    class Late(Calling):
        def __init__(self):
            self.__dict__.update(policy.__dict__)

        async def act(self, token_ids, stop, budget, seed):
            if self.weight_version == 0:
                await self.update_weights(4)
            return await super().act(token_ids, stop, budget, seed)

    [[transcript]] = RolloutEngine(Late(), RULES, Tool()).run(PROBLEMS[:1])
    assert transcript.weight_version == 4


def test_a_group_reads_its_prompt_once_and_after_a_call_nothing_but_what_is_new(tiny):
    """Incomplete blocks are computed again: the prompt's last block, and one in each turn."""
    policy = Calling(*tiny)
    rules = Rules(
        max_tokens=400, prompt_template="Question {query}\n" + "which is long " * 12 + "\n"
    )
    n = 6
    engine = RolloutEngine(policy, rules, Tool(), concurrency=n)
    [group] = engine.run(PROBLEMS[:1], n=n)
    prompt = len(group[0].prompt_ids)
    assert prompt > 8 * BLOCK and all(len(t.calls) == 2 for t in group)

    def complete(tokens: int) -> int:
        return tokens // BLOCK * BLOCK

    # At the end of a turn the model's tokens are in the cache, except the last; the tag is not.
    expected, least = prompt + (n - 1) * (prompt - complete(prompt - 1)), prompt
    for transcript in group:
        at = prompt
        for model, env in itertools.batched(transcript.response[:-1], 2):
            sampled = sum(p != 0.0 for p in model.logprobs)
            following = at + len(model.token_ids) + len(env.token_ids)
            expected += following - complete(at + sampled - 1)
            least += following - (at + sampled - 1)
            at = following
    assert policy.prefilled_tokens == expected
    assert expected - least < BLOCK * (n - 1 + 2 * n)


class Greedy(Calling):
    """Chooses the likeliest tokens; the length of a turn follows from its context, not its seed."""

    async def act(self, token_ids, stop, budget, seed) -> Generation:
        return await super().act(token_ids, stop, budget, len(token_ids))


def test_a_greedy_fork_with_the_true_result_is_its_parent_token_for_token(tiny):
    """Float32: the tiny model has no other weights."""
    model, tokenizer = tiny
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    rules = dataclasses.replace(RULES, max_calls=3)
    parents = [
        group[0]
        for group in RolloutEngine(Greedy(model, tokenizer, temperature=0.0), rules, Tool()).run(
            PROBLEMS[:3]
        )
    ]
    # A new policy has an empty cache, and computes the whole prefix anew.
    engine = RolloutEngine(Greedy(model, tokenizer, temperature=0.0), rules, Tool())
    for parent in parents:
        assert len(parent.calls) == 2
        for call in (1, 2):
            for fork in engine.fork(parent, call, n=2, seed=99):
                check_transcript(fork)
                assert fork.completion_ids == parent.completion_ids
                assert fork.loss_mask == parent.loss_mask and fork.reward == parent.reward
                assert fork.logprobs == pytest.approx(parent.logprobs, abs=2e-4)
                assert fork.spans[: 2 * call + 1] == parent.spans[: 2 * call + 1]


def test_sampled_forks_of_one_prefix_differ_after_it(tiny):
    [[parent]] = RolloutEngine(Calling(*tiny), RULES, Tool()).run(PROBLEMS[:1])
    group = RolloutEngine(Calling(*tiny), RULES, Tool()).fork(parent, 1, n=4)
    prefix = sum(len(span.token_ids) for span in parent.spans[1:3])
    assert len({tuple(fork.completion_ids[:prefix]) for fork in group}) == 1
    assert len({tuple(t.completion_ids[prefix:]) for t in (parent, *group)}) == 5
    # The log-probs of the prefix are the recorded ones, not new ones.
    assert all(fork.logprobs[:prefix] == parent.logprobs[:prefix] for fork in group)


def test_an_episode_of_a_real_model_resumed_after_any_span_is_the_same_episode(tiny):
    """The remaining turns are the recorded tokens, so nothing is sampled anew."""
    [[whole]] = RolloutEngine(Calling(*tiny), RULES, Tool()).run(PROBLEMS[:1])
    for end in range(1, len(whole.spans)):
        episode = Episode(whole.problem, RULES, tiny[1], weight_version=0)
        episode.resume(whole.spans[:end])
        for span in whole.spans[end:]:
            if span.author == "env":
                episode.executed(span.execution, recorded=True)
            else:
                ids, logprobs = span.token_ids, span.logprobs
                version = span.weight_version
                episode.act_ids(Generation(ids, logprobs, "tag", weight_version=version))
        episode.graded(True)
        assert episode.transcript == whole and end < len(whole.spans)
