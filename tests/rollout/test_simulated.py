from __future__ import annotations

import asyncio
import itertools
import selectors

import numpy as np
import pytest

from agents.models.tiny import make_tokenizer
from retool_env.problems import Problem
from retool_env.protocol.tags import closing_tags
from retool_env.rollout import RolloutEngine
from retool_env.rollout.simulated import Batch, Habits, SimulatedPolicy, Speed
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import StopReason, check_transcript

STOP = closing_tags(True)
SPEED = Speed(seconds_per_token=1.0, seconds_per_row=0.5, prefill_seconds=0.0, rows=2)
"""Steps of 1 s with one row, and of 1.5 s with two."""


def run_in_leaps(coroutine):
    """Run a coroutine in a loop whose clock leaps to the next timer.

    Returns the result, and the seconds that passed on that clock.
    """

    class Leaping(selectors.DefaultSelector):
        def select(self, timeout=None):
            loop.now += timeout or 0
            return super().select(0)

    loop = asyncio.SelectorEventLoop(Leaping())
    loop.now = 0.0
    loop.time = lambda: loop.now
    try:
        return loop.run_until_complete(coroutine), loop.now
    finally:
        loop.close()


def test_rows_share_the_pace_of_the_batch():
    batch = Batch(SPEED)
    batch.add(0.0, "a", 4, 0)
    assert batch.next_end == 4
    batch.add(2.0, "b", 3, 0)  # a has 2 tokens left, and each now takes 1.5 s
    assert batch.next_end == 5 and batch.done(4.9) == [] and batch.done(5.0) == ["a"]
    assert batch.next_end == 6 and batch.done(100.0) == ["b"] and batch.next_end == np.inf


def test_ends_that_were_looked_at_late_are_where_they_were():
    batch = Batch(SPEED)
    for name, tokens in (("a", 2), ("b", 4), ("c", 1)):
        batch.add(0.0, name, tokens, 0)
    assert batch.rows == 2  # c waits for one
    # a: 2 tokens at 1.5 s; then c beside b: 1 token at 1.5 s; then b alone: 1 token at 1 s.
    assert batch.done(5.4) == ["a", "c"] and batch.next_end == 5.5 and batch.done(5.5) == ["b"]


def test_a_prefill_holds_the_whole_batch_up():
    batch = Batch(Speed(1.0, 0.5, prefill_seconds=0.1))
    batch.add(0.0, "a", 2, 10)
    assert batch.next_end == 3
    batch.add(2.0, "b", 4, 20)  # a has 1 token; both wait until 4
    assert batch.done(5.5) == ["a"] and batch.next_end == 8.5


def test_a_removed_request_costs_nothing_more():
    batch = Batch(SPEED)
    for name in "abc":
        batch.add(0.0, name, 2, 0)
    batch.remove(1.5, "a")  # c takes its row
    assert batch.done(3.0) == ["b"]
    batch.remove(3.5, "c")
    batch.remove(3.5, "b")
    assert batch.rows == 0 and batch.next_end == np.inf


def test_turns_come_when_the_speed_says():
    policy = SimulatedPolicy(make_tokenizer(), SPEED, Habits(turn_tokens=40, spread=0, calls=0))

    async def drive():
        ends = []

        async def one(prompt):
            await policy.act([prompt], STOP, 1000, 0)
            ends.append(asyncio.get_running_loop().time())

        await asyncio.gather(*(one(prompt) for prompt in range(3)))
        return ends

    ends, _ = run_in_leaps(drive())
    assert ends == pytest.approx([60, 60, 100])


def test_a_cancelled_turn_leaves_its_row():
    policy = SimulatedPolicy(make_tokenizer(), SPEED, Habits(turn_tokens=40, spread=0, calls=0))

    async def drive():
        first, second = (asyncio.create_task(policy.act([i], STOP, 1000, 0)) for i in range(2))
        await asyncio.sleep(30)
        first.cancel()
        turn = await second
        assert first.cancelled()
        return turn

    turn, seconds = run_in_leaps(drive())
    assert (
        seconds == pytest.approx(30 + 20) and turn.seconds == seconds and len(turn.token_ids) == 40
    )


