"""Every episode is accounted for: failed, cut by a deadline, or dropped from a group."""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections import Counter

import pytest

from agents.models.tiny import make_tokenizer
from retool_env.episode import Generation
from retool_env.problems import Problem
from retool_env.rollout import PolicyUnavailable, RolloutEngine, ScriptedPolicy, engine
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import StopReason, check_transcript

RULES = Rules(max_tokens=200, prompt_template="{query}\n")
CANCELLED, FAILED = StopReason.CANCELLED, StopReason.INFRASTRUCTURE


def problems(count: int) -> list[Problem]:
    return [Problem(str(i), f"{i} * 7?", str(i * 7)) for i in range(count)]


# --- failures -----------------------------------------------------------------------------------


STEPS = ("first turn", "program", "second turn")


def fate(seed: int) -> list[str]:
    """The step at which each attempt at an episode fails, by the seed of its first turn."""
    chance = random.Random(seed)
    return [chance.choice(STEPS) for _ in range(chance.choices((0, 1, 2), (70, 20, 10))[0])]


class Fated(ScriptedPolicy):
    """Multiplies with a program that names its episode, and fails according to `fate`."""

    def __init__(self) -> None:
        super().__init__(self.solve, make_tokenizer())
        self.begun: Counter[int] = Counter()
        self.sampled: dict[int, set[int]] = {}
        self.current = 0

    def solve(self, text: str) -> str:
        if "<interpreter>" in text:
            return f"<answer>{text.split('<interpreter>')[1].split('<')[0].strip()}</answer>"
        return f"<code>\nprint({text.split('?')[0]}) # {self.current}\n</code>"

    def fails(self, key: int, step: str) -> bool:
        attempt = self.begun[key] - 1
        return fate(key)[attempt : attempt + 1] == [step]

    async def act(self, token_ids, stop, budget, seed) -> Generation:
        named = re.search(r"# (\d+)", self.tokenizer.decode(token_ids))
        key = int(named[1]) if named else seed
        self.begun[key] += not named
        self.sampled.setdefault(key, set()).add(seed)
        await asyncio.sleep(0)
        if self.fails(key, "second turn" if named else "first turn"):
            raise PolicyUnavailable("the server is away")
        self.current = key
        return await super().act(token_ids, stop, budget, seed)

    async def run_async(self, code, limits=None, **_) -> Execution:
        """Run a program; the policy is also the sandbox."""
        await asyncio.sleep(0)
        product, key = re.match(r"print\((.*)\) # (\d+)", code).groups()
        if self.fails(int(key), "program"):
            return Execution(Outcome.INFRASTRUCTURE, "", "the sandbox is away")
        a, _, b = product.split()
        return Execution(Outcome.OK, f"{int(a) * int(b)}\n")


def test_of_2000_episodes_with_failures_every_one_is_accounted_for(monkeypatch):
    monkeypatch.setattr(engine, "_RETRY_SECONDS", 0.01)
    policy, asked = Fated(), problems(500)
    run = RolloutEngine(policy, RULES, policy, concurrency=300)
    groups = run.run(asked, n=4, seed=5)

    fates = [fate(key) for key in policy.begun]
    lost = [each for each in fates if len(each) == 2]
    again = sum(len(each) > 0 for each in fates)
    assert len(fates) == 2000 and 150 < len(lost) < 250 and {each[0] for each in lost} == {*STEPS}
    # A second attempt samples with the seeds of the first, so that it stays the same episode.
    assert all(policy.begun[key] == 1 + (len(fate(key)) > 0) for key in policy.begun)
    assert all(len(seeds) <= 2 for seeds in policy.sampled.values())

    assert [{t.problem for t in group} for group in groups] == [{problem} for problem in asked]
    assert [len(group) for group in groups] == [4] * 500
    transcripts = [transcript for group in groups for transcript in group]
    for transcript in transcripts:
        check_transcript(transcript)
        if transcript.stop_reason is FAILED:
            assert transcript.reward is None and transcript.correct is None
        else:
            assert transcript.correct and transcript.reward == 1.0
            key = int(re.search(r"# (\d+)", transcript.text)[1])
            assert len(fate(key)) < 2

    progress = run.progress
    assert (progress.total, progress.done) == (2000, 2000)
    assert sum(transcript.stop_reason is FAILED for transcript in transcripts) == len(lost)
    assert (progress.failed, progress.retried, progress.correct) == (
        len(lost),
        again,
        2000 - len(lost),
    )
    late = sum(each[1] == "second turn" for each in lost)  # their program had run
    assert progress.calls == {1: 2000 - len(lost) + late, 0: len(lost) - late}
    assert (progress.cut, progress.dropped) == (0, 0)
    assert (progress.generating, progress.executing, progress.grading) == (0, 0, 0)


