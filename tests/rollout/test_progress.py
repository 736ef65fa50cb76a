"""Live counters of an engine's episodes, and their display."""

from __future__ import annotations

import asyncio
import io
import re
import threading

import pytest

from agents.models.tiny import make_tokenizer
from retool_env.problems import Problem
from retool_env.rollout import RolloutEngine, ScriptedPolicy
from retool_env.rollout.progress import Progress, shown
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome

RULES = Rules(max_tokens=200, prompt_template="{query}\n")
PROBLEMS = [Problem(str(i), f"{i}?", "1") for i in range(6)]

GRADE = "retool_env.rollout.drive.is_equivalent_async"


class Stepwise(ScriptedPolicy):
    """Problem i makes i % 3 calls and answers; every step waits for a ticket."""

    def __init__(self) -> None:
        super().__init__(self.script, make_tokenizer())
        self.tickets = {"turn": asyncio.Semaphore(0), "program": asyncio.Semaphore(0)}

    @staticmethod
    def script(text: str) -> str:
        calls = int(text.split("?")[0]) % 3
        return "<answer>1</answer>" if text.count("<interpreter>") == calls else "<code>1</code>"

    async def act(self, token_ids, stop, budget, seed):
        await self.tickets["turn"].acquire()
        return await super().act(token_ids, stop, budget, seed)

    async def run_async(self, code, limits=None, **_):
        await self.tickets["program"].acquire()
        return Execution(Outcome.OK, "1\n")

    async def let(self, what: str, number: int) -> None:
        for _ in range(number):
            self.tickets[what].release()
        for _ in range(30):
            await asyncio.sleep(0)


def test_the_counts_at_each_moment(monkeypatch):
    graders = threading.Semaphore(0)

    async def is_equivalent(answer, gold):
        await asyncio.to_thread(graders.acquire, timeout=60)
        return answer == gold

    monkeypatch.setattr(GRADE, is_equivalent)

    async def drive():
        policy = Stepwise()
        run = RolloutEngine(policy, RULES, policy, concurrency=5)
        progress = run.progress

        def doing():
            return progress.generating, progress.executing, progress.grading, progress.done

        async def collect():
            return [index async for index, _ in run.groups(PROBLEMS)]

        task = asyncio.create_task(collect())
        await policy.let("turn", 0)
        assert doing() == (5, 0, 0, 0) and progress.total == 6
        await policy.let("turn", 5)  # 0 and 3 answer, 1, 2 and 4 call
        assert doing() == (0, 3, 2, 0)
        graders.release(2)
        while progress.done < 2:
            await asyncio.sleep(0.001)
        await policy.let("program", 2)  # the last is let in besides
        assert doing() == (3, 1, 0, 2) and progress.calls == {0: 2}
        await policy.let("program", 100)
        await policy.let("turn", 100)
        graders.release(100)
        await task
        assert doing() == (0, 0, 0, 6) and progress.correct == 6
        return progress

    progress = asyncio.run(asyncio.wait_for(drive(), 60))
    assert progress.calls == {0: 2, 1: 2, 2: 2}
    ids = [make_tokenizer().encode(t) for t in ("<code>1</code>", "<answer>1</answer>")]
    assert progress.tokens == 6 * len(ids[0]) + 6 * len(ids[1])
    assert progress.generation_seconds > 0 and progress.tool_seconds > 0
    said = str(progress)
    assert said.startswith("6/6 episodes, ") and "6 right, 0 generating, 0 executing" in said
    assert said.endswith("calls 0: 2, 1: 2, 2: 2")


@pytest.mark.parametrize("step", ["turn", "program", "grading"])
def test_nothing_is_left_counted_after_a_cancellation(step, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(GRADE, lambda answer, gold: asyncio.to_thread(over.wait, 60))

    async def drive():
        policy = Stepwise()
        run = RolloutEngine(policy, RULES, policy)
        task = asyncio.create_task(anext(run.groups(PROBLEMS[1:2])))
        await policy.let("turn", 0 if step == "turn" else 1)
        if step == "grading":
            await policy.let("program", 1)
            await policy.let("turn", 1)
        progress = run.progress
        before = progress.generating, progress.executing, progress.grading
        task.cancel()
        await asyncio.wait([task])
        over.set()
        return before, (progress.generating, progress.executing, progress.grading), progress

    before, after, progress = asyncio.run(asyncio.wait_for(drive(), 60))
    assert before == tuple(int(each == step) for each in ("turn", "program", "grading"))
    assert after == (0, 0, 0) and progress.done == 0 and not progress.calls


def test_a_run_begins_with_the_first_episode_that_is_asked_for(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress(started=0.0)
    for _ in range(2):
        progress.expect(3)
        now += 10
    assert progress.total == 6 and progress.seconds == 20


def test_what_is_said():
    progress = Progress(total=9, done=3, correct=2, tokens=50, unit="characters", tool_seconds=1.25)
    progress.calls.update([0, 2, 2])
    line = r"3/9 episodes, \d+ s, 2 right, 0 generating, 0 executing, \d+ characters/s, "
    assert re.fullmatch(line + "1.2 s in tools, calls 0: 1, 2: 2", str(progress))
    progress.failed, progress.retried, progress.cut, progress.dropped = 1, 2, 3, 4
    assert str(progress).endswith(", 1 failed, 2 retried, 3 cut, 4 dropped")


class Terminal(io.StringIO):
    """A terminal that signals each write."""

    def __init__(self, isatty: bool) -> None:
        super().__init__()
        self._isatty = isatty
        self.shown = threading.Semaphore(0)

    def isatty(self) -> bool:
        return self._isatty

    def flush(self) -> None:
        self.shown.release()


def test_plain_lines_without_a_terminal():
    progress, stream = Progress(total=2), Terminal(False)
    with shown(progress, stream, every=0.01):
        assert stream.shown.acquire(timeout=60)
        progress.done = 1
        assert stream.shown.acquire(timeout=60) and stream.shown.acquire(timeout=60)
        progress.done = 2
    lines = stream.getvalue().splitlines()
    assert len(lines) > 2 and all(re.match(r"[012]/2 episodes, ", line) for line in lines)
    assert lines[-1].startswith("2/2 ") and "\r" not in stream.getvalue()
    assert stream.getvalue().endswith("\n")


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError("I/O operation on closed file")])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_stream_that_fails_costs_nothing_but_the_lines(error, terminal):
    stream = Terminal(terminal)

    def flush():
        stream.shown.release()
        raise error

    stream.flush = flush
    with shown(Progress(total=2), stream, every=0.01):
        for _ in range(2):  # the thread goes on
            assert stream.shown.acquire(timeout=60)
        found = 42
    assert found == 42


def test_one_line_that_changes_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    progress, stream = Progress(total=2), Terminal(True)
    with pytest.raises(KeyboardInterrupt), shown(progress, stream):
        assert stream.shown.acquire(timeout=60)
        progress.done = 1
        raise KeyboardInterrupt
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    lines = text.rstrip("\n").split("\r\033[K")
    assert lines[0] == "" and len(lines) > 2
    assert lines[1].startswith("0/2 episodes, ") and lines[-1].startswith("1/2 episodes, ")
    assert max(map(len, lines)) == 29  # one that is wrapped would not be wiped as a whole
    assert not any(thread.name.endswith("(go_on)") for thread in threading.enumerate())
