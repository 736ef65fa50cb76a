"""The whole path, from the command to `results.json`, with agents whose figures are known.

Each run goes through the command, the real jail, the records and the figures. The values of agents
without chance are worked out by hand; an agent with chances has the values of its formulas.
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest
from evaluation.recover.test_scripted_agents import really
from helpers.scripted_agents import Agent, TextAgent, TokenAgent, steps_of

from agents.models.tiny import make_checkpoint, make_tokenizer
from retool_env.cli import main
from retool_env.evaluation.recover.protocols import PARENTS
from retool_env.evaluation.recover.records import read_arms
from retool_env.evaluation.recover.suite import load_suite
from retool_env.faults import Faults
from retool_env.faults.schedule import Hashed
from retool_env.metrics.causal.intervals import Pair, difference
from retool_env.problems.staged import read_stages
from retool_env.rollout import RolloutEngine, named
from retool_env.rollout.engine import run_blocking
from retool_env.rollout.fork import Fork
from retool_env.rules import Rules

SUITE = load_suite("v0")
STAGED = SUITE.sets[1].problems
PROBLEMS = [SUITE.sets[0].problems[1], *STAGED[:2]]  # one, two and three programs
CALLS = 12
CALL = {problem.id: (1, min(2, steps_of(problem))) for problem in PROBLEMS}
"""The calls of the forks: of parent 0 the first; of parent 1 the second, if the problem has one."""
API = ("--model", "m", "--api", "http://h/v1")
LOCAL = ("--engine", "vllm", "--max-tokens", "9000")


def at_calls(problem: str, parent: int) -> int:
    return CALL[problem][parent]


@pytest.fixture
def measured(tmp_path, monkeypatch, sandbox):
    """A function that runs `retool recover` with an agent; it returns the results."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("retool_env.faults.kinds.SLOW_SECONDS", 0.02)
    opened = nullcontext(sandbox)
    monkeypatch.setattr("retool_env.interpreter.open_sandbox", lambda setting, rules: opened)
    monkeypatch.setattr("retool_env.evaluation.recover.page.draw", lambda results: {})

    def measured(agent, kinds, *options, problems=PROBLEMS, call=at_calls, model=API, **more):
        given = {"k": 2, "m": 1, "samples": 2, "max_calls": CALLS} | more
        small = SimpleNamespace(
            problems=problems, hash="0123", kinds=kinds, rates=(0.0, 0.5, 1.0), seed=0
        )
        small.fork_call = call
        monkeypatch.setattr(
            "retool_env.evaluation.recover.suite.load_suite", lambda name, part, quick: small
        )
        monkeypatch.setitem(named.POLICIES, "openai", lambda model, **_: TextAgent(agent))
        tokens = TokenAgent(agent, problems, make_tokenizer())
        monkeypatch.setitem(named.POLICIES, "vllm", lambda model, **_: tokens)
        size = [f"--{name}={given[name]}" for name in ("k", "m", "samples")]
        command = ["recover", "--env", "ReTool-Arithmetic-v0", "--out", "found", *model, *size]
        assert main([*command, "--batch=16", f"max_calls={given['max_calls']}", *options]) == 0
        return json.loads(Path("found/results.json").read_text())

    return measured


def means(results) -> dict[str, float | None]:
    return {figure["key"]: figure["mean"] for figure in results["figures"]}


def assert_equal_means(results, expected) -> None:
    found = means(results)
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def transcripts() -> dict:
    return {record.key: record.transcript for record in read_arms("found")}


def assert_controls_repeat_their_parents() -> None:
    """A fork with the true result of an agent without chance is its parent."""
    found = transcripts()
    controls = [key for key in found if key[:2] == ("fork", "control")]
    assert controls
    for key in controls:
        parent = found[(*PARENTS, key[2], None, 0, key[3])]
        assert found[key].spans == parent.spans and found[key].correct == parent.correct