@pytest.mark.parametrize("attempts", [1, 3])
def test_attempts(attempts, monkeypatch):
    monkeypatch.setattr(engine, "_RETRY_SECONDS", 0.001)
    calls = []

    class Away(ScriptedPolicy):
        async def act(self, token_ids, stop, budget, seed):
            calls.append(seed)
            raise PolicyUnavailable("the server is away")

    run = RolloutEngine(Away(str, make_tokenizer()), RULES, object(), attempts=attempts)
    [[transcript]] = run.run(problems(1))
    assert transcript.stop_reason is FAILED and transcript.reward is None
    assert len(calls) == attempts and len(set(calls)) == 1
    assert (run.progress.failed, run.progress.retried) == (1, attempts - 1)


def test_an_error_of_one_group_ends_all_others():
    """An error outside the infrastructure ends the run, and no task is left."""
    hanging = asyncio.Event()

    class Mistaken(Held):
        async def act(self, token_ids, stop, budget, seed):
            if self.in_flight == 7:
                raise MemoryError("no room")
            return await super().act(token_ids, stop, budget, seed)

    async def drive():
        policy = Mistaken()
        run = RolloutEngine(policy, RULES, policy)
        with pytest.raises(MemoryError, match="no room"):
            async for _ in run.groups(problems(4), n=2):
                hanging.set()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert policy.in_flight == 0 and run.progress.generating == 0

    asyncio.run(asyncio.wait_for(drive(), 60))
    assert not hanging.is_set()


# --- deadlines and oversampling -----------------------------------------------------------------


class Held(ScriptedPolicy):
    """Turns and programs that wait for their gates, named by problem and rollout."""

    def __init__(self, free: str = "") -> None:
        super().__init__(str, make_tokenizer())
        self.free = set(free.split())
        self.numbers: Counter[str] = Counter()
        self.in_flight = 0
        self.arrived: dict[str, asyncio.Event] = {}
        self.gates: dict[str, asyncio.Event] = {}

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    async def reached(self, name: str) -> None:
        await self.arrived.setdefault(name, asyncio.Event()).wait()

    async def _wait(self, name: str) -> None:
        self.arrived.setdefault(name, asyncio.Event()).set()
        if name in self.free:
            return
        self.in_flight += 1
        try:
            await self.gate(name).wait()
        finally:
            self.in_flight -= 1

    async def act(self, token_ids, stop, budget, seed) -> Generation:
        text = self.tokenizer.decode(token_ids)
        problem = text.split(" ")[0]
        if "<interpreter>" in text:
            named = text.split("# ")[1].split()[0]
            await self._wait(f"{named}:second")
            self._script = lambda _: f"<answer>{named}</answer>"
        else:
            named = f"{problem}.{self.numbers[problem]}"
            self.numbers[problem] += 1
            await self._wait(named)
            self._script = lambda _: f"<code>\nprint() # {named}\n</code>"
        return await super().act(token_ids, stop, budget, seed)

    async def run_async(self, code, limits=None, **_) -> Execution:
        named = code.split("# ")[1]
        await self._wait(f"{named}:program")
        if f"{named}:fails" in self.free:
            return Execution(Outcome.INFRASTRUCTURE, "", "away")
        return Execution(Outcome.OK, "1\n")


