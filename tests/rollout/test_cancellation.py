"""However a run ends early, it leaves no request, no program and no process behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import HELPERS, ROOT

from agents.models.tiny import make_model
from benchmarks.parts.chains import endless
from retool_env.episode import Generation
from retool_env.problems import Problem
from retool_env.rollout import RolloutEngine
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.rules import Rules
from retool_env.sandbox import Limits, make_sandbox

RULES = Rules(max_tokens=3000, prompt_template="{query}\n", limits=Limits(wall_seconds=300))
PROBLEMS = [Problem(str(i), "write" if i % 2 else "run", "1") for i in range(8)]


class Busy(TransformersPolicy):
    """Half of the episodes run a program for ten minutes; the model writes the rest without end."""

    def __init__(self) -> None:
        model, tokenizer = make_model(0)
        model.config.max_position_embeddings = 4096
        super().__init__(endless(model, tokenizer), tokenizer)

    async def act(self, token_ids, stop, budget, seed) -> Generation:
        if "write" in self.tokenizer.decode(token_ids):
            return await super().act(token_ids, stop, budget, seed)
        ids = self.tokenizer.encode("<code>import time; time.sleep(600)</code>")
        return Generation(tuple(ids), (0.0,) * len(ids), "tag")

    @property
    def requests(self) -> int:
        return self.batcher.pending


def programs(sandbox) -> int:
    """The number of running programs, without the spare processes."""
    return sum(len(guest.jobs) for guest in sandbox.pool.guests) - len(sandbox.pool.spares)


async def under_way(engine: RolloutEngine) -> None:
    """Wait until half of the episodes are being written and half of them run a program."""
    while not (engine.policy.requests and programs(engine.sandbox) == len(PROBLEMS) / 2):
        await asyncio.sleep(0.01)


def left_of(engine: RolloutEngine) -> dict[str, int]:
    """Count everything that should be gone after a run."""
    progress = engine.progress
    return {
        "requests": engine.policy.requests,
        "programs": programs(engine.sandbox),
        "counted": progress.generating + progress.executing + progress.grading,
        "blocks": engine.policy.batcher.pool.count - engine.policy.batcher.pool.available,
    }


NOTHING = dict.fromkeys(("requests", "programs", "counted", "blocks"), 0)


@pytest.fixture(scope="module")
def policy() -> Busy:
    return Busy()


@pytest.mark.parametrize("how", ["cancel", "close", "break", "error"])
def test_a_run_that_ends_early_leaves_nothing(how, policy, sandbox):
    quick = Problem("quick", "is not asked", "1")

    class WithOneQuick(Busy):
        """Adds one episode that ends at once, so that the loop over groups has a first group."""

        def __init__(self) -> None:
            self.__dict__.update(policy.__dict__)

        async def act(self, token_ids, stop, budget, seed):
            if "is not asked" in self.tokenizer.decode(token_ids):
                await under_way(engine)
                return Generation((self.tokenizer.eos_token_id,), (0.0,), "eos")
            return await super().act(token_ids, stop, budget, seed)

    engine = RolloutEngine(WithOneQuick(), RULES, sandbox)

    async def breaks_off():
        async for _ in engine.groups([*PROBLEMS, quick]):
            break

    async def closes():
        async with contextlib.aclosing(engine.groups([*PROBLEMS, quick])) as groups:
            async for _ in groups:
                break
        assert left_of(engine) == NOTHING

    async def fails():
        with pytest.raises(ZeroDivisionError):
            async for _ in engine.groups([*PROBLEMS, quick]):
                raise ZeroDivisionError

    async def drive():
        if how == "cancel":
            task = asyncio.create_task(anext(engine.groups(PROBLEMS)))
            await under_way(engine)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert left_of(engine) == NOTHING
        else:
            await {"close": closes, "break": breaks_off, "error": fails}[how]()
        while asyncio.all_tasks() != {asyncio.current_task()}:
            await asyncio.sleep(0.01)
        return left_of(engine)

    assert asyncio.run(asyncio.wait_for(drive(), 120)) == NOTHING
    assert sandbox.run("print(1)").stdout == "1\n"


@pytest.mark.parametrize("where", ["script", "notebook"])
def test_ctrl_c_ends_a_run_and_all_that_it_began(where):
    """A real signal to a process of its own; `notebook`: an event loop already runs there."""
    psutil = pytest.importorskip("psutil")
    command = [sys.executable, __file__, where]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HELPERS.parent}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "under way\n"
        begun, deadline = [], time.monotonic() + 30
        while len(begun) < 3 + len(PROBLEMS) / 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            begun = psutil.Process(process.pid).children(recursive=True)
        assert len(begun) >= 3 + len(PROBLEMS) / 2  # the jail, the guest, the programs
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert json.loads(out) == NOTHING
    assert process.returncode == -signal.SIGINT  # a KeyboardInterrupt that nobody caught
    _, alive = psutil.wait_procs(begun, timeout=30)
    assert not alive


def main(where: str) -> None:
    """Run the episodes that the signal interrupts."""
    with make_sandbox("nsjail", guests=1, packages=()) as sandbox:
        engine = RolloutEngine(Busy(), RULES, sandbox)

        class Announced(Busy):
            def __init__(self) -> None:
                self.__dict__.update(engine.policy.__dict__)

            async def act(self, token_ids, stop, budget, seed):
                if "is not asked" in self.tokenizer.decode(token_ids):
                    await under_way(engine)
                    print("under way", flush=True)
                    await asyncio.Event().wait()
                return await super().act(token_ids, stop, budget, seed)

        async def cell() -> None:
            engine.run(problems)

        engine.policy = Announced()
        problems = [*PROBLEMS, Problem("announced", "is not asked", "1")]
        try:
            if where == "notebook":
                asyncio.new_event_loop().run_until_complete(cell())
            else:
                engine.run(problems)
        finally:
            print(json.dumps(left_of(engine)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
