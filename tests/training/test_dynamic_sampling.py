"""Dynamic sampling over several batches under way, with groups that end in any order."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.problems import Problem, ProblemList
from retool_env.training.dynamic_sampling import DynamicSampling, Sampled

SIZE = 3
"""Groups of a batch."""
BATCHES = 8
ASKED = [f"{number}.{index}" for number in range(BATCHES) for index in range(SIZE)]
PROBLEMS = ProblemList(Problem(id=name, question="?", answer="1") for name in ASKED)


class Run:
    """A run whose groups teach nothing, and last, as told.

    Args:
        staleness: The number of batches that are sampled ahead.
        dull: Whether the next group teaches nothing, in the order in which groups begin.
        ticks: For how many turns of the event loop the next group lasts.
    """

    def __init__(self, staleness, dull, ticks, resample=3):
        self.staleness, self.dull, self.ticks = staleness, iter(dull), iter(ticks)
        self.resample, self.first, self.ages = resample, {}, []
        self.trained = []  # the problems that the trainer asked for, in the order of training

    async def sample(self, problems, n, seed):
        place, began = tuple(seed[:2]), self.sampling.trained
        self.first.setdefault(place, problems[0].id)
        ticks, dull = next(self.ticks, 0), next(self.dull, False)
        for _ in range(ticks):
            await asyncio.sleep(0)
        group = [
            SimpleNamespace(correct=i and not dull, scored=True, stop_reason=None, reward=0.0)
            for i in range(n)
        ]
        for episode in group:
            episode.place, episode.began, episode.problem = place, began, problems[0].id
        return Sampled([group], [], 0.0)

    async def train(self, first, end, moved, last):
        """Train on the batches from `first` until `end`, of a run that has `last` batches."""
        arguments = self.sample, PROBLEMS, self.resample, "accuracy", self.staleness
        self.sampling = sampling = DynamicSampling(*arguments)
        sampling.moved = moved
        coming = iter(range(first, last))
        begun = -1
        for number in range(first, end):
            if begun < number:
                sampling.trained = number
                begun = await self.start(next(coming))
            taken, moved = await sampling.take(number)
            assert len(taken.groups) == SIZE
            for group in taken.groups:
                self.ages.append(number - group[0].began)
                self.trained.append(self.first[group[0].place])
            assert taken.carried == sum(g[0].place[0] != number for g in taken.groups)
            sampling.trained = number
            while begun < min(number + self.staleness, last - 1):
                begun = await self.start(next(coming))
        tasks = [slot.task for slot in sampling._slots]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return moved

    async def start(self, number):
        problems = [PROBLEMS.get(f"{number}.{index}") for index in range(SIZE)]
        await self.sampling.start(number, problems, 2, (number,))
        return number


@given(
    staleness=st.integers(0, 4),
    seed=st.integers(0, 10**9),
    share=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    stop=st.integers(1, BATCHES - 1),
)
def test_each_problem_is_trained_once_no_group_is_too_old_and_no_batch_waits_for_ever(
    staleness, seed, share, stop
):
    async def train():
        moved = await run.train(0, stop, {}, BATCHES)
        run.first.clear()  # the groups under way are lost with the stop
        return await run.train(stop, BATCHES, moved, BATCHES)

    chance = random.Random(seed)
    dull = [chance.random() < share for _ in range(400)]
    run = Run(staleness, dull, [chance.randint(0, 25) for _ in dull])
    assert asyncio.run(train()) == {}
    assert sorted(run.trained) == ASKED
    assert max(run.ages) <= staleness
    if staleness < 2 or not any(dull):
        assert run.trained == ASKED


def trained_in(run, batches=4):
    asyncio.run(run.train(0, batches, {}, batches))
    rows = [run.trained[i : i + SIZE] for i in range(0, len(run.trained), SIZE)]
    return [sorted(row) for row in rows]


def test_a_batch_takes_a_group_of_the_next_batch_in_place_of_a_late_replacement():
    # The first batch begins alone. Then 1 and 2 begin; the first group of 1 is dull.
    dull, ticks = [False] * 3 + [True], [0] * 3 + [1] * 6 + [40]
    rows = trained_in(Run(2, dull, ticks))
    assert rows[1] == ["1.1", "1.2", "2.0"]
    assert rows[2] == ["1.0", "2.1", "2.2"] and rows[3] == ["3.0", "3.1", "3.2"]
    own = [[f"{number}.{index}" for index in range(SIZE)] for number in range(4)]
    assert trained_in(Run(1, dull, ticks)) == own  # it would be too old in the next batch
    assert trained_in(Run(2, dull, [0] * 9 + [1])) == own  # it is in time


def test_a_first_group_is_waited_for_however_long_it_takes():
    rows = trained_in(Run(4, [], [0] * 3 + [200]))
    assert rows[1] == ["1.0", "1.1", "1.2"]


def test_an_error_in_a_later_batch_is_raised_and_ends_all_groups():
    async def sample(problems, n, seed):
        if seed[0] == 1:
            raise MemoryError("no room")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(seed)

    async def run():
        sampling = DynamicSampling(sample, PROBLEMS, 1, "accuracy", 2)
        for number in range(2):
            await sampling.start(number, [PROBLEMS[0]], 2, (number,))
        await sampling.take(0)

    ended = []
    with pytest.raises(MemoryError, match="no room"):
        asyncio.run(run())
    assert ended == [(0, 0)]


@pytest.mark.parametrize(("staleness", "kept"), [(1, "dull"), (2, "failed")])
def test_where_the_replacement_failed_the_older_group_stays_unless_it_is_too_old(staleness, kept):
    async def sample(problems, n, seed):
        scored = len(seed) == 2  # a place's first group
        episode = SimpleNamespace(correct=False, scored=scored, stop_reason=None, reward=0.0)
        return Sampled([[episode] * n], [], 0.0)

    async def run():
        sampling = DynamicSampling(sample, PROBLEMS, 2, "accuracy", staleness)
        sampling.trained = 0
        await sampling.start(1, [PROBLEMS[0]], 2, (1,))
        return (await sampling.take(1))[0].groups[0]

    assert [episode.scored for episode in asyncio.run(run())] == [kept == "dull"] * 2
