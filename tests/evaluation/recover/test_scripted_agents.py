"""Scripted agents: their formulas against simulated episodes, and whole episodes in the sandbox."""

import contextlib
import functools
import io
import itertools
import math

import pytest
from helpers.scripted_agents import Agent, TextAgent, TokenAgent, steps_of

from agents.models.tiny import make_tokenizer
from retool_env.episode import Episode, RunProgram
from retool_env.evaluation.recover.suite import load_suite
from retool_env.execution import Execution, Outcome
from retool_env.problems import staged
from retool_env.problems.staged import implied_answer, read_stages
from retool_env.rollout import RolloutEngine
from retool_env.rules import Rules
from retool_env.sandbox import make_sandbox
from retool_env.transcript import StopReason

ERROR = Execution(Outcome.TIMEOUT, "", "time limit: the program ran for more than 5 s")
AGENT = Agent(p_right=0.9, p_alone=0.4, p_check=0.3, p_retry=0.5, p_give_up=0.2, p_slip=0.1)
THREE = staged(0, 3)[1]  # a = 13330, b = 80017, c = 16
CALLS = 5
RULES = Rules(max_calls=CALLS)
EPISODES = 1000


@functools.cache
def really(program):
    """The result of an agent's program, in this process: agents only compute."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            exec(program, {})
    except NameError as error:
        return Execution(Outcome.RUNTIME_ERROR, "", f"NameError: {error}")
    return Execution(Outcome.OK, output.getvalue())


def play(agent, seed, show=lambda call, true, so_far: true, rules=RULES, problem=THREE):
    """One episode, in which `show` makes the results; returns the transcript."""
    episode = Episode(problem, rules)
    calls = 0
    for turn in itertools.count():
        text = episode.transcript.text
        need = episode.act(agent.turn(problem, text, hash((seed, turn)), rules.interpreter))
        if isinstance(need, RunProgram):
            calls += 1
            episode.executed(show(calls, really(need.program), need.program))
        elif need is not None:
            episode.graded(need.answer == need.gold)
        if episode.done:
            return episode.transcript


def share(values):
    values = list(values)
    return sum(values) / len(values)


def close(share, expected):
    """Within 3 standard deviations of the expected share; the seeds are always the same."""
    return abs(share - expected) <= 3 * math.sqrt(max(expected * (1 - expected), 0.01) / EPISODES)


def shares(show=lambda call, true, so_far: true, agent=AGENT, rules=RULES):
    return [play(agent, seed, show, rules) for seed in range(EPISODES)]


@pytest.mark.parametrize("rate", [0, 0.5])
def test_the_dose_curve(rate):
    def show(call, true, program):
        return ERROR if hash((rate, call, next(count))) % 1000 < 1000 * rate else true

    count = itertools.count()
    assert close(share(t.correct is True for t in shares(show)), AGENT.accuracy(3, CALLS, rate))


def first_value(kind):
    """The forks of an agent without slips at its first call, which has the result of a kind."""
    agent = Agent(p_right=0.9, p_alone=0.4, p_check=0.3, p_retry=0.5, p_give_up=0.2)

    def show(call, true, program):
        return kind(true) if call == 1 else true

    return agent, shares(show, agent)


def test_the_arms_of_a_fork_at_the_first_call():
    agent, control = first_value(lambda true: true)
    assert close(share(t.correct is True for t in control), agent.control(2, CALLS - 1))
    empty = Execution(Outcome.OK, "")
    for result in (ERROR, empty):
        _, faulty = first_value(lambda true, result=result: result)
        assert close(share(t.correct is True for t in faulty), agent.after_error(3, CALLS - 1))


def test_a_false_value_is_found_by_a_check_or_reaches_the_answer():
    implied = implied_answer(THREE, "a", 13331)
    assert implied == "13" != THREE.answer
    agent, false = first_value(lambda true: Execution(Outcome.OK, "13331\n"))
    right = share(t.correct is True for t in false)
    assert close(right, agent.after_false_value(2, CALLS - 1)) and right > 0.1
    contagion = share(t.answer == implied for t in false)
    assert close(contagion, agent.contagion(2, CALLS - 1)) and contagion > 0.5
    _, control = first_value(lambda true: true)
    assert not any(t.answer == implied for t in control)


def test_a_persistent_error():
    broken = shares(lambda call, true, program: ERROR)
    assert close(share(t.correct is True for t in broken), AGENT.after_persistent_error(CALLS - 1))
    assert {t.stop_reason for t in broken} == {
        *(StopReason.ANSWERED, StopReason.VOID_TURN, StopReason.CALL_LIMIT)
    }


def test_the_arms_of_frequency():
    agent = Agent(p_right=0.9, p_alone=0.4, p_call=0.6, p_retry=0.5)
    text = share(t.correct for t in shares(agent=agent, rules=Rules(interpreter=False)))
    tool = share(t.correct is True for t in shares(agent=agent))
    gone = share(t.correct is True for t in shares(lambda *_: ERROR, agent))
    assert close(text, 0.4)
    assert abs(tool - text - agent.tool_gain(3, CALLS)) < 0.05
    assert abs(text - gone - agent.price_of_the_offer(CALLS)) < 0.05


def test_a_placebo_changes_no_turn():
    def placebo(call, true, program):
        if true.outcome is not Outcome.OK:
            return true
        return Execution(Outcome.OK, f"<program>:1: Warning: old\n{true.stdout}\n")

    for seed in range(100):
        a, b = play(AGENT, seed), play(AGENT, seed, placebo)
        models = [[s.text for s in t.spans if s.author == "model"] for t in (a, b)]
        assert models[0] == models[1]


@pytest.fixture(scope="module")
def sandbox():
    with make_sandbox() as made:
        yield made


class FirstFails:
    """A sandbox that shows a time limit once for each program of a first step."""

    def __init__(self, sandbox):
        self._sandbox = sandbox
        self._failed = set()

    def __getattr__(self, name):
        return getattr(self._sandbox, name)

    async def run_async(self, code, *arguments, **settings):
        if code not in self._failed:
            self._failed.add(code)
            return ERROR
        return await self._sandbox.run_async(code, *arguments, **settings)


def test_whole_episodes_in_the_sandbox(sandbox):
    problems = load_suite("v0", quick=True).problems[1::2]
    careful = Agent(p_check=1.0)
    for policy, rules in (
        (TextAgent(careful), Rules(max_calls=12)),
        (TokenAgent(careful, problems, make_tokenizer()), Rules(max_calls=12, max_tokens=10_000)),
    ):
        groups = RolloutEngine(policy, rules, sandbox).run(problems)
        for problem, (transcript,) in zip(problems, groups, strict=True):
            assert transcript.correct and len(transcript.calls) == 2 * steps_of(problem)
            shown = [int(call.execution.stdout) for call in transcript.calls]
            stages = [stage.value for stage in read_stages(problem)] or [int(problem.answer)]
            assert shown == [value for value in stages for _ in range(2)]


def test_agents_retry_give_up_and_fall_back_in_the_sandbox(sandbox):
    problems = load_suite("v0", quick=True).sets[1].problems

    def run(agent):
        faulty = FirstFails(sandbox)
        return [g[0] for g in RolloutEngine(TextAgent(agent), RULES, faulty).run(problems)]

    def outcomes(transcript):
        return [call.execution.outcome for call in transcript.calls]

    for transcript in run(Agent(p_retry=1.0)):
        assert transcript.correct is (steps_of(transcript.problem) * 2 <= CALLS)
        assert set(outcomes(transcript)[::2]) == {Outcome.TIMEOUT}
        assert set(outcomes(transcript)[1::2]) == {Outcome.OK}
    for transcript in run(Agent(p_give_up=1.0)):
        assert outcomes(transcript) == [Outcome.TIMEOUT]
        assert transcript.stop_reason is StopReason.VOID_TURN and transcript.answer is None
    for alone in (1.0, 0.0):
        for transcript in run(Agent(p_alone=alone)):
            assert outcomes(transcript) == [Outcome.TIMEOUT]
            assert transcript.correct is bool(alone)


def test_text_and_token_agents_play_the_same_episode(sandbox):
    problems = load_suite("v0", quick=True).problems[::2]
    text, tokens = (
        RolloutEngine(policy, rules, sandbox).run(problems, n=2, seed=3)
        for policy, rules in (
            (TextAgent(AGENT), RULES),
            (
                TokenAgent(AGENT, problems, make_tokenizer()),
                Rules(max_calls=CALLS, max_tokens=9999),
            ),
        )
    )
    for a, b in zip(itertools.chain(*text), itertools.chain(*tokens), strict=True):
        assert a.response_text == b.response_text and a.answer == b.answer
