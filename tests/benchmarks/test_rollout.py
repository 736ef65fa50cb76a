"""The parts of the rollouts' benchmark: do they do what its figures are said to be of?"""

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from agents.tiny import make_model, make_tokenizer
from benchmarks import rollout
from benchmarks.chains import (
    CHAIN_RULES,
    ChainPolicy,
    ChainTool,
    ToolTimes,
    Turn,
    endless,
    make_problems,
)
from retool_env.protocol import closing_tags
from retool_env.rollout import RolloutEngine
from retool_env.rollout.simulated import Habits, SimulatedPolicy, Speed
from retool_env.rollout.transformers import TransformersPolicy

CHAINS = [
    (Turn(60, 0.05), Turn(45, 0.05), Turn(40, None)),
    (Turn(50, 0.05), Turn(70, None)),
    (Turn(44, None),),
]


def writer() -> SimulatedPolicy:
    """Writes nothing but filler, as much as it may."""
    return SimulatedPolicy(make_tokenizer(), Speed(1e-6, 0, 0), Habits(1000, spread=0))


class Logged(ChainPolicy):
    """Notes when a turn begins and ends, by the number of results before it."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.log: list[tuple[str, int]] = []

    async def act(self, token_ids, stop, budget, seed):
        turn = self.tokenizer.decode(list(token_ids)).count("<interpreter>")
        self.log.append(("begin", turn))
        generation = await super().act(token_ids, stop, budget, seed)
        self.log.append(("end", turn))
        return generation


def run_both(policy, tool):
    problems = make_problems(CHAINS)
    engine = [group[0] for group in RolloutEngine(policy, CHAIN_RULES, tool).run(problems)]
    return engine, asyncio.run(rollout.barrier(policy, CHAIN_RULES, tool, problems))


def test_engine_and_barrier_run_the_chains_as_they_are() -> None:
    for transcripts in run_both(ChainPolicy(writer(), CHAINS), ChainTool(CHAINS)):
        for chain, transcript in zip(CHAINS, transcripts, strict=True):
            turns = [span for span in transcript.spans if span.author == "model"]
            assert [len(span.token_ids) for span in turns] == [turn.tokens for turn in chain]
            results = [span for span in transcript.spans if span.execution is not None]
            times = [turn.tool_seconds for turn in chain[:-1]]
            assert [span.execution.duration for span in results] == times
            assert all(span.seconds >= 0.05 for span in results)
            assert transcript.correct


def test_the_barrier_is_one() -> None:
    uneven = [(Turn(40, seconds), Turn(40, None)) for seconds in (0.1, 0.0, 0.0)]

    class Together(ChainTool):
        begun = 0

        async def run_async(self, code, limits=None, **_):
            self.begun += 1
            while self.begun < 3:  # its programs run side by side
                await asyncio.sleep(0.001)
            return await super().run_async(code)

    policy = Logged(writer(), uneven)
    tool, problems = Together(uneven), make_problems(uneven)
    asyncio.run(asyncio.wait_for(rollout.barrier(policy, CHAIN_RULES, tool, problems), 60))
    assert policy.log == [(what, turn) for turn in (0, 1) for what in ("begin",) * 3 + ("end",) * 3]


def test_the_engine_has_none() -> None:
    """The first episode's program ends only when all others have written their second turn."""
    even = [(Turn(40, 0.0), Turn(40, None))] * 4

    class Held(ChainTool):
        async def run_async(self, code, limits=None, **_):
            while "print(0" in code and policy.log.count(("end", 1)) < 3:
                await asyncio.sleep(0.001)
            return await super().run_async(code)

    policy = Logged(writer(), even)
    RolloutEngine(policy, CHAIN_RULES, Held(even)).run(make_problems(even))
    assert policy.log[-2:] == [("begin", 1), ("end", 1)] and policy.log.count(("end", 1)) == 4


def test_a_transcript_that_differs_is_found() -> None:
    recorder = rollout.Recorder(ChainPolicy(writer(), CHAINS))
    engine = RolloutEngine(recorder, CHAIN_RULES, ChainTool(CHAINS, 0.0))
    transcript = engine.run(make_problems(CHAINS))[0][0]
    assert not recorder.differs(transcript)
    for index in range(len(transcript.spans) - 1):  # all that comes before a turn, or is one
        span = transcript.spans[index]
        other = (span.token_ids[0] + 1, *span.token_ids[1:])
        spans = list(transcript.spans)
        spans[index] = dataclasses.replace(span, token_ids=other)
        assert recorder.differs(dataclasses.replace(transcript, spans=tuple(spans))), index
    spans = list(transcript.spans)
    spans[1] = dataclasses.replace(spans[1], logprobs=(-1.0,) * len(spans[1].logprobs))
    assert recorder.differs(dataclasses.replace(transcript, spans=tuple(spans)))


