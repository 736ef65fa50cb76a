"""Recorded runs for the viewers: a benchmark of recovery, and long transcripts."""

from __future__ import annotations

import dataclasses
import os
import random
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from helpers.episodes import ANSWERED, CODE, RIGHT, episode, with_ids
from helpers.scripted_agents import Agent, TextAgent, steps_of
from retool_env.cli import main
from retool_env.evaluation.recover.suite import load_suite
from retool_env.execution import Execution, Outcome
from retool_env.rollout import TextGeneration, named
from retool_env.transcript import Transcript

SLOW = "import time\ntime.sleep(2.5)\n"
"""The beginning of a program that runs longer than the limit of `make_recover_run`."""


class SlowAgent(TextAgent):
    """An agent whose second program for one problem is by chance slower than the limit.

    Args:
        agent: The chances of the agent's decisions.
        problem: The id of the problem.
    """

    def __init__(self, agent: Agent, problem: str) -> None:
        super().__init__(agent)
        self._problem = problem

    async def write(self, transcript, stop, seed) -> TextGeneration:
        turn = await super().write(transcript, stop, seed)
        second = transcript.problem.id == self._problem and len(transcript.calls) == 1
        if not second or "<code>" not in turn.text or random.Random(seed).random() < 0.5:
            return turn
        text = turn.text.replace("<code>\n", f"The next step takes a while.\n<code>\n{SLOW}", 1)
        return dataclasses.replace(turn, text=text)


def make_recover_run(folder: Path) -> Path:
    """Runs `retool recover` with an agent whose second program for one problem is often slow.

    A parent of this problem that times out at call 2 gives a wrong answer. It is forked there, with
    the true result and with faults, and in the arms of `natural`.

    Args:
        folder: The folder in which the folder of the run is made.

    Returns:
        The folder of the run. `staged/7` is the slow problem.
    """
    staged = [p for p in load_suite("v0").sets[1].problems if steps_of(p) == 2][:2]
    problems = [
        dataclasses.replace(problem, id=name)
        for problem, name in zip(staged, ("staged/6", "staged/7"), strict=True)
    ]
    suite = SimpleNamespace(
        **{"problems": problems, "hash": "0123", "kinds": ("wrong_value", "timeout")},
        **{"rates": (0.0,), "seed": 0, "fork_call": lambda problem, parent: 2},
    )
    agent = SlowAgent(Agent(p_retry=0.4), "staged/7")
    size = ["--k=2", "--m=2", "--samples=1", "--batch=8", "max_calls=8"]
    limit = "limits={'wall_seconds': 1.5}"
    with (
        chdir(folder),
        patch("retool_env.evaluation.recover.page.draw", lambda results: {}),
        patch("retool_env.evaluation.recover.suite.load_suite", lambda name, part, quick: suite),
        patch.dict(named.POLICIES, {"openai": lambda model, **_: agent}),
        open(os.devnull, "w") as quiet,
        patch("sys.stdout", quiet),
        patch("sys.stderr", quiet),
    ):
        command = ["recover", "--env", "ReTool-Arithmetic-v0", "--out", "found", "--model", "m"]
        assert main([*command, "--api", "http://h/v1", *size, limit]) == 0
    return folder / "found"


def long_transcripts() -> list[Transcript]:
    """Episodes with a megabyte on one line, ten thousand lines, and many tokens."""
    line = Execution(Outcome.OK, "x" * 1_000_000)
    lines = Execution(Outcome.OK, "".join(f"line {n}\n" for n in range(10_000)))
    return [
        episode("megabyte", ANSWERED, (CODE, line), "y" * 300_000 + RIGHT, correct=True),
        episode("lines", ANSWERED, (CODE, lines), RIGHT, correct=True),
        with_ids(episode("tokens", ANSWERED, ("<code>z</code>", lines), RIGHT, correct=True)),
    ]
