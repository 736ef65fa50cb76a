"""Dynamic sampling: groups that teach nothing are replaced, and no batch waits for a late one.

A group of another problem takes the place of a group that teaches nothing (DAPO, arXiv 2503.14476,
section 3.2). It begins as soon as the first group has ended, and waits for no other group.

If batches are sampled ahead, groups of several batches are under way. A batch is complete once it
has enough groups: in place of a replacement that is still under way, it takes a group of a later
batch that has ended. The replacement is carried to a later batch. Each group has a batch in which
it is due, so that the age of its weights keeps the bound of `staleness`:

* a batch's own group is due in this batch,
* a replacement is due `staleness` batches after the batch with whose weights it began.

A batch takes the ended groups that are due first. It waits only if a group that is due in it is
under way, or if some later batch would have more due groups than places.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Coroutine, Sequence

import numpy as np

from retool_env.problem import Problem, ProblemSource
from retool_env.rollout.group import Group, end_tasks
from retool_env.training.rows import ResampleBy, is_trainable, teaches
from retool_env.transcript import Transcript


@dataclasses.dataclass
class Sampled:
    """The episodes that were sampled for one process's part of a batch."""

    groups: list[Group]
    """The groups that are trained on."""
    others: list[Transcript]
    """Episodes in no group that did not fail: `oversample` dropped them, or they were replaced."""
    seconds: float
    """Seconds from the first prompt to the end of the last episode."""
    resampled: int = 0
    """The number of groups that replaced groups which teach nothing."""
    carried: int = 0
    """The number of groups that began in another batch."""


@dataclasses.dataclass(eq=False)
class _Slot:
    """A place in a batch: its first group, and the groups that replace it in turn."""

    batch: int
    index: int
    problem: Problem
    due: int
    """The number of the last batch that may train on the group."""
    task: asyncio.Task[Sampled] = dataclasses.field(init=False)

    @property
    def order(self) -> tuple[int, int, int]:
        """The order in which batches take ended groups."""
        return self.due, self.batch, self.index


Moved = dict[tuple[int, int], str]
"""Ids of problems, by batch and index of the places that they take."""

Sample = Callable[[Sequence[Problem], int, Sequence[int]], Coroutine[None, None, Sampled]]
"""Runs groups: gets the problems, the rollouts a problem, and the seed."""


class DynamicSampling:
    """The groups under way of all batches that one process has begun.

    Its coroutines must all run in one event loop.

    Args:
        sample: Runs groups.
        problems: The problems of which replacements are drawn.
        resample: The largest number of times that a group is replaced.
        resample_by: The test for a group that teaches nothing.
        staleness: The number of batches that are sampled ahead.
    """

    def __init__(
        self,
        sample: Sample,
        problems: ProblemSource,
        resample: int,
        resample_by: ResampleBy,
        staleness: int,
    ) -> None:
        self._sample = sample
        self._problems = problems
        self._resample = resample
        self._by = resample_by
        self._staleness = staleness
        self.trained = 0
        """The number of the batch whose weights the policy samples with. The caller sets it."""
        self.moved: Moved = {}
        """Problems for places of batches that have not begun, by batch and index. In an earlier
        start of the run, the groups of these places took the places of these problems. A place
        leaves the mapping when its batch begins."""
        self._slots: list[_Slot] = []
        self._sizes: dict[int, int] = {}
        self._began: dict[int, float] = {}
        self._early: set[tuple[int, int]] = set()

    @property
    def begun(self) -> bool:
        """Whether a batch has begun."""
        return bool(self._began)

    async def start(
        self, number: int, problems: Sequence[Problem], n: int, seed: Sequence[int]
    ) -> None:
        """Begin a batch.

        Args:
            number: The number of the batch.
            problems: The problems of its places.
            n: Rollouts a problem.
            seed: The seed of the batch.
        """
        self._began[number], self._sizes[number] = time.monotonic(), len(problems)
        for index, problem in enumerate(problems):
            if (moved := self.moved.pop((number, index), None)) is not None:
                problem = self._problems.get(moved)
            slot = _Slot(number, index, problem, number)
            slot.task = asyncio.create_task(self._teaching_group(slot, n, (*seed, index)))
            self._slots.append(slot)

    async def take(self, number: int) -> tuple[Sampled, Moved]:
        """Wait until a batch is complete. Batches must be taken in their order.

        Args:
            number: The number of the batch, which has begun.

        Returns:
            The batch, and the mapping `moved` for a run that is resumed after it.
        """
        try:
            while (chosen := self._complete(number)) is None:
                waiting = [slot.task for slot in self._slots if not slot.task.done()]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await end_tasks(slot.task for slot in self._slots)
            raise
        for slot in chosen:
            self._slots.remove(slot)
            self._early.add((slot.batch, slot.index))
        self._early = {each for each in self._early if each[0] > number}
        late = sorted(
            (slot for slot in self._slots if slot.batch <= number), key=lambda slot: slot.order
        )
        names = (slot.problem.id for slot in late)
        moved = self.moved | dict(zip(sorted(self._early), names, strict=True))
        chosen.sort(key=lambda slot: (slot.batch, slot.index))  # as if none had been replaced
        results = [slot.task.result() for slot in chosen]
        sampled = Sampled(
            [group for each in results for group in each.groups],
            [episode for each in results for episode in each.others],
            time.monotonic() - self._began[number],
            sum(each.resampled for each in results),
            sum(slot.batch != number for slot in chosen),
        )
        return sampled, moved

    async def ended(self) -> None:
        """Wait until no group is under way."""
        await asyncio.gather(*(slot.task for slot in self._slots))

    def _complete(self, number: int) -> list[_Slot] | None:
        """The groups of a batch; `None` if it must wait. An error of any group is raised."""
        slots = sorted(self._slots, key=lambda slot: slot.order)
        ended = [slot for slot in slots if slot.task.done()]
        for slot in ended:
            slot.task.result()
        chosen = ended[: self._sizes[number]]
        left = [slot.due for slot in slots if slot not in chosen]
        for due in {*left}:
            room = sum(size for batch, size in self._sizes.items() if number < batch <= due)
            if sum(each <= due for each in left) > room:
                return None
        return chosen

    async def _teaching_group(self, slot: _Slot, n: int, seed: tuple[int, ...]) -> Sampled:
        """Run a group, and in its place groups of other problems until one teaches something.

        If none does, the newest group stays that can be trained on. An older one does not stay if
        it would be too old in the batch that takes the place.
        """
        chosen = await self._sample([slot.problem], n, seed)
        chance = np.random.default_rng(seed)
        for turn in range(1, self._resample + 1):
            [group] = chosen.groups
            if teaches(group, self._by):
                break
            other = self._problems[int(chance.integers(len(self._problems)))]
            due, slot.due = slot.due, max(slot.due, self.trained + self._staleness)
            # Longer than the seed of any batch's group, so that it differs from all of them.
            fresh = await self._sample([other], n, (*seed, turn, 0, 0))
            [replaced] = fresh.groups
            if any(map(is_trainable, replaced)) or slot.due > due:
                group, replaced = replaced, group
            others = chosen.others + fresh.others + [t for t in replaced if t.scored]
            chosen = Sampled([group], others, 0.0, turn)
        return chosen
