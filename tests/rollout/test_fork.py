"""Forks: episodes that go on from a call of another episode."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import re

import pytest
from helpers.notebooks import Notebooks

from agents.models.tiny import make_tokenizer
from retool_env.episode import Episode
from retool_env.errors import NotReproducible, SettingsError
from retool_env.execution import Fault
from retool_env.faults import KINDS
from retool_env.faults.schedule import At
from retool_env.interpreter import Interpreter
from retool_env.problems import Problem, staged
from retool_env.problems.staged import read_stages
from retool_env.rollout import PolicyUnavailable, RolloutEngine, ScriptedPolicy, TextGeneration
from retool_env.rollout.fork import BARE, Fork, error_arms, has_program, shown_calls
from retool_env.rollout.policy import TextPolicy
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome, SandboxUnavailable
from retool_env.transcript import (
    Parent,
    StopReason,
    Transcript,
    check_transcript,
    read_transcripts,
    write_transcripts,
)

PROBLEM = Problem("p", "6 * 7?", "42")
RULES = Rules(max_tokens=600, prompt_template="{query}\n", max_calls=5)
SESSION = dataclasses.replace(RULES, session=True)
WRONG = Execution(Outcome.OK, "41\n")
FAILED = Execution(Outcome.RUNTIME_ERROR, "", "NameError: x", "Traceback:\n  a b c\nNameError: x")


class Model(ScriptedPolicy):
    """Runs programs in turn, then answers with the last result; it notes what it is asked."""

    def __init__(self, *programs: str) -> None:
        super().__init__(self.turn, make_tokenizer())
        self.programs = programs
        self.asked: list[tuple[tuple[int, ...], int, int]] = []

    def turn(self, text: str) -> str:
        shown = re.findall(r"<interpreter>\n(.*?)\n?</interpreter>", text, re.DOTALL)
        if len(shown) < len(self.programs):
            return f"Next: <code>\n{self.programs[len(shown)]}\n</code>"
        return f"<answer>{shown[-1]}</answer>"

    async def act(self, token_ids, stop, budget, seed):
        self.asked.append((tuple(token_ids), budget, seed))
        return await super().act(token_ids, stop, budget, seed)


class Box:
    """A sandbox without sessions: `x` fails, and other programs print 42."""

    async def run_async(self, code, limits=None, **_):
        return FAILED if code == "x" else Execution(Outcome.OK, "42\n")


def sampled(engine: RolloutEngine) -> Transcript:
    [[parent]] = engine.run([PROBLEM])
    check_transcript(parent)
    return parent


def run_forks(engine, forks, n=1, seed=0, deadline=None) -> list:
    async def collect():
        results = [None] * len(forks)
        async for index, group in engine.forks(forks, n, seed, deadline):
            results[index] = group
        return results

    return asyncio.run(asyncio.wait_for(collect(), 60))


def test_a_fork_takes_over_the_parents_spans_and_goes_on_with_new_seeds(tmp_path):
    policy = Model("a", "b", "c")
    engine = RolloutEngine(policy, RULES, Box())
    parent = sampled(engine)
    asked = [*policy.asked]
    policy.asked.clear()
    group = engine.fork(parent, 2, n=3, sample=5)
    assert len(group) == 3
    for fork in group:
        check_transcript(fork)
        assert [*map(id, fork.spans[:5])] == [*map(id, parent.spans[:5])]
        assert fork.spans == parent.spans  # a scripted model writes the same again
        assert fork.parent == Parent(5, 2, "control") and fork.reward == parent.reward == 1.0
    # The model is asked for the same turns as before, with the same budgets and other seeds.
    assert {turn[:2] for turn in policy.asked} == {turn[:2] for turn in asked[2:]}
    seeds = [seed for _, _, seed in policy.asked]
    assert len({*seeds, *(seed for _, _, seed in asked)}) == len(seeds) + len(asked) == 6 + 4
    write_transcripts(tmp_path / "forks.jsonl", group)
    assert [*read_transcripts(tmp_path / "forks.jsonl")] == group
    assert (engine.progress.total, engine.progress.done, engine.progress.executing) == (4, 4, 0)


def test_the_seeds_of_a_fork_do_not_depend_on_its_place_in_the_list():
    policy = Model("a", "b")
    engine = RolloutEngine(policy, RULES, Box())
    parent = sampled(engine)
    forks = [Fork(parent, 1), Fork(parent, 2), Fork(parent, 2, "wrong", WRONG)]
    seeds = []
    for chosen in (forks, forks[::-1], forks[1:]):
        policy.asked.clear()
        run_forks(engine, chosen, seed=3)
        seeds.append({seed for _, _, seed in policy.asked})
    assert seeds[0] == seeds[1] > seeds[2] and len(seeds[0]) == 4


def test_a_fork_shows_the_result_of_its_arm():
    engine = RolloutEngine(Model("a", "b"), RULES, Box())
    parent = sampled(engine)
    [fork] = engine.fork(parent, 2, WRONG, arm="wrong_value")
    assert fork.spans[:4] == parent.spans[:4] and fork.calls[1].execution == WRONG
    assert fork.answer == "41" and not fork.correct and fork.parent.arm == "wrong_value"
    [same] = engine.fork(parent, 2, parent.calls[1].execution)
    assert same.spans[4] is parent.spans[4]  # the true result is the parent's own span


def test_a_policy_of_text_is_forked_from_the_same_text():
    class Writer(TextPolicy):
        def __init__(self):
            self.model = Model("a", "b")
            self.seen = []

        async def write(self, transcript, stop, seed):
            self.seen.append(transcript.text)
            return TextGeneration(self.model.turn(transcript.text), "tag", 0.0)

    policy = Writer()
    rules = Rules(prompt_template="{query}\n")
    engine = RolloutEngine(policy, rules, Box())
    parent = sampled(engine)
    seen = [*policy.seen]
    policy.seen.clear()
    assert engine.fork(parent, 2)[0].spans == parent.spans
    assert policy.seen == seen[2:] and engine.fork(parent, 2)[0].parent.visible is False


# --- the arms after an error --------------------------------------------------------------------


def test_the_arms_after_an_error_and_their_equal_budgets():
    policy = Model("a", "x", "b")
    engine = RolloutEngine(policy, RULES, Box())
    parent = sampled(engine)
    arms = error_arms(parent, 2, sample=2)
    assert [arm.arm for arm in arms] == ["keep", "drop", "bare", "mended"]
    policy.asked.clear()
    policy.programs = ("a",)  # every arm answers at once
    groups = dict(zip([arm.arm for arm in arms], run_forks(engine, arms), strict=True))
    forks = {arm: group[0] for arm, group in groups.items()}
    assert all(fork.parent == Parent(2, 2, arm) for arm, fork in forks.items())
    assert forks["keep"].spans[:5] == parent.spans[:5]
    assert forks["drop"].spans[:3] == parent.spans[:3] and len(forks["drop"].spans) == 4
    assert forks["bare"].calls[1].execution == BARE
    assert "Error" in forks["bare"].spans[4].text and "Name" not in forks["bare"].spans[4].text
    assert forks["mended"].calls[1].execution == parent.calls[2].execution
    contexts = {len(ids) for ids, _, _ in policy.asked}
    assert len(contexts) == 4  # the contexts differ in length, and the budgets do not
    left = RULES.max_tokens - sum(len(span.token_ids) for span in parent.spans[1:5])
    assert {budget for _, budget, _ in policy.asked} == {left}


def test_on_a_staged_problem_the_right_number_of_the_stage_mends_an_error():
    problem = staged(difficulty=2)[0]
    first, second = read_stages(problem)
    execution, error = Execution(Outcome.OK, f"{first.value}\n"), FAILED
    turns = ["<code>print(1)</code>", "<code>print(x</code>", "<answer>1</answer>"]
    episode = Episode(problem, Rules(max_calls=5))
    for turn, result in zip(turns, (execution, error), strict=False):
        episode.act(turn)
        episode.executed(result)
    episode.act(turns[-1])
    episode.graded(False)
    *_, mended = error_arms(episode.transcript, 2)
    assert (mended.arm, mended.equal_budget) == ("mended", True)
    assert mended.result == Execution(Outcome.OK, f"{second.value}\n")
    # The result of a later call that ran comes first; other problems have no such arm.
    later = dataclasses.replace(episode.transcript.spans[4], execution=WRONG)
    spans = (*episode.transcript.spans[:5], episode.transcript.spans[3], later)
    assert error_arms(dataclasses.replace(episode.transcript, spans=spans), 2)[-1].result == WRONG
    plain = dataclasses.replace(episode.transcript, problem=PROBLEM)
    assert [arm.arm for arm in error_arms(plain, 2)] == ["keep", "drop", "bare"]


def test_a_long_result_of_a_fault_costs_no_budget_where_budgets_are_equal():
    policy = Model("a", "b")
    engine = RolloutEngine(policy, RULES, Box())
    parent = sampled(engine)
    policy.asked.clear()
    policy.programs = ("a",)  # every arm answers at once
    run_forks(
        engine,
        [
            Fork(parent, 1, schedule=At(1, "warning"), arm="warning", equal_budget=True),
            Fork(parent, 1, schedule=At(1, "timeout"), arm="timeout", equal_budget=True),
            Fork(parent, 1),
        ],
    )
    contexts = {len(ids) for ids, _, _ in policy.asked}
    left = RULES.max_tokens - sum(len(span.token_ids) for span in parent.spans[1:3])
    assert len(contexts) == 3 and {budget for _, budget, _ in policy.asked} == {left}


def test_no_arm_gets_more_calls_than_the_error_left():
    policy = Model("x", "a", "b", "c")
    rules = dataclasses.replace(RULES, max_calls=2)
    engine = RolloutEngine(policy, rules, Box())
    parent = sampled(engine)
    assert parent.stop_reason is StopReason.CALL_LIMIT
    for [fork] in run_forks(engine, error_arms(parent, 1)):
        own = [s for s in fork.spans if s.author == "env"][0 if fork.parent.arm == "drop" else 1 :]
        assert len(own) == 1 and fork.stop_reason is StopReason.CALL_LIMIT


def test_a_result_that_was_cut_is_shown_as_it_was():
    class Long(Box):
        async def run_async(self, code, limits=None, **_):
            return FAILED if code == "x" else Execution(Outcome.OK, "4" * 900)

    engine = RolloutEngine(Model("x", "a"), RULES, Long())
    parent = sampled(engine)
    mended = error_arms(parent, 1)[-1]
    [[fork]] = run_forks(engine, [mended])
    assert fork.spans[2].text == parent.spans[4].text and "500 characters cut" in fork.text


def test_a_stale_output_is_shown_in_a_fork_as_in_the_whole_episode():
    class Long(Box):
        async def run_async(self, code, limits=None, **_):
            return Execution(Outcome.OK, code * 900)

    rules = dataclasses.replace(RULES, max_tokens=4000)
    parent = sampled(RolloutEngine(Model("a", "b"), rules, Long()))
    [[fork]] = run_forks(
        RolloutEngine(Model("a", "b"), rules, Long()),
        [Fork(parent, 2, "stale", schedule=At(2, "stale"))],
    )
    assert fork.calls[1].execution.fault.injected
    assert fork.spans[4].text == fork.spans[2].text and "500 characters cut" in fork.text


def test_without_a_later_call_that_ran_there_is_no_mended_arm():
    parent = sampled(RolloutEngine(Model("a", "x"), RULES, Box()))
    assert [arm.arm for arm in error_arms(parent, 2)] == ["keep", "drop", "bare"]
    with pytest.raises(SettingsError, match="did not fail"):
        error_arms(parent, 1)


# --- programs that run anew ---------------------------------------------------------------------


def test_in_a_session_the_blocks_run_anew_in_the_real_jail(sandbox):
    policy = Model("a = 6", "b = 7", "print(a * b)")
    engine = RolloutEngine(policy, SESSION, sandbox)
    parent = sampled(engine)
    assert parent.correct
    for call in (1, 2, 3):
        [fork] = engine.fork(parent, call)
        assert fork.spans == parent.spans and fork.correct
    # The dropped block did not run, so its name is unknown.
    policy.programs = ("a = 6", "print(b)")
    [[dropped]] = run_forks(engine, [Fork(parent, 2, "drop", dropped=True)])
    assert "NameError: name 'b'" in dropped.calls[1].execution.error


def test_a_block_that_prints_another_text_makes_the_fork_not_reproducible(sandbox):
    policy = Model("import time; print(time.time_ns())", "print(42)")
    engine = RolloutEngine(policy, SESSION, sandbox)
    parent = sampled(engine)
    with pytest.raises(NotReproducible, match="p, call 1: the program gave ok"):
        engine.fork(parent, 1)
    # The other forks of a run go on: before the first block nothing runs anew.
    forks = [Fork(parent, 2), Fork(parent, 1, "drop", dropped=True)]
    reason, [dropped] = run_forks(engine, forks)
    assert isinstance(reason, NotReproducible) and dropped.correct
    assert engine.progress.total == engine.progress.done == 2  # the parent, and one fork


@pytest.mark.parametrize(
    "other",
    [
        Execution(Outcome.OK, "43\n"),
        Execution(Outcome.RUNTIME_ERROR, "42\n", "NameError: x"),
        Execution(Outcome.TIMEOUT, "42\n"),
    ],
)
def test_output_outcome_and_error_of_a_block_must_be_the_recorded_ones(other):
    results = {"a": Execution(Outcome.OK, "42\n"), "b": Execution(Outcome.OK, "42\n")}
    engine = RolloutEngine(Model("a", "b"), SESSION, Notebooks(lambda code: results[code]))
    parent = sampled(engine)
    assert engine.fork(parent, 2)[0].correct
    results["a"] = other
    with pytest.raises(NotReproducible):
        engine.fork(parent, 2)


class Faulty(Interpreter):
    """Shows a wrong value, or no tool, where a fault is ordered; it notes the needs."""

    needs: list = []  # noqa: RUF012  set by each test

    def run_async(self, need):
        Faulty.needs.append(need)

        async def run():
            real = await Interpreter.run_async(self, dataclasses.replace(need, fault=None))
            if need.fault is None:
                return real
            shown = WRONG if need.fault == "wrong_value" else FAILED
            return dataclasses.replace(shown, fault=Fault(need.fault, True, real))

        return run()


@pytest.fixture
def faulty(monkeypatch):
    monkeypatch.setattr("retool_env.rollout.engine.Interpreter", Faulty)
    monkeypatch.setattr(Faulty, "needs", [])
    return Faulty.needs


@pytest.mark.parametrize("rules", [RULES, SESSION])
def test_with_a_schedule_the_call_runs_anew_under_its_fault(faulty, rules):
    engine = RolloutEngine(
        Model("a", "b", "c"), rules, Notebooks(lambda code: Execution(Outcome.OK, "42\n"))
    )
    parent = sampled(engine)
    for kind, faults in (
        ("wrong_value", ["wrong_value", None]),
        ("gone", ["gone", "gone"]),
    ):
        faulty.clear()
        [fork] = engine.fork(parent, 2, arm=kind, schedule=At(2, kind))
        before = [("a", None)] if rules.session else []
        after = [("b", faults[0]), ("c", faults[1])]
        assert [(need.program, need.fault) for need in faulty] == [*before, *after]
        assert fork.spans[:4] == parent.spans[:4] and fork.parent == Parent(0, 2, kind)
        record = fork.calls[1].execution.fault
        assert record.kind == kind and record.real == parent.calls[1].execution
        check_transcript(fork)


def test_the_true_output_under_a_fault_must_be_the_recorded_one(faulty):
    results = {"a": Execution(Outcome.OK, "42\n")}
    engine = RolloutEngine(Model("a"), RULES, Notebooks())
    engine.sandbox.run = lambda code, limits, display: results[code]
    parent = sampled(engine)
    results["a"] = Execution(Outcome.OK, "43\n")
    assert engine.fork(parent, 1)[0].correct  # nothing runs anew
    with pytest.raises(NotReproducible, match="call 1"):
        engine.fork(parent, 1, schedule=At(1, "wrong_value"))


def test_a_shown_result_with_a_schedule_lets_later_calls_meet_the_fault(faulty):
    engine = RolloutEngine(Model("a", "b"), RULES, Box())
    parent = sampled(engine)
    faulty.clear()
    [fork] = engine.fork(parent, 1, FAILED, schedule=At(1, "gone"))
    assert [(need.program, need.fault) for need in faulty] == [("b", "gone")]
    assert fork.calls[0].execution == FAILED


# --- failures, deadlines ------------------------------------------------------------------------


def test_after_an_infrastructure_failure_a_fork_begins_again_at_its_prefix(monkeypatch):
    monkeypatch.setattr("retool_env.rollout.engine._RETRY_SECONDS", 0)
    failures = {"policy": 0, "sandbox": 0}

    class Flaky(Model):
        async def act(self, token_ids, stop, budget, seed):
            if failures["policy"]:
                failures["policy"] -= 1
                raise PolicyUnavailable("down")
            return await super().act(token_ids, stop, budget, seed)

    def answer(code):
        if failures["sandbox"]:
            failures["sandbox"] -= 1
            return Execution(Outcome.INFRASTRUCTURE, "", "gone")
        return Execution(Outcome.OK, "42\n")

    engine = RolloutEngine(Flaky("a", "b", "c"), SESSION, Notebooks(answer))
    parent = sampled(engine)
    for failing in failures:
        failures[failing] = 1
        [fork] = engine.fork(parent, 2)
        assert fork.spans == parent.spans and fork.parent == Parent(0, 2, "control")
        failures[failing] = 2
        [fork] = engine.fork(parent, 2)
        assert fork.stop_reason is StopReason.INFRASTRUCTURE and fork.reward is None
        assert fork.parent == Parent(0, 2, "control") and fork.spans == parent.spans[:5]
    assert engine.progress.retried == 4 and engine.progress.failed == 2


def test_a_deadline_cuts_a_fork_and_leaves_its_prefix():
    class Hanging(Model):
        async def act(self, token_ids, stop, budget, seed):
            if self.asked and len(self.asked) >= 3:
                await asyncio.Event().wait()
            return await super().act(token_ids, stop, budget, seed)

    engine = RolloutEngine(Hanging("a", "b"), RULES, Box(), concurrency=1)
    parent = sampled(engine)
    forks = [Fork(parent, 1), Fork(parent, 2, "wrong", WRONG)]  # the second one waits for room
    for fork, [cut] in zip(forks, run_forks(engine, forks, deadline=0.2), strict=True):
        assert cut.stop_reason is StopReason.CANCELLED and cut.parent.arm == fork.arm
        assert len(cut.spans) == 1 + 2 * fork.call


# --- what can be forked -------------------------------------------------------------------------


def test_the_calls_from_which_a_fork_can_go_on():
    """A void turn uses up a call; a result that found no room was not shown."""
    texts = iter(["<code>a</code>", "Hm.", "<code></code>", "<code>long</code>"])

    class Long(Box):
        async def run_async(self, code, limits=None, **_):
            return Execution(Outcome.OK, "1 2 3 " * 60 if code == "long" else "1\n")

    policy = ScriptedPolicy(lambda text: next(texts), make_tokenizer())
    rules = dataclasses.replace(RULES, max_tokens=150, void_turn="continue")
    parent = sampled(RolloutEngine(policy, rules, Long()))
    assert parent.stop_reason is StopReason.TOKEN_BUDGET and len(parent.calls) == 3
    assert shown_calls(parent) == [1, 3]
    assert [has_program(parent, call) for call in (1, 2, 3, 4)] == [True, False, False, True]
    with pytest.raises(SettingsError, match="holds no program"):
        Fork(parent, 3, schedule=At(3, "timeout"))
    for call in (0, 2, 4, 5):
        with pytest.raises(SettingsError, match="shown_calls"):
            Fork(parent, call)


def test_parents_that_are_refused():
    engine = RolloutEngine(Model("a"), RULES, Box())
    parent = sampled(engine)
    [fork] = engine.fork(parent, 1)
    faulty = dataclasses.replace(parent.spans[2].execution, fault=Fault("cut", False))
    spans = (*parent.spans[:2], dataclasses.replace(parent.spans[2], execution=faulty))
    for wrong, words in (
        (fork, "not itself a fork"),
        (dataclasses.replace(parent, stop_reason=None), "finished"),
        (dataclasses.replace(parent, revision=1), "of revision 1"),
        (dataclasses.replace(parent, spans=spans), "without faults"),
    ):
        with pytest.raises(SettingsError, match=words):
            Fork(wrong, 1)
    with pytest.raises(SettingsError, match="neither a result nor a schedule"):
        Fork(parent, 1, result=WRONG, dropped=True)


def test_an_engine_refuses_forks_under_other_rules_before_it_samples():
    parent = sampled(RolloutEngine(Model("a"), RULES, Box()))
    policy = Model("a")
    for rules, words in (
        (dataclasses.replace(RULES, prompt_template="Q {query}\n"), "its own prompt"),
        (dataclasses.replace(RULES, faults={"kinds": ["timeout"]}), "rules without faults"),
    ):
        with pytest.raises(SettingsError, match=words):
            RolloutEngine(policy, rules, Box()).fork(parent, 1)
    with pytest.raises(SettingsError, match="n must be at least 1"):
        RolloutEngine(policy, RULES, Box()).fork(parent, 1, n=0)
    with pytest.raises(SandboxUnavailable, match="wrong_function is made in the program's"):
        RolloutEngine(policy, RULES, Box()).fork(parent, 1, schedule=At(1, "wrong_function"))
    assert not policy.asked


# --- odd turns ----------------------------------------------------------------------------------

ODD = (
    *("<code>print(1)\nprint(22)</code> more", "<code></code>", "hm", "<code># x\n</code>"),
    *("<code>1/0</code>", "<code>1 +</code>", "<code>print('y' * 500, 77)</code>", "<code>print("),
    *("<code>import sympy\nprint(sympy.factorint(360))</code>", "<code>print()</code>"),
    *("<code>import os; os._exit(0)</code>", "<answer>7</answer>"),
)


@pytest.mark.parametrize(
    "rules",
    [
        {"session": True},
        {"void_turn": "continue", "max_void": 2, "max_calls": 3, "announce_calls": True},
        {"max_tokens": 150},
        {"output_characters": 20, "output_cut": "tail", "errors": "last_line"},
    ],
    ids=str,
)
def test_forks_of_odd_episodes_go_on_as_their_parents_or_with_one_fault(rules, sandbox):
    def turn(text: str) -> str:
        return ODD[int.from_bytes(hashlib.md5(text.encode()).digest()[:4], "big") % len(ODD)]

    policy = ScriptedPolicy(turn, make_tokenizer())
    engine = RolloutEngine(policy, dataclasses.replace(RULES, **rules), sandbox)
    problems = [Problem(f"p{i}", f"{i}?", "7") for i in range(5)]
    forks = []
    for [parent] in engine.run(problems):
        for call in shown_calls(parent):
            forks.append(Fork(parent, call))
            if has_program(parent, call):
                kinds = [kind for kind in KINDS if kind != "slow"]
                forks += [Fork(parent, call, kind, schedule=At(call, kind)) for kind in kinds]
    assert len(forks) > 10
    for fork, [one] in zip(forks, run_forks(engine, forks), strict=True):
        check_transcript(one)
        faults = [run.execution.fault for run in one.calls if run.execution.fault]
        if fork.arm == "control":
            assert dataclasses.replace(one, parent=None) == fork.transcript
        else:
            assert one.spans[2 * fork.call].execution.fault is faults[0]
            assert {fault.kind for fault in faults} == {fork.arm}
            assert len(faults) == 1 or KINDS[fork.arm].persistent