@pytest.mark.parametrize("of_tokens", [False, True])
def test_an_agent_that_retries_mends_transient_errors_and_believes_values(
    measured, tmp_path, of_tokens
):
    kinds = ("timeout", "memory", "empty", "always_timeout", "gone", "wrong_value")
    placebos = ("blank_line", "warning", "slow")
    model = API
    if of_tokens:
        model = ("--model", str(make_checkpoint(tmp_path / "tiny", seed=0)), *LOCAL)
    results = measured(Agent(p_retry=1.0), (*kinds, *placebos), model=model)
    mended = ("timeout", "memory", "empty")
    lost = ("always_timeout", "gone")
    # Of 12 calls in all, 11 are left after a fork at call 1, and 10 after a fork at call 2.
    left = fmean(CALLS - call for calls in CALL.values() for call in calls)
    expected = {
        **{"dose/0/accuracy": 1.0, "fallback/accuracy": 0.0, "contagion/wrong_value": 1.0},
        **{f"control/{kind}": 1.0 for kind in (*kinds, *placebos)},
        **{f"effect/{kind}": 0.0 for kind in (*mended, *placebos)},
        **{f"ratio/{kind}": 1.0 for kind in (*mended, *placebos)},
        **{f"retries/{kind}": 1.0 for kind in (*mended, *lost)},
        **{f"calls_more/{kind}": 1.0 for kind in mended},
        **{f"calls_more/{kind}": 0.0 for kind in (*placebos, "wrong_value")},
        **{f"effect/{kind}": -1.0 for kind in (*lost, "wrong_value")},
        **{f"net/{kind}": -1.0 for kind in (*lost, "wrong_value")},
        **{f"futile/{kind}": left for kind in lost},
        **{"format_sensitivity": 0.0, "outcome/gone/0/going on": 1.0, "outcome/timeout/0/cut": 0.0},
        **{"frequency/gain": 1.0, "frequency/price": 0.0, "frequency/gone": 0.0},
    }
    assert_equal_means(results, expected)
    assert results["counts"]["prefixes"] == {"fork": 2 * len(PROBLEMS), "natural": 0}
    assert results["counts"]["not_eligible"] == {} and not results["counts"]["without_call"]
    assert_controls_repeat_their_parents()


def test_an_agent_that_gives_up_loses_each_episode_with_a_fault(measured):
    kinds = ("timeout", "try_again", "busy", "always_timeout", "gone")
    agent = Agent(p_give_up=1.0, p_alone=1.0)
    results = measured(agent, kinds, call=lambda problem, parent: 1 + parent)
    half = Faults(rate=0.5, kinds=kinds)
    well = {
        (problem.id, sample): not any(
            Hashed(half, problem.id, sample).ordered(call + 1) for call in range(steps_of(problem))
        )
        for problem in PROBLEMS
        for sample in range(2)
    }
    right = fmean(well.values())
    assert 0 < right < 1
    expected = {
        **{"dose/0/accuracy": 1.0, "dose/0.5/accuracy": right, "dose/1/accuracy": 0.0},
        **{"dose/area": 0.25 + right / 2, "dose/area_ratio": 0.25 + right / 2},
        **{"dose/0/calls": 2.0, "dose/1/calls": 1.0, "fallback/accuracy": 0.0},
        **{f"effect/{kind}": -1.0 for kind in kinds},
        **{f"ratio/{kind}": 0.0 for kind in kinds},
        **{f"retries/{kind}": 0.0 for kind in kinds},
        **{f"outcome/{kind}/0/gave up": 1.0 for kind in kinds},
        # From call 1 of problems with 1, 2 and 3 programs, and from call 2 of the last two.
        **{"outcome/control/0/right": 2 / 5, "outcome/control/1/right": 4 / 5},
        **{"outcome/control/2/right": 1.0, "frequency/text_only": 1.0},
        **{"frequency/gain": 0.0, "frequency/price": 1.0},
    }
    assert_equal_means(results, expected)
    assert results["counts"]["prefixes"]["fork"] == 5 and results["counts"]["without_call"] == 1
    found = transcripts()
    assert {key[2::3]: found[key].correct for key in found if key[:2] == ("dose", "0.5")} == well


def test_an_agent_that_checks_or_falls_back_loses_nothing(measured):
    kinds = ("timeout", "gone", "missing_package", "wrong_value", "stale")
    results = measured(Agent(p_check=1.0, p_alone=1.0), kinds, call=lambda p, i: 1)
    assert_equal_means(
        results,
        {
            **{f"effect/{kind}": 0.0 for kind in ("timeout", "gone", "wrong_value")},
            **{"contagion/wrong_value": 0.0, "fallback/accuracy": 1.0},
            # It finds a wrong value by a check, and settles it by a third program.
            **{"calls_more/wrong_value": 1.0, "frequency/gain": 0.0, "frequency/price": 0.0},
        },
    )
    # No first program imports sympy or has a result before it.
    unfit = len(PROBLEMS) * 2
    assert results["counts"]["not_eligible"] == {"missing_package": unfit, "stale": unfit}


def test_a_package_that_is_missing_stays_missing(measured):
    """The second program of the first staged problem imports sympy; a retry can't mend that."""
    problem = STAGED[0]
    assert "divisor_count" in read_stages(problem)[1].expression
    arms = {}
    for agent in (Agent(p_retry=1.0), Agent(p_alone=1.0)):
        results = measured(
            agent, ("missing_package",), problems=[problem], call=lambda p, i: 2, m=2
        )
        arms[agent] = means(results)["effect/missing_package"]
        found = next(t for key, t in transcripts().items() if key[1] == "missing_package")
        assert "ModuleNotFoundError" in found.spans[4].text
        Path("found").rename(f"found-{agent.p_alone}")
    assert list(arms.values()) == [-1.0, 0.0]


