"""Records that differ are found, and tokens that are read twice are counted."""

import dataclasses

import pytest

from agents.models.tiny import make_model
from benchmarks.parts import exactness, overlap
from benchmarks.parts.chains import (
    CHAIN_RULES,
    ChainPolicy,
    ChainTool,
    Turn,
    TurnRequest,
    make_chat_model,
    make_problems,
)
from benchmarks.parts.exactness import Recorder, must_read, shared
from retool_env.problems import Problem
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


def test_a_turn_belongs_to_one_rollout_of_its_prompt() -> None:
    """A transcript with the turn of another rollout is found, even after the same prompt."""
    model, tokenizer = make_model(0)
    recorder = Recorder(TransformersPolicy(model, tokenizer))
    rules = Rules(max_tokens=12, prompt_template="{query}", interpreter=False)
    engine = RolloutEngine(recorder, rules, None)
    first, second, third = engine.run([Problem("0", "?", "1")], n=3)[0]
    assert len({t.spans[1].token_ids for t in (first, second, third)}) == 3
    assert recorder.differing([first, second, third]) == 0
    assert recorder.differing([first, second, second]) == 1


def test_tokens_that_must_be_read_are_counted() -> None:
    prompts = [(*range(100, 120), last) for last in (1, 2)]
    requests = [
        TurnRequest(0, 0, prompts[0], (5,) * 30),
        TurnRequest(1, 0, prompts[1], (5,)),
        TurnRequest(0, 1, (*prompts[0], *(5,) * 30, 7, 8, 9), (5,)),
    ]
    # 21 of the first prompt, 1 of the second, which shares 20; then the last sampled token and 3.
    # In blocks of 16: 4 of the second prompt, and 50 - 48 of the third turn.
    whole = 21 + 21 + 54
    assert must_read(requests, 16) == {
        "once": 26,
        "incomplete_blocks": 6,
        "without_cache": whole - 26,
    }
    assert must_read(requests[::-1], 16) == must_read(requests, 16)
    assert must_read(requests, 1)["incomplete_blocks"] == 0


class CountingPolicy(SimulatedPolicy):
    """Counts the tokens that are read with a cache of complete blocks."""

    def __init__(self) -> None:
        super().__init__(CHAT, FAST, Habits(1000, spread=0))
        self.forgets = False
        self.kept = [()]
        self.read = 0

    async def act(self, token_ids, stop, budget, seed):
        ids = tuple(token_ids)
        # Kept before sampling, so that only the first of several equal contexts is read.
        found = max(shared(kept, ids) for kept in self.kept) // BLOCK * BLOCK
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
    """Replace TRL's loop, which is slow and has a test of its own."""
    monkeypatch.setattr(overlap, "run_trl", overlap.run_barrier)


def test_tokens_read_again_are_split_by_their_cause(no_trl) -> None:
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


def test_natural_sampling_has_tags_surplus_and_ends() -> None:
    policy = TransformersPolicy(*exactness.make_natural_model(0))
    found = exactness.natural(policy, problems=4, n=3)
    assert (found["episodes"], found["differ"]) == (12, 0)
    assert min(found["tag"], found["surplus"], found["eos"], found["encoding_again"]) > 0
