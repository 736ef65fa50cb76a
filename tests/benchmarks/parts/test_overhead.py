"""The engine's overhead: episodes are alive at once, and objects are new."""

import asyncio

import pytest

from benchmarks.parts import overhead
from benchmarks.parts.overhead import InstantPolicy, MeetingTool, WaitingTool
from retool_env.rollout import RolloutEngine
from retool_env.transcript import StopReason


def test_all_episodes_are_alive_at_once() -> None:
    """All episodes ask for their first turn before an episode gets its second."""
    seen = []

    class Noting(InstantPolicy):
        async def act(self, token_ids, stop, budget, seed):
            seen.append(len(token_ids))
            return await super().act(token_ids, stop, budget, seed)

    overhead.run(50, policy := Noting(2, True), WaitingTool(0.0))
    assert policy.peak == 50
    assert seen == sorted(seen) and len(seen) == 150  # turn by turn


def test_a_run_whose_episodes_were_not_alive_at_once_is_refused(monkeypatch) -> None:
    def narrow(*args, concurrency):
        return RolloutEngine(*args, concurrency=concurrency // 2)

    monkeypatch.setattr(overhead, "RolloutEngine", narrow)
    with pytest.raises(RuntimeError, match="only 10 of 20 episodes were alive"):
        overhead.run(20, InstantPolicy(1, False), WaitingTool(0.0))


@pytest.mark.parametrize(
    ("answers", "reason"), [(True, StopReason.ANSWERED), (False, StopReason.STOPPED)]
)
def test_an_instant_episode_is_as_stated(answers: bool, reason: StopReason) -> None:
    policy = InstantPolicy(3, answers, first=200)
    transcript = overhead.run(4, policy, WaitingTool(0.0))[2]
    assert (len(transcript.calls), transcript.stop_reason) == (3, reason)
    lengths = [len(span.token_ids) for span in transcript.spans if span.author == "model"]
    assert lengths == [200, overhead.TURN, overhead.TURN, overhead.TURN if answers else 1]


def test_each_turns_ids_and_log_probs_are_its_own() -> None:
    """As a sampler's are: their memory is an episode's, not all episodes'."""
    policy = InstantPolicy(1, False)

    async def two():
        return [await policy.act([1], (), 100, 0) for _ in range(2)]

    one, other = asyncio.run(two())
    assert one.token_ids == other.token_ids and one.token_ids is not other.token_ids
    large = [
        i for i, token in enumerate(one.token_ids) if token > 256
    ]  # smaller ones Python shares
    assert len(large) > overhead.TURN / 2
    assert all(one.token_ids[i] is not other.token_ids[i] for i in large)
    assert all(a is not b for a, b in zip(one.logprobs, other.logprobs, strict=True))


def test_memory_is_looked_at_while_all_programs_run() -> None:
    meeting = MeetingTool(30)
    overhead.run(30, InstantPolicy(1, False), meeting)
    assert meeting.missing == 0 and meeting.megabytes > 0