def test_the_errors_of_an_agent_that_slips_and_retries_cost_nothing(measured):
    agent = Agent(p_slip=0.5, p_retry=1.0)
    results = measured(agent, ("gone",), "--protocol", "natural", max_calls=60)
    number = results["counts"]["prefixes"]["natural"]
    assert 3 <= number <= 6  # of 6 parents with 1, 1, 2, 2, 3 and 3 programs
    arms = ("keep", "drop", "bare", "mended")
    differences = ("message", "error", "mend", "memory")
    expected = {f"natural/{arm}": 1.0 for arm in arms} | {f"natural/{d}": 0.0 for d in differences}
    assert_equal_means(results, expected)


def test_an_agent_with_chances_has_the_values_of_its_formulas(measured):
    agent = Agent(p_right=0.9, p_alone=0.4, p_call=0.8, p_check=0.3, p_retry=0.5, p_give_up=0.2)
    problems = [*STAGED[:14], *SUITE.sets[0].problems[1:7]]
    calls, steps = 6, [steps_of(problem) for problem in problems]
    results = measured(
        agent,
        ("timeout", "gone", "wrong_value"),
        "--seed=3",
        problems=problems,
        call=lambda problem, parent: 1,
        **{"k": 3, "m": 2, "samples": 6, "max_calls": calls},
    )
    control = fmean(agent.control(s - 1, calls - 1) for s in steps)
    text = agent.p_alone
    expected = {
        "dose/0/accuracy": (1 - agent.p_call) * text
        + agent.p_call * fmean(agent.accuracy(s, calls) for s in steps),
        "control/timeout": control,
        "fault/timeout": fmean(agent.after_error(s, calls - 1) for s in steps),
        "fault/wrong_value": fmean(agent.after_false_value(s - 1, calls - 1) for s in steps),
        "contagion/wrong_value": fmean(agent.contagion(s - 1, calls - 1) for s in steps),
        "fallback/accuracy": agent.after_persistent_error(calls - 1),
        "frequency/text_only": text,
        "frequency/gain": fmean(agent.tool_gain(s, calls) for s in steps),
        "frequency/price": agent.price_of_the_offer(calls),
    }
    expected["effect/timeout"] = expected["fault/timeout"] - control
    by_key = {figure["key"]: figure for figure in results["figures"]}
    for key, value in expected.items():
        figure = by_key[key]
        assert figure["low"] <= value <= figure["high"], (key, value, figure)
        assert figure["high"] - figure["low"] < 0.6, key


def test_a_placebo_changes_no_turn_of_an_agent_with_chances(measured, sandbox):
    agent = Agent(p_right=0.5, p_alone=0.4, p_check=0.5, p_retry=0.5)
    rules = Rules(max_calls=CALLS)
    placebos = {"kinds": ["blank_line", "warning", "slow"], "rate": 1.0}
    runs = [
        RolloutEngine(TextAgent(agent), one, sandbox).run(PROBLEMS, 8, seed=3)
        for one in (rules, dataclasses.replace(rules, faults=placebos))
    ]
    pairs = [pair for groups in zip(*runs, strict=True) for pair in zip(*groups, strict=True)]
    for clean, placebo in pairs:
        turns = [[s.text for s in t.spans if s.author == "model"] for t in (clean, placebo)]
        assert turns[0] == turns[1] and clean.correct == placebo.correct
        assert all(call.execution.fault.injected for call in placebo.calls)
    assert 0 < sum(clean.correct for clean, _ in pairs) < len(pairs) == 24


class InProcess:
    """A sandbox that runs the programs of agents in this process, to run thousands of them."""

    async def run_async(self, code, limits=None, **_):
        return really(code)


def test_forks_with_the_true_result_are_as_right_as_their_parents():
    """At call 1 of each parent; the 90 % interval of the difference lies within 3 points."""
    agent = Agent(p_right=0.95, p_alone=0.9, p_check=0.3, p_retry=0.5)
    engine = RolloutEngine(TextAgent(agent), Rules(max_calls=CALLS), InProcess())
    problems = SUITE.problems[:48]
    parents = engine.run(problems, 30, seed=1)
    forks = [Fork(t, 1, sample=i) for group in parents for i, t in enumerate(group)]

    async def go_on():
        return [pair async for pair in engine.forks(forks, seed=2)]

    rows = []
    for index, [fork] in run_blocking(go_on()):
        parent = forks[index].transcript
        assert fork.spans[:3] == parent.spans[:3]
        rows.append(Pair(parent.problem.id, parent.correct, fork.correct, 1))
    made = difference(rows, 0.9)
    assert -0.03 < made.low <= made.mean <= made.high < 0.03
    # The forks have seeds of their own: each of the two is right where the other is wrong.
    assert {(row.first, row.second) for row in rows} == set(product([True, False], repeat=2))
