"""Group: the rollouts of one problem, of which the first to finish are kept.

A rollout waits for admission, runs an episode, and can be cut at any moment. A group runs its
rollouts at once and ends the rest as soon as enough of them have finished.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

from retool_env.episode import Episode, GradeAnswer
from retool_env.rollout.admission import Admission
from retool_env.transcript import StopReason, Transcript, check_transcript

Group = list[Transcript]
"""The transcripts of all kept rollouts of one problem."""

_RANKS: dict[StopReason | None, int] = {StopReason.CANCELLED: 1, StopReason.INFRASTRUCTURE: 2}


class Rollout:
    """One rollout of a group. It can be cut at any moment.

    Args:
        admission: The bound on episodes and tokens in flight.
        begin: Makes the episode of a rollout that is cut before its first attempt begins.
        play: Runs the episode to its end. It calls its argument with the episode of each attempt.
        size: Returns the most tokens to which the episode may grow.
    """

    def __init__(
        self,
        admission: Admission,
        begin: Callable[[], Episode],
        play: Callable[[Callable[[Episode], None]], Awaitable[Transcript]],
        size: Callable[[], int],
    ) -> None:
        self._admission = admission
        self._begin = begin
        self._play = play
        self._size = size
        self._episode: Episode | None = None
        self._task: asyncio.Task[Any] | None = None
        self._late = False

    async def run(self) -> Transcript:
        """Run the episode to its end, or until `cut`.

        Returns:
            The transcript. Its stop reason is `StopReason.CANCELLED` if the rollout was cut.
        """
        self._task = asyncio.current_task()
        try:
            if self._late:
                raise asyncio.CancelledError
            room = await self._admission.enter(self._size)
            try:
                return await self._play(self._on_begin)
            finally:
                self._admission.leave(room)
        except asyncio.CancelledError:
            if not self._late:
                raise
            episode = self._episode or self._begin()
            episode.cut(StopReason.CANCELLED)
            return checked_transcript(episode)

    @property
    def begun(self) -> bool:
        """Whether the episode has begun."""
        return self._episode is not None

    def cut(self) -> None:
        """End the episode at its current state. An answer that has been given is graded first."""
        self._late = True
        answered = self._episode is not None and isinstance(self._episode.need, GradeAnswer)
        if self._task is not None and not answered:
            self._task.cancel()

    def _on_begin(self, episode: Episode) -> None:
        self._episode = episode


async def first_finished(
    rollouts: Sequence[Rollout], n: int, on_dropped: Callable[[Transcript], None] | None
) -> Group:
    """Run rollouts at once, and keep the first `n` to finish.

    Rollouts that failed or were cut are kept only if fewer than `n` rollouts finished by
    themselves.

    Args:
        rollouts: The rollouts of one problem, at least `n`.
        n: The number of rollouts to keep.
        on_dropped: Called with the transcript of each dropped rollout that had begun. `None`:
            dropped rollouts are cancelled without a record.

    Returns:
        The transcripts of the kept rollouts, in the order of `rollouts`.
    """
    tasks = {asyncio.create_task(rollout.run()): i for i, rollout in enumerate(rollouts)}
    finished: list[tuple[int, int, Transcript]] = []
    pending = set(tasks)
    try:
        while pending and sum(rank == 0 for rank, _, _ in finished) < n:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                transcript = task.result()
                rank = _RANKS.get(transcript.stop_reason, 0)
                finished.append((rank, tasks[task], transcript))
        finished.sort(key=lambda entry: entry[:2])
        kept = {number: transcript for _, number, transcript in finished[:n]}
        if on_dropped is not None:
            for task in pending:
                rollouts[tasks[task]].cut()
            await asyncio.gather(*pending)
            for task, number in tasks.items():
                if number not in kept and rollouts[number].begun:
                    on_dropped(task.result())
    finally:
        await end_tasks(tasks)
    return [kept[number] for number in sorted(kept)]


async def as_completed[T](
    rollouts: Sequence[Sequence[Rollout]],
    run: Callable[[int], Coroutine[Any, Any, T]],
    deadline: float | None,
) -> AsyncGenerator[T]:
    """Run groups of rollouts at once, and yield the results of the groups as they complete.

    Args:
        rollouts: The rollouts, by group.
        run: Runs the group of an index.
        deadline: The seconds after which all rollouts are cut; `None`: no deadline.
    """

    def cut() -> None:
        for rollout in itertools.chain(*rollouts):
            rollout.cut()

    tasks = [asyncio.create_task(run(index)) for index in range(len(rollouts))]
    timer = None if deadline is None else asyncio.get_running_loop().call_later(deadline, cut)
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        if timer is not None:
            timer.cancel()
        await end_tasks(tasks)


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they have ended."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def checked_transcript(episode: Episode) -> Transcript:
    """The transcript of an episode, checked, with the weight version of its first sampled turn.

    Raises:
        ValueError: If the transcript breaks an invariant (see `check_transcript`).
    """
    transcript = episode.transcript
    sampled = [span.weight_version for span in transcript.spans if span.author == "model"]
    if sampled and sampled[0] is not None:
        transcript = dataclasses.replace(transcript, weight_version=sampled[0])
    check_transcript(transcript)
    return transcript
