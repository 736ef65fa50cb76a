"""The rollouts of one problem: which are kept, which are dropped, and how one is cut."""

from __future__ import annotations

import asyncio

import pytest

from retool_env.episode import Episode
from retool_env.problems import Problem
from retool_env.rollout.admission import Admission
from retool_env.rollout.group import Rollout, end_tasks, first_finished
from retool_env.rules import Rules
from retool_env.transcript import StopReason, Transcript

RULES = Rules(prompt_template="{query}\n")
ANSWERED, FAILED = StopReason.ANSWERED, StopReason.INFRASTRUCTURE


def episode(name: str) -> Episode:
    return Episode(Problem(name, "6 * 7?", "42"), RULES)


def rollout(name: str, end: StopReason | None, admission: Admission | None = None) -> Rollout:
    """A rollout that ends at once for this reason; `None`: it runs until it is cut."""

    async def play(on_begin) -> Transcript:
        begun = episode(name)
        on_begin(begun)
        if end is None:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        if end is ANSWERED:
            begun.act("<answer>42</answer>")
            begun.graded(True)
        else:
            begun.cut(end)
        return begun.transcript

    return Rollout(admission or Admission(9), lambda: episode(name), play, lambda: 0)


def names(transcripts: list[Transcript]) -> list[str]:
    return [transcript.problem.id for transcript in transcripts]


@pytest.mark.parametrize(
    ("ends", "kept"),
    [
        ((None, ANSWERED, ANSWERED), ["1", "2"]),
        ((FAILED, ANSWERED, ANSWERED), ["1", "2"]),
        ((FAILED, FAILED, ANSWERED), ["0", "2"]),
        ((FAILED, StopReason.CANCELLED, FAILED), ["0", "1"]),
    ],
)
def test_the_first_to_finish_are_kept_in_order_and_failures_only_for_want(ends, kept):
    async def main():
        dropped: list[Transcript] = []
        rollouts = [rollout(str(i), end) for i, end in enumerate(ends)]
        group = await first_finished(rollouts, 2, dropped.append)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return group, dropped

    group, dropped = asyncio.run(main())
    assert names(group) == kept
    assert names(dropped) == [name for name in "012" if name not in kept]


def test_a_rollout_that_never_began_is_not_reported_as_dropped():
    async def main():
        admission, dropped = Admission(1), []
        rollouts = [rollout(str(i), end, admission) for i, end in enumerate((ANSWERED, None, None))]
        group = await first_finished(rollouts, 1, dropped.append)
        return group, dropped, [started.begun for started in rollouts]

    group, dropped, begun = asyncio.run(main())
    assert names(group) == ["0"] and begun[0]
    assert names(dropped) == [str(i) for i in (1, 2) if begun[i]] and not all(begun)


def test_a_cut_rollout_gives_the_record_of_its_episode():
    async def main():
        running, late = rollout("running", None), rollout("late", ANSWERED)
        task = asyncio.create_task(running.run())
        while not running.begun:
            await asyncio.sleep(0)
        running.cut()
        late.cut()
        return await task, await late.run()

    transcripts = asyncio.run(main())
    assert names([*transcripts]) == ["running", "late"]
    assert {transcript.stop_reason for transcript in transcripts} == {StopReason.CANCELLED}


def test_a_cancellation_from_outside_is_not_a_cut():
    async def main():
        running = rollout("running", None)
        task = asyncio.create_task(running.run())
        while not running.begun:
            await asyncio.sleep(0)
        await end_tasks([task])
        assert task.cancelled()

    asyncio.run(main())
