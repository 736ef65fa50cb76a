"""Slots go to callers in the order of their requests; none is lost or given twice."""

import asyncio
import random
import threading
import time
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.sandbox.slots import Slots

pytestmark = pytest.mark.timeout(60)


def free_slots(slots: Slots) -> int:
    """Counts by taking all, and gives them back."""
    count = 0
    while True:
        slot = slots.ask()
        if not slot.done():
            slots.give_up(slot)
            break
        count += 1
    for _ in range(count):
        slots.release()
    return count


async def spin() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@given(
    st.integers(1, 3),
    st.lists(
        st.one_of(
            st.just(("ask", 0)),
            st.just(("release", 0)),
            st.tuples(st.just("cancel"), st.integers(0, 9)),
            st.just(("spin", 0)),
        ),
        max_size=40,
    ),
)
def test_as_a_queue_would(number: int, actions: list[tuple[str, int]]) -> None:
    """Against a model with two lists: callers with a slot, and callers that wait."""

    async def play() -> None:
        slots = Slots(number)
        got: list[int] = []
        holding: list[int] = []
        waiting: list[int] = []
        expected: list[int] = []
        tasks: dict[int, asyncio.Task[None]] = {}

        def admit() -> None:
            while waiting and len(holding) < number:
                holding.append(waiting.pop(0))
                expected.append(holding[-1])

        async def ask(name: int) -> None:
            await slots.acquire_async()
            got.append(name)

        for action, index in actions:
            if action == "ask":
                await (
                    spin()
                )  # a caller with a free slot knows at once, before callers that the loop tells
                name = len(tasks)
                tasks[name] = asyncio.create_task(ask(name))
                await asyncio.sleep(0)  # it stands in the queue from here on
                waiting.append(name)
                admit()
            elif action == "release" and (there := [n for n in holding if n in got]):
                holding.remove(there[0])
                slots.release()
                admit()
            elif action == "cancel" and (undone := [n for n in tasks if not tasks[n].done()]):
                # Also a caller that has just been given a slot, and does not know yet.

                name = undone[index % len(undone)]
                tasks[name].cancel()
                await spin()
                if name in holding:
                    holding.remove(name)
                    expected.remove(name)
                else:
                    waiting.remove(name)
                admit()
            elif action == "spin":
                await spin()
            assert len(holding) <= number
        await spin()
        assert got == expected
        assert len(slots) == len(waiting)
        for task in tasks.values():
            task.cancel()
        await spin()
        for _ in holding:
            slots.release()
        assert free_slots(slots) == number

    asyncio.run(play())


def test_threads_and_loops_share_the_slots() -> None:
    """Random work with cancellations: never more slots than exist, and all slots come back."""
    number, slots = 3, Slots(3)
    counting = threading.Lock()
    inside, most, done = 0, 0, 0

    def enter() -> None:
        nonlocal inside, most, done
        with counting:
            inside += 1
            done += 1
            most = max(most, inside)

    def leave() -> None:
        nonlocal inside
        with counting:
            inside -= 1
        slots.release()

    def thread(seed: int) -> None:
        for _ in range(60):
            slots.acquire()
            enter()
            time.sleep(0.0002)
            leave()

    async def one(chance: random.Random) -> None:
        await slots.acquire_async()
        enter()
        try:
            await asyncio.sleep(chance.random() * 0.001)
        finally:
            leave()

    async def loop(seed: int) -> None:
        chance = random.Random(seed)
        tasks = [asyncio.create_task(one(chance)) for _ in range(100)]
        while not all(task.done() for task in tasks):
            chance.choice(tasks).cancel()
            await asyncio.sleep(chance.random() * 0.002)

    threads = [threading.Thread(target=thread, args=[n]) for n in range(3)]
    threads += [threading.Thread(target=lambda n=n: asyncio.run(loop(n))) for n in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(50)
    assert not any(each.is_alive() for each in threads)
    assert most == number and inside == 0 and done > 3 * 60
    assert len(slots) == 0 and free_slots(slots) == number


def test_first_come_first_served_over_threads_and_loops() -> None:
    slots, order = Slots(1), []
    slots.acquire()

    def thread(name: int) -> None:
        slots.acquire()
        order.append(name)
        slots.release()

    async def task(name: int) -> None:
        await slots.acquire_async()
        order.append(name)
        slots.release()

    threads = []
    for name in range(8):
        target = thread if name % 2 else lambda n: asyncio.run(task(n))
        threads.append(threading.Thread(target=target, args=[name]))
        threads[-1].start()
        while len(slots) <= name:
            time.sleep(0.001)
    slots.release()
    for each in threads:
        each.join(10)
    assert order == list(range(8))


def test_a_slot_given_at_the_moment_of_giving_up_is_not_lost(monkeypatch) -> None:
    """A waiting caller is cancelled while another thread is about to hand it the slot."""
    slots = Slots(1)
    slots.acquire()
    slot = slots.ask()
    giving, go_on = threading.Event(), threading.Event()
    set_result = Future.set_result

    def slowly(self: Future, result: None) -> None:
        giving.set()
        go_on.wait(5)
        set_result(self, result)

    monkeypatch.setattr(Future, "set_result", slowly)
    giver = threading.Thread(target=slots.release)
    giver.start()
    assert giving.wait(5)
    cancelled = threading.Thread(target=slots.give_up, args=[slot])
    cancelled.start()
    cancelled.join(0.2)  # it may have to wait for the other
    go_on.set()
    giver.join(5)
    cancelled.join(5)
    monkeypatch.undo()
    assert free_slots(slots) == 1
