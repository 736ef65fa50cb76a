"""Admission: bounds that hold, first come, first served, and room that is always given back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.rollout.admission import Admission


class Guest:
    """A task that stays admitted until it is released."""

    def __init__(self, admission: Admission, size: int) -> None:
        self.size = size
        self.inside = False
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit(admission))

    async def _visit(self, admission: Admission) -> None:
        room = await admission.enter(lambda: self.size)
        self.inside = True
        try:
            await self.leave.wait()
        finally:
            self.inside = False
            admission.leave(room)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_bound_that_rises_by_itself_lets_the_next_in(monkeypatch):
    monkeypatch.setattr("retool_env.rollout.admission._LOOK_SECONDS", 0.01)
    bound, asked = [10], []

    def admits(tokens: float) -> bool:
        asked.append(tokens)
        return tokens <= bound[0]

    async def drive():
        admission = Admission(9, None, admits)
        guests = [Guest(admission, size) for size in (20, 5, 5)]  # the first one runs alone
        await settled()
        assert [guest.inside for guest in guests] == [True, False, False] and 25 in asked
        bound[0] = 26
        while not guests[1].inside:
            await asyncio.sleep(0.01)
        assert not guests[2].inside
        guests[0].leave.set()
        while not guests[2].inside:
            await asyncio.sleep(0.01)
        for guest in guests:
            guest.leave.set()
        await asyncio.gather(*(guest.task for guest in guests))
        assert admission.tokens == 0

    asyncio.run(asyncio.wait_for(drive(), 20))


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.integers(1, 14)),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
    ),
    max_size=40,
)


@given(events=EVENTS, episodes=st.integers(1, 4), tokens=st.sampled_from([None, 1, 7, 10]))
def test_any_order_of_comings_and_goings(events, episodes, tokens):
    """After each event exactly those guests are inside that a queue with these bounds admits."""

    async def drive():
        admission = Admission(episodes, tokens)
        inside: list[Guest] = []
        queue: list[Guest] = []

        def room(guest: Guest) -> int:
            return guest.size if tokens is None else min(guest.size, tokens)

        for event, number in events:
            there = inside if event == "leave" else [*inside, *queue]
            if event == "come":
                queue.append(Guest(admission, number))
            elif there:
                guest = there[number % len(there)]
                (inside if guest in inside else queue).remove(guest)
                if event == "leave":
                    guest.leave.set()
                else:
                    guest.task.cancel()
            while queue and len(inside) < episodes:
                if tokens is not None and sum(map(room, inside)) + room(queue[0]) > tokens:
                    break
                inside.append(queue.pop(0))
            await settled()
            assert all(guest.inside for guest in inside)
            assert not any(guest.inside for guest in queue)
            assert admission.episodes == len(inside) <= episodes
            assert admission.tokens == sum(map(room, inside))
        while inside or queue:
            for guest in inside:
                guest.leave.set()
            await settled()
            inside, queue = [g for g in queue if g.inside], [g for g in queue if not g.inside]
        assert admission.episodes == admission.tokens == 0

    asyncio.run(asyncio.wait_for(drive(), 60))


def test_one_that_is_larger_than_all_room_runs_alone_and_is_not_passed_by():
    async def drive():
        admission = Admission(10, 100)
        small, giant, late = (Guest(admission, size) for size in (5, 1000, 5))
        await settled()
        assert (small.inside, giant.inside, late.inside) == (True, False, False)
        small.leave.set()
        await settled()
        assert (giant.inside, late.inside) == (True, False)
        giant.leave.set()
        await settled()
        assert late.inside
        late.leave.set()
        await late.task

    asyncio.run(asyncio.wait_for(drive(), 60))


def test_an_error_while_the_size_is_asked_for_shuts_nobody_out():
    def wrong() -> int:
        raise ValueError("no such template")

    async def drive():
        admission = Admission(1, 10)
        with pytest.raises(ValueError, match="template"):
            await admission.enter(wrong)
        assert await admission.enter(lambda: 10) == admission.tokens == 10

    asyncio.run(asyncio.wait_for(drive(), 60))