def free(*names: str) -> str:
    """The names of all steps of these rollouts."""
    return " ".join(f"{name} {name}:program {name}:second" for name in names)


DEADLINE = 1234.5


def strike_at_will(monkeypatch) -> list:
    """Catch the callbacks that the running loop would call at the deadline."""
    loop = asyncio.get_running_loop()
    call_later, strikes = loop.call_later, []

    def noted(delay, callback, *arguments, **more):
        if delay == DEADLINE:
            strikes.append(callback)
            callback = bool
        return call_later(delay, callback, *arguments, **more)

    monkeypatch.setattr(loop, "call_later", noted)
    return strikes


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def answers(group) -> list[str | None]:
    return [transcript.answer for transcript in group]


def test_a_deadline_cuts_what_runs_where_it_is(monkeypatch):
    monkeypatch.setattr(engine, "_RETRY_SECONDS", 1000)
    grading = threading.Event()

    async def is_equivalent(answer, gold):
        if answer == "5.0":
            await asyncio.to_thread(grading.wait, 60)
        return True

    monkeypatch.setattr("retool_env.rollout.drive.is_equivalent_async", is_equivalent)
    policy = Held(f"{free('0.0', '5.0')} 2.0 3.0 3.0:program 4.0 4.0:program 4.0:fails")

    async def drive():
        strikes = strike_at_will(monkeypatch)
        run = RolloutEngine(policy, RULES, policy, concurrency=6)
        found, over = {}, asyncio.Event()

        async def collect():
            async for index, group in run.groups(problems(8), deadline=DEADLINE):
                found[index] = group[0]
                over.set()

        task = asyncio.create_task(collect())
        await over.wait()
        for name in ("1.0", "2.0:program", "3.0:second", "4.0:program", "5.0:second"):
            await policy.reached(name)
        await settled()
        progress = run.progress
        assert (progress.generating, progress.executing) == (3, 1)  # 1, 3 and 6; 2
        assert progress.grading == 1 and policy.in_flight == 4
        strikes[0]()
        await settled()
        assert policy.in_flight == 0 and not task.done()
        grading.set()
        await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return found, progress

    found, progress = asyncio.run(asyncio.wait_for(drive(), 60))
    for transcript in found.values():
        check_transcript(transcript)
    assert {i: t.stop_reason for i, t in found.items()} == {
        0: StopReason.ANSWERED,
        1: CANCELLED,  # in its first turn
        2: CANCELLED,  # its program was running
        3: CANCELLED,  # in its second turn
        4: FAILED,  # it waited to be tried again
        5: StopReason.ANSWERED,  # its answer was being graded
        6: CANCELLED,
        7: CANCELLED,  # it had not been let in
    }
    assert [len(found[i].response) for i in range(8)] == [3, 0, 1, 2, 1, 3, 0, 0]
    assert found[5].correct and not found[3].correct and found[4].reward is None
    assert "print() # 2.0" in found[2].text  # the record is kept as far as it went
    assert (progress.total, progress.done, progress.cut, progress.failed) == (8, 8, 5, 1)
    assert (progress.generating, progress.executing, progress.grading) == (0, 0, 0)
    assert progress.retried == 0


def test_a_deadline_keeps_the_record_of_the_attempt_that_it_cuts(monkeypatch):
    monkeypatch.setattr(engine, "_RETRY_SECONDS", 0)
    policy = Held("0.0 0.0:program 0.0:fails 0.1 0.1:program")

    async def drive():
        strikes = strike_at_will(monkeypatch)
        run = RolloutEngine(policy, RULES, policy)
        task = asyncio.create_task(anext(run.groups(problems(1), deadline=DEADLINE)))
        await policy.reached("0.1:second")
        strikes[0]()
        return (await task)[1][0], run.progress

    transcript, progress = asyncio.run(asyncio.wait_for(drive(), 60))
    assert transcript.stop_reason is CANCELLED and "# 0.1" in transcript.text
    assert (progress.retried, progress.cut, progress.failed) == (1, 1, 0)