def test_what_is_read_twice_is_counted() -> None:
    found = rollout.overlap(counting := CountingPolicy(), CHAINS, rounds=1)["exactness"]
    assert (found["episodes"], found["differ"]) == (3, 0)
    assert found["read"] == found["read_once"] > 0
    counting.forgets = True
    found = rollout.overlap(counting, CHAINS, rounds=1)["exactness"]
    assert found["read"] > found["read_once"]


class CountingPolicy(SimulatedPolicy):
    """Counts what a cache saves that holds every prompt, and all that was sampled but a turn's last token."""

    def __init__(self) -> None:
        super().__init__(make_tokenizer(), Speed(1e-6, 0, 0), Habits(1000, spread=0))
        self.forgets = False
        self.read, self.kept = 0, [()]

    async def act(self, token_ids, stop, budget, seed):
        ids = tuple(token_ids)
        generation = await super().act(token_ids, stop, budget, seed)
        self.read += len(ids) - max(rollout.shared(k, ids) for k in self.kept)
        if not self.forgets:
            self.kept.append(ids + generation.token_ids[:-1])
        self.prefilled_tokens = self.read
        return generation

    async def update_weights(self, version: int) -> None:
        self.kept = [()]


def test_the_endless_model_writes_on() -> None:
    model, tokenizer = make_model(0)
    ids = tokenizer.encode("episode 1", return_tensors="pt")
    with torch.no_grad():
        before = model(ids).logits
        after = endless(model, tokenizer)(ids).logits
    barred = [i for i in range(len(tokenizer)) if (after - before)[0, 0, i] < -9e3]
    texts = {tokenizer.decode([i]) for i in barred}
    assert {"<", "<|end|>", "\n```\n</code>", "}\n</answer>"} <= texts
    assert "a" not in texts and ">" not in texts and len(barred) < 20
    free = [i for i in range(len(tokenizer)) if i not in barred]
    assert torch.equal(after[..., free], before[..., free])
    policy = TransformersPolicy(model, tokenizer)
    generation = asyncio.run(policy.act(ids[0].tolist(), closing_tags(True), 300, 0))
    assert (len(generation.token_ids), generation.stop_reason) == (300, "length")


def test_a_model_that_ends_by_itself_is_refused() -> None:
    policy = SimulatedPolicy(make_tokenizer(), Speed(1e-6, 0, 0), Habits(20, spread=0))
    with pytest.raises(RuntimeError, match="by itself"):
        RolloutEngine(ChainPolicy(policy, CHAINS), CHAIN_RULES, ChainTool(CHAINS)).run(
            make_problems(CHAINS)
        )


def test_tool_times_are_checked() -> None:
    with pytest.raises(ValueError, match="median"):
        ToolTimes(3.0, 0.05, 5.0)


def test_a_barriers_programs_take_the_longest_of_each_turn() -> None:
    chains = [
        (Turn(1, 2.0), Turn(1, 1.0), Turn(1, None)),
        (Turn(1, 0.5), Turn(1, 4.0), CHAINS[2][0]),
    ]
    assert rollout.barrier_tool_seconds(chains) == 6.0


@pytest.mark.timeout(200)
def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(rollout, "TOOL_ROLLOUTS", 4)
    out = tmp_path / "rollout.json"
    few = ["--episodes", "4", "--turn-tokens", "40", "--at-once", "64", "--rounds", "1"]
    fast = ["--tool-median", "0.01", "--tool-p99", "0.05"]
    assert rollout.main([*few, *fast, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    trl, _, ours = report["tool"].values()
    assert trl["wall_s"] - trl["without_tool_s"] >= 3 * rollout.TOOL_SECONDS  # one after the other
    assert ours["wall_s"] >= rollout.TOOL_SECONDS
    seconds = report["overlap"]["seconds"]
    assert list(seconds)[-2:] == ["engine", "barrier each turn"] and min(seconds.values()) > 0
    assert report["overlap"]["exactness"]["differ"] == 0
    assert report["overhead"]["turn_us"] > 0
    assert "x the barrier's time" in capsys.readouterr().out
