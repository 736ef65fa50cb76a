"""The compared loops: each runs the given episodes, in its own order of turns and programs."""

import asyncio

import pytest

from agents.models.tiny import make_tokenizer
from benchmarks.parts import overlap
from benchmarks.parts.chains import (
    CHAIN_RULES,
    ChainPolicy,
    ChainTool,
    Turn,
    TurnRequest,
    make_chat_model,
    make_problems,
)
from retool_env.rollout import RolloutEngine
from retool_env.rollout.simulated import Habits, SimulatedPolicy, Speed

CHAINS = [
    (Turn(40, 0.05), Turn(25, 0.05), Turn(20, None)),
    (Turn(30, 0.05), Turn(50, None)),
    (Turn(24, None),),
]
CHAT = make_chat_model(0)[1]


def writer() -> SimulatedPolicy:
    """A policy that samples filler up to its budget."""
    return SimulatedPolicy(CHAT, Speed(1e-6, 0, 0), Habits(1000, spread=0))


class Logged(ChainPolicy):
    """Logs the begin and end of turns, with the number of results in the context."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.log: list[tuple[str, int]] = []

    async def act(self, token_ids, stop, budget, seed):
        turn = self.tokenizer.decode(list(token_ids)).count("<tool_response>")
        self.log.append(("begin", turn))
        generation = await super().act(token_ids, stop, budget, seed)
        self.log.append(("end", turn))
        return generation


def test_engine_and_barrier_run_the_chains_as_they_are() -> None:
    policy, tool = ChainPolicy(writer(), CHAINS), ChainTool(CHAINS)
    problems = make_problems(CHAINS)
    engine = [group[0] for group in RolloutEngine(policy, CHAIN_RULES, tool).run(problems)]
    barrier = asyncio.run(overlap.barrier(policy, CHAIN_RULES, tool, problems))
    for transcripts in (engine, barrier):
        for number, (chain, transcript) in enumerate(zip(CHAINS, transcripts, strict=True)):
            turns = [span for span in transcript.spans if span.author == "model"]
            assert [
                len(s.token_ids) - len(policy.tail(number, i)) for i, s in enumerate(turns)
            ] == [turn.tokens for turn in chain]
            results = [span for span in transcript.spans if span.execution is not None]
            times = [turn.tool_seconds for turn in chain[:-1]]
            assert [span.execution.duration for span in results] == times
            assert all(span.seconds >= 0.05 for span in results)
            assert transcript.correct


def test_the_barrier_loop_waits_for_all_turns_and_all_programs() -> None:
    uneven = [(Turn(40, seconds), Turn(40, None)) for seconds in (0.1, 0.0, 0.0)]

    class Together(ChainTool):
        def __init__(self) -> None:
            super().__init__(uneven)
            self.begun, self.all = 0, asyncio.Event()

        async def run_async(self, code, limits=None, **_):
            self.begun += 1
            if self.begun == 3:
                self.all.set()
            await self.all.wait()  # the programs of a turn run side by side
            return await super().run_async(code)

    policy, problems = Logged(writer(), uneven), make_problems(uneven)
    run = overlap.barrier(policy, CHAIN_RULES, Together(), problems)
    asyncio.run(asyncio.wait_for(run, 60))
    both = ("begin",) * 3 + ("end",) * 3
    assert policy.log == [(event, turn) for turn in (0, 1) for event in both]


def test_the_engine_has_no_barrier() -> None:
    """The first program ends only when all other episodes have ended their second turn."""
    even = [(Turn(40, 0.0), Turn(40, None))] * 4

    class Held(ChainTool):
        async def run_async(self, code, limits=None, **_):
            while "print(0" in code and policy.log.count(("end", 1)) < 3:
                await asyncio.sleep(0.001)
            return await super().run_async(code)

    policy = Logged(writer(), even)
    RolloutEngine(policy, CHAIN_RULES, Held(even)).run(make_problems(even))
    assert policy.log[-2:] == [("begin", 1), ("end", 1)] and policy.log.count(("end", 1)) == 4


def test_one_shot_generation_reads_and_samples_the_same_tokens() -> None:
    calls = []

    class Noting(SimulatedPolicy):
        async def act(self, token_ids, stop, budget, seed):
            calls.append((list(token_ids), budget))
            return await super().act(token_ids, stop, budget, seed)

    requests = [
        TurnRequest(1, 0, (7, 8), (1, 2, 3)),
        TurnRequest(0, 0, (5,), (1,)),
        TurnRequest(1, 1, (7, 8, 1, 2, 3, 90, 91), (4,)),  # a call and its result: 90, 91
    ]
    policy = Noting(make_tokenizer(), Speed(1e-6, 0, 0), Habits(1000, spread=0))
    asyncio.run(overlap.one_shot(policy, requests))
    assert calls == [([5], 1), ([7, 8, 90, 91], 4)]


def test_loops_that_run_different_episodes_are_refused() -> None:
    run = overlap.Measurement(
        1.0, [TurnRequest(0, 0, (1, 2), (9,)), TurnRequest(0, 1, (1, 2, 9, 3), (9, 9))]
    )
    drawn = overlap.Measurement(
        2.0, [TurnRequest(0, 0, (1, 2), (8,)), TurnRequest(0, 1, (1, 2, 8, 3), (7, 6))]
    )
    overlap.check_same(run, [drawn])  # only the sampled tokens differ
    for other in (
        [
            TurnRequest(0, 0, (1, 3), (9,)),
            TurnRequest(0, 1, (1, 3, 9, 3), (9, 9)),
        ],  # another prompt
        [
            TurnRequest(0, 0, (1, 2), (9,)),
            TurnRequest(0, 1, (1, 2, 9, 4), (9, 9)),
        ],  # another result
        [TurnRequest(0, 0, (1, 2), (9,)), TurnRequest(0, 1, (1, 2, 9, 3), (9,))],  # a shorter turn
        run.requests[:1],  # a missing turn
    ):
        with pytest.raises(RuntimeError, match="different episodes"):
            overlap.check_same(run, [overlap.Measurement(1.0, other)])


def test_a_barriers_programs_take_the_longest_of_each_turn() -> None:
    chains = [
        (Turn(1, 2.0), Turn(1, 1.0), Turn(1, None)),
        (Turn(1, 0.5), Turn(1, 4.0), CHAINS[2][0]),
    ]
    assert overlap.barrier_tool_seconds(chains) == 6.0
