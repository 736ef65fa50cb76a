"""The gate between turns and new weights."""

from __future__ import annotations

import asyncio

import pytest

from retool_env.rollout.vllm.gate import Dropped, Gate


def test_weights_change_when_turns_have_ended_and_before_others_begin():
    events: list[str] = []

    async def main():
        gate, first, over = Gate(), asyncio.Event(), asyncio.Event()

        async def turn(name: str, until: asyncio.Event | None = None):
            async with gate.request():
                events.append(f"{name} begins")
                if until:
                    first.set()
                    await until.wait()
                events.append(f"{name} ends")

        async def change():
            async with gate.change():
                events.append("change begins")
                await asyncio.sleep(0.02)
                events.append("change ends")

        tasks = [asyncio.create_task(turn("early", over))]
        await first.wait()
        tasks.append(asyncio.create_task(change()))
        await asyncio.sleep(0.01)
        tasks.append(asyncio.create_task(turn("late")))
        await asyncio.sleep(0.01)
        over.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    turn_of = [events.index(name) for name in ("early ends", "change begins")]
    assert turn_of == sorted(turn_of) and events[-2:] == ["late begins", "late ends"]


@pytest.mark.parametrize("held", ["request", "change"])
def test_what_is_cancelled_at_the_gate_shuts_nobody_out(held):
    async def main():
        gate = Gate()
        async with getattr(gate, held)():
            waiting = asyncio.create_task(_through(gate.change()))
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        async with asyncio.timeout(5):
            await _through(gate.request())
            await _through(gate.change())

    asyncio.run(main())


async def _through(passage):
    async with passage:
        pass


def test_of_two_changes_at_once_one_waits_for_the_other():
    events: list[str] = []

    async def main():
        gate, over = Gate(), asyncio.Event()

        async def change(name: str, until: asyncio.Event | None = None):
            async with gate.change():
                events.append(f"{name} begins")
                if until:
                    await until.wait()
                events.append(f"{name} ends")

        tasks = [asyncio.create_task(each) for each in (change("one", over), change("two"))]
        for _ in range(5):
            await asyncio.sleep(0)
        assert events == ["one begins"]
        over.set()
        await asyncio.gather(*tasks)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert events == ["one begins", "one ends", "two begins", "two ends"]


def test_a_turn_does_not_slip_in_between_two_changes():
    passed = []

    async def turn(gate):
        async with gate.request():
            passed.append(True)

    async def main():
        gate = Gate()
        async with gate.change():
            waiting = asyncio.create_task(turn(gate))
            await asyncio.sleep(0)
        async with gate.change():
            for _ in range(5):
                await asyncio.sleep(0)
            assert not passed
        await waiting

    asyncio.run(asyncio.wait_for(main(), 60))
    assert passed


def test_a_change_cuts_the_requests_under_way_and_drops_the_rest():
    events: list[str] = []

    async def main():
        gate, begun, answered = Gate(), asyncio.Event(), asyncio.Event()

        async def request(name: str, until: asyncio.Event):
            try:
                async with gate.request():
                    begun.set()
                    await until.wait()
                    events.append(f"{name} answered")
            except Dropped:
                events.append(f"{name} dropped")

        async def cut():
            answered.set()
            assert not await gate.ended(0.05)
            gate.drop()
            gate.drop()

        pending = asyncio.create_task(request("late", asyncio.Event()))
        tasks = [pending, asyncio.create_task(request("early", answered))]
        await begun.wait()
        await asyncio.sleep(0)
        async with gate.change(cut):
            assert not gate.requests and not gate.open
            events.append("changed")
        await asyncio.gather(*tasks)
        assert gate.open

    asyncio.run(asyncio.wait_for(main(), 60))
    assert events == ["early answered", "late dropped", "changed"]


def test_an_error_or_a_time_out_of_a_request_stays_its_own():
    async def main():
        gate = Gate()
        for error in (KeyError, TimeoutError):
            with pytest.raises(error):
                async with gate.request():
                    raise error
        assert not gate.requests

    asyncio.run(main())


@pytest.mark.parametrize("first", ["hold", "change"])
def test_a_held_gate_stays_shut_over_a_change(first):
    async def main():
        gate = Gate()
        if first == "hold":
            gate.hold()
        waiting = None
        async with gate.change():
            gate.hold()
            waiting = asyncio.create_task(_through(gate.request()))
        await gate.unchanging()
        await asyncio.sleep(0.01)
        assert not waiting.done() and not gate.open
        async with gate.change():
            gate.release()
            await asyncio.sleep(0.01)
            assert not waiting.done() and not gate.open
        await asyncio.wait_for(waiting, 5)

    asyncio.run(main())


def test_only_new_requests_are_dropped():
    async def main():
        gate, over = Gate(), asyncio.Event()

        async def request(name: str):
            try:
                async with gate.request():
                    await over.wait()
            except Dropped:
                return f"{name} dropped"
            return f"{name} answered"

        old = asyncio.create_task(request("old"))
        await asyncio.sleep(0.2)
        new = asyncio.create_task(request("new"))
        await asyncio.sleep(0)
        gate.drop(newest=0.1)
        assert await new == "new dropped" and gate.requests == 1
        over.set()
        assert await old == "old answered"

    asyncio.run(asyncio.wait_for(main(), 60))
