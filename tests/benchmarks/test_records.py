"""What is counted of records and of reading: are episodes that differ found, and tokens that are read again?"""

import asyncio
import dataclasses

import pytest
import torch

from agents.models.tiny import make_model
from benchmarks.parts import exactness, overlap
from benchmarks.parts.chains import (
    CHAIN_RULES,
    Asked,
    ChainPolicy,
    ChainTool,
    Turn,
    endless,
    make_chat_model,
    make_problems,
)
from benchmarks.parts.exactness import Recorder, must_read, shared
from retool_env.problems import Problem
from retool_env.protocol.tags import closing_tags
from retool_env.rollout import RolloutEngine
from retool_env.rollout.simulated import Habits, SimulatedPolicy, Speed
from retool_env.rollout.transformers.batching import BLOCK
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.rules import Rules

CHAINS = [
    (Turn(40, 0.0), Turn(25, 0.0), Turn(20, None)),
    (Turn(30, 0.0), Turn(50, None)),
    (Turn(24, None),),
]
CHAT = make_chat_model(0)[1]
FAST = Speed(1e-6, 0, 0)


def changed(transcript, index, **changes):
    spans = list(transcript.spans)
    spans[index] = dataclasses.replace(spans[index], **changes)
    return dataclasses.replace(transcript, spans=tuple(spans))


def test_a_transcript_that_differs_is_found() -> None:
    recorder = Recorder(ChainPolicy(SimulatedPolicy(CHAT, FAST, Habits(1000, spread=0)), CHAINS))
    engine = RolloutEngine(recorder, CHAIN_RULES, ChainTool(CHAINS))
    groups = engine.run(make_problems(CHAINS))
    transcript = groups[0][0]
    assert recorder.differing([group[0] for group in groups]) == 0
    for index in range(len(transcript.spans)):
        ids = transcript.spans[index].token_ids
        other = changed(transcript, index, token_ids=(ids[0] + 1, *ids[1:]))
        assert recorder.differing([other, groups[1][0]]) == 1, index
    logprobs = (-1.0,) * len(transcript.spans[1].logprobs)
    assert recorder.differing([changed(transcript, 1, logprobs=logprobs)]) == 1


def test_rollouts_that_share_a_prompt_each_have_their_own_turn() -> None:
    """A transcript that holds another rollout's turn is found, though that was sampled after the same prompt."""
    model, tokenizer = make_model(0)
    recorder = Recorder(TransformersPolicy(model, tokenizer))
    rules = Rules(max_tokens=12, prompt_template="{query}", interpreter=False)
    engine = RolloutEngine(recorder, rules, None)
    first, second, third = engine.run([Problem("0", "?", "1")], n=3)[0]
    assert len({t.spans[1].token_ids for t in (first, second, third)}) == 3
    assert recorder.differing([first, second, third]) == 0
    assert recorder.differing([first, second, second]) == 1


def test_what_has_to_be_read_is_counted() -> None:
    prompts = [(*range(100, 120), last) for last in (1, 2)]
    asked = [
        Asked(0, 0, prompts[0], (5,) * 30),
        Asked(1, 0, prompts[1], (5,)),
        Asked(0, 1, (*prompts[0], *(5,) * 30, 7, 8, 9), (5,)),
    ]
    # 21 of a prompt, 1 of the other, whose first 20 are known; then 3, and the last that was sampled.
    # Of blocks of 16: 4 of the second prompt, and 50 - 48 of the third turn.
    whole = 21 + 21 + 54
    assert must_read(asked, 16) == {
        "once": 26,
        "incomplete_blocks": 6,
        "without_cache": whole - 26,
    }
    assert must_read(asked[::-1], 16) == must_read(asked, 16)
    assert must_read(asked, 1)["incomplete_blocks"] == 0


class CountingPolicy(SimulatedPolicy):
    """Counts what a cache of blocks saves: of what it was given, and sampled but for a turn's last token."""

    def __init__(self) -> None:
        super().__init__(CHAT, FAST, Habits(1000, spread=0))
        self.forgets = False
        self.kept = [()]
        self.read = 0

    async def act(self, token_ids, stop, budget, seed):
        ids = tuple(token_ids)
        # At once, so that of several with one beginning the first alone reads it.
        found = max(shared(each, ids) for each in self.kept) // BLOCK * BLOCK
        self.read += len(ids) - found
        if not self.forgets:
            self.kept.append(ids)
        generation = await super().act(token_ids, stop, budget, seed)
        self.prefilled_tokens = self.read
        if not self.forgets:
            self.kept.append(ids + generation.token_ids[:-1])
        return generation

    async def update_weights(self, version, weights=None) -> None:
        self.kept = [()]
        await super().update_weights(version)


@pytest.fixture
def no_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loop takes long, and is looked at elsewhere."""
    monkeypatch.setattr(overlap, "run_trl", overlap.run_barrier)


def test_what_is_read_again_beyond_incomplete_blocks_is_told_apart(no_trl) -> None:
    found = overlap.overlap(counting := CountingPolicy(), CHAINS, [1.0], rounds=1)
    assert found["exactness"][overlap.ENGINE] == {"episodes": 3, "differ": 0}
    read = found["read"]
    assert (read["block"], read["turns"]) == (BLOCK, 6)
    assert 0 < read["incomplete_blocks"] <= 6 * (BLOCK - 1)
    assert {way["beyond_incomplete_blocks"] for way in read["ways"].values()} == {0}
    counting.forgets = True
    read = overlap.overlap(counting, CHAINS, [1.0], rounds=1)["read"]
    assert {way["again"] for way in read["ways"].values()} == {read["without_cache"]}
    assert read["ways"][overlap.ENGINE]["beyond_incomplete_blocks"] > 0


def test_a_record_that_differs_is_counted(no_trl, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = exactness.take_turns
    monkeypatch.setattr(
        exactness, "take_turns", lambda t, left: taken(t, left) and t.problem.id != "1"
    )
    found = overlap.overlap(CountingPolicy(), CHAINS, [0.0, 1.0], rounds=2)["exactness"]
    assert found[overlap.ENGINE] == {"episodes": 12, "differ": 4}


def test_natural_sampling_meets_what_is_hard() -> None:
    policy = TransformersPolicy(*exactness.make_natural_model(0))
    found = exactness.natural(policy, problems=4, n=3)
    assert (found["episodes"], found["differ"]) == (12, 0)
    assert min(found["tag"], found["surplus"], found["eos"], found["encoding_again"]) > 0


def test_the_endless_model_writes_on() -> None:
    model, tokenizer = make_chat_model(0)
    ids = tokenizer.encode("episode 1", return_tensors="pt")
    with torch.no_grad():
        before = model(ids).logits
        after = endless(model, tokenizer)(ids).logits
    barred = [i for i in range(len(tokenizer)) if (after - before)[0, 0, i] < -9e3]
    texts = {tokenizer.decode([i]) for i in barred}
    assert {"<", "<|end|>", "<|im_end|>", "<tool_call>", "\n```\n</code>"} <= texts
    assert "a" not in texts and ">" not in texts and len(barred) < 30
    free = [i for i in range(len(tokenizer)) if i not in barred]
    assert torch.equal(after[..., free], before[..., free])
    policy = TransformersPolicy(model, tokenizer)
    generation = asyncio.run(policy.act(ids[0].tolist(), closing_tags(True), 300, 0))
    assert (len(generation.token_ids), generation.stop_reason) == (300, "length")
