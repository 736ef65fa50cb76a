"""A folder of small runs of `retool recover` by scripted agents, made once for several tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.scripted_agents import Agent, TextAgent
from retool_env.cli import main
from retool_env.evaluation.recover.suite import load_suite
from retool_env.rollout import named

PROBLEMS = load_suite("v0").sets[0].problems[:8]
KINDS = ("timeout", "wrong_value", "blank_line")
AGENTS = {
    "strong": Agent(p_retry=1.0, p_check=1.0),
    "brittle": Agent(p_give_up=1.0),
    "weak": Agent(p_right=0.0),
}
"""An agent that recovers from each fault of the suite, an agent that recovers from none, and an
agent that is never right."""


@contextlib.contextmanager
def small_suite(sandbox, kinds=KINDS, problems=PROBLEMS) -> Iterator[SimpleNamespace]:
    """While the context is open, commands meet a suite of a few problems and kinds of faults."""
    suite = SimpleNamespace(
        problems=list(problems),
        hash="0123",
        kinds=kinds,
        rates=(0.0,),
        seed=0,
        fork_call=lambda problem, sample: 1,
    )
    with pytest.MonkeyPatch.context() as patch:
        opened = nullcontext(sandbox)
        patch.setattr("retool_env.interpreter.open_sandbox", lambda setting, rules: opened)
        patch.setattr("retool_env.evaluation.recover.page.draw", lambda results: {})
        patch.setattr(
            "retool_env.evaluation.recover.suite.load_suite", lambda name, part, quick: suite
        )
        yield suite


def run_agent(agent: Agent, name: str, folder: Path, *options: str) -> Path:
    """The folder of a run of `retool recover`; it needs `small_suite`.

    Args:
        agent: The agent.
        name: The name of the model.
        folder: The folder of the run.
        options: More options of the command.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(named.POLICIES, "openai", lambda model, **_: TextAgent(agent))
        size = ["--k=1", "--m=1", "--samples=1", "--batch=16"]
        command = ["recover", "--env", "ReTool-Arithmetic-v0", "--api", "http://h/v1", *size]
        assert main([*command, "--model", name, "--out", str(folder), *options]) == 0
    return folder


def make_board(folder: Path, sandbox, agents: Mapping[str, Agent] = AGENTS) -> Path:
    """A folder with a run of each agent; the runs of all but the first lie two levels below."""
    with small_suite(sandbox):
        for number, (name, agent) in enumerate(agents.items()):
            run_agent(agent, f"org/{name}", folder / ("more" if number else ".") / name)
    return folder