def test_lengths_and_calls_are_as_stated_and_hang_on_the_seed():
    policy = SimulatedPolicy(make_tokenizer(), Speed(rows=10**6), Habits(120, 0.5, calls=2))

    async def drive():
        return await asyncio.gather(*(policy.act([1], STOP, 10**6, seed) for seed in range(4000)))

    turns, _ = run_in_leaps(drive())
    again, _ = run_in_leaps(drive())
    assert turns == again
    assert {turn.stop_reason for turn in turns} == {"tag"}
    lengths = np.array([len(turn.token_ids) for turn in turns])
    assert lengths.mean() == pytest.approx(120, rel=0.04)
    assert np.log(lengths).std() == pytest.approx(0.5, rel=0.06)
    texts = [policy.tokenizer.decode(turn.token_ids) for turn in turns]
    assert np.mean(["</code>" in text for text in texts]) == pytest.approx(2 / 3, abs=0.03)


@pytest.mark.parametrize("interpreter", [True, False])
def test_its_episodes_run_through_the_engine(interpreter):
    class Box:
        async def run_async(self, code, limits=None, **_):
            assert code.strip() == "print(6 * 7)"
            return Execution(Outcome.OK, "42\n")

    habits = Habits(50, 0.5, calls=2, program="print(6 * 7)", answer="42")
    policy = SimulatedPolicy(make_tokenizer(), Speed(1e-5, 0, 0), habits)
    rules = Rules(interpreter=interpreter, max_tokens=5000, max_calls=None)
    problems = [Problem(id=str(i), question=f"{i}?", answer="42") for i in range(64)]
    groups = RolloutEngine(policy, rules, Box() if interpreter else None).run(problems, n=4)
    transcripts = list(itertools.chain(*groups))
    for transcript in transcripts:
        check_transcript(transcript)
        assert transcript.correct and transcript.stop_reason is StopReason.ANSWERED
    calls = np.mean([len(transcript.calls) for transcript in transcripts])
    assert calls == pytest.approx(2.0 if interpreter else 0.0, abs=0.5)
    # Each prompt is read once, and after a call its result alone: no token a second time.
    assert policy.prefilled_tokens == sum(
        len(span.token_ids) for t in transcripts for span in t.spans if span.author != "model"
    )


def test_new_weights_drop_the_cache_and_mark_the_turns():
    policy = SimulatedPolicy(make_tokenizer(), Speed(1e-5, 0, 0), Habits(50, 0, calls=1e9))

    async def drive():
        first = await policy.act([5, 6, 7], STOP, 1000, 0)
        ids = [5, 6, 7, *first.token_ids, 8, 9]
        await policy.act(ids, STOP, 1000, 1)
        before = policy.prefilled_tokens
        await policy.update_weights(3)
        turn = await policy.act(ids, STOP, 1000, 1)
        return before, policy.prefilled_tokens - before, len(ids), turn.weight_version

    (before, after, ids, version), _ = run_in_leaps(drive())
    assert (before, after, version) == (3 + 2, ids, 3)


def test_a_budget_cuts_a_turn():
    policy = SimulatedPolicy(make_tokenizer(), Speed(1e-5, 0, 0), Habits(50, 0))
    turn = asyncio.run(policy.act([1], STOP, 49, 0))
    assert (len(turn.token_ids), turn.stop_reason) == (49, "length")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Speed(seconds_per_token=0),
        lambda: Speed(rows=0),
        lambda: Speed(prefill_seconds=-1),
        lambda: Habits(turn_tokens=0),
        lambda: Habits(calls=-1),
    ],
)
def test_senseless_numbers_are_refused(make):
    with pytest.raises(ValueError):
        make()