def test_a_deadline_in_seconds():
    policy = Held()
    run = RolloutEngine(policy, RULES, policy, concurrency=3)
    groups = run.run(problems(4), n=2, deadline=0.05)
    assert {t.stop_reason for group in groups for t in group} == {CANCELLED}
    assert (run.progress.cut, run.progress.done, policy.in_flight) == (8, 8, 0)


def test_of_an_oversampled_group_the_first_to_finish_are_kept_in_order():
    policy = Held(free("0.3"))

    async def drive():
        run = RolloutEngine(policy, RULES, policy)
        groups = run.groups(problems(1), n=2, oversample=2.0)
        task = asyncio.create_task(anext(groups))
        await policy.reached("0.3:second")
        policy.free.update(free("0.1").split())
        policy.gate("0.1").set()
        _, group = await task
        assert policy.in_flight == 0  # of the other two
        await groups.aclose()
        return group, run.progress

    group, progress = asyncio.run(asyncio.wait_for(drive(), 60))
    assert answers(group) == ["0.1", "0.3"]
    assert (progress.total, progress.done, progress.dropped, progress.cut) == (2, 2, 2, 0)
    assert progress.generating == 0 and progress.calls == {1: 2}


def test_of_an_oversampled_group_a_failed_one_is_kept_only_for_want_of_another():
    for failing, expected in (("0.0", ["0.1", "0.2"]), ("0.0 0.1", [None, "0.2"])):
        fails = " ".join(f"{name}:fails" for name in failing.split())
        policy = Held(f"{free('0.0', '0.1', '0.2')} {fails}")
        run = RolloutEngine(policy, RULES, policy, attempts=1)
        [group] = run.run(problems(1), n=2, oversample=1.5)
        assert answers(group) == expected
        assert run.progress.failed == expected.count(None) and run.progress.dropped == 1


@pytest.mark.parametrize(("n", "oversample", "begun"), [(50, 1.1, 55), (4, 1.3, 6), (3, 1.0, 3)])
def test_how_many_are_begun(n, oversample, begun, monkeypatch):
    policy = Held()

    async def drive():
        strikes = strike_at_will(monkeypatch)
        run = RolloutEngine(policy, RULES, policy)
        groups = run.groups(problems(1), n, deadline=DEADLINE, oversample=oversample)
        task = asyncio.create_task(anext(groups))
        await settled()
        in_flight = policy.in_flight
        strikes[0]()
        _, group = await task
        return in_flight, len(group), run.progress.dropped

    came = asyncio.run(asyncio.wait_for(drive(), 60))
    assert came == (begun, n, begun - n)


def test_a_deadline_and_oversampling_together(monkeypatch):
    policy = Held(free("0.2", "1.0", "1.1"))

    async def drive():
        strikes = strike_at_will(monkeypatch)
        run = RolloutEngine(policy, RULES, policy)
        found = {}
        async for index, group in run.groups(problems(2), 2, deadline=DEADLINE, oversample=1.5):
            found[index] = group
            if index == 1:  # of the other group, one has finished as well
                await policy.reached("0.2:second")
                while run.progress.grading:
                    await asyncio.sleep(0.001)
                strikes[0]()
        return found, run.progress

    found, progress = asyncio.run(asyncio.wait_for(drive(), 60))
    assert answers(found[1]) == ["1.0", "1.1"]
    assert answers(found[0]) == [None, "0.2"] and found[0][0].stop_reason is CANCELLED
    assert (progress.total, progress.done, progress.cut, progress.dropped) == (4, 4, 1, 2)
    assert policy.in_flight == 0
