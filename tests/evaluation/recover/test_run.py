"""The order of jobs, and prefixes that can't be reproduced."""

import dataclasses
from types import SimpleNamespace

import pytest
from helpers.episodes import ANSWERED, CODE, OK, RIGHT, episode

from retool_env.episode import Episode
from retool_env.errors import NotReproducible, RequestRefused, SettingsError
from retool_env.evaluation.identity import ModelIdentity, fingerprint
from retool_env.evaluation.records import rules_to_json
from retool_env.evaluation.recover.protocols import PARENTS, Design
from retool_env.evaluation.recover.records import (
    ArmRecords,
    LeftOut,
    RecoverRecord,
    read_arms,
    read_left_out,
    read_recover,
)
from retool_env.evaluation.recover.run import DesignRun
from retool_env.execution import Fault
from retool_env.problem import Problem
from retool_env.rollout.progress import Progress
from retool_env.rules import Rules
from retool_env.transcript import Parent, StopReason

PROBLEM = Problem(id="a", question="?", answer="42")
PARENT = episode("a", ANSWERED, (CODE, OK), RIGHT, correct=True)


class FakeEngine(SimpleNamespace):
    """An engine whose forks under faults are not reproducible."""

    def __init__(self):
        super().__init__(progress=Progress(), concurrency=1, policy=None, asked=[])

    def check_prompts(self, problems):
        assert list(problems) == [PROBLEM]

    async def episode(self, problem, seed, on_turn, on_begin, fork=None):
        self.asked.append(None if fork is None else fork.arm)
        if fork is not None and fork.schedule is not None:
            raise NotReproducible("another output")
        return PARENT


def opened(folder, resume=False, **sizes):
    record = RecoverRecord(
        **{"name": "n", "model": ModelIdentity("m", "hub"), "env": "e", "settings": {}},
        **{"rules": rules_to_json(Rules()), "prompt": "{query}", "problems": 1, "sampling": {}},
        **{"fingerprint": fingerprint([PROBLEM]), "seed": 0, "k": 1, **sizes},
    )
    return ArmRecords(folder, record, [PROBLEM], resume)


@pytest.fixture
def records(tmp_path):
    return opened(tmp_path)


def test_a_prefix_that_cannot_be_reproduced_is_left_out_once_with_all_that_follows(records):
    engine = FakeEngine()
    design = Design(("fork",), [PROBLEM], ("timeout", "busy"), (0.0,), lambda *_: 1, 1, 2, 1)
    assert DesignRun(design, {PARENTS: engine}, records, "m", 0).run()
    assert engine.asked == [None, "control", "timeout", "busy"]  # no second continuation
    assert [one.reason for one in read_left_out(records.folder)] == ["another output"]
    assert [one.arm for one in read_arms(records.folder)] == ["0", "control"]
    assert engine.progress.total == engine.progress.done == 2


def test_no_episode_begins_once_the_money_is_spent(records):
    engine = FakeEngine()
    design = Design(("fork",), [PROBLEM], ("timeout",), (0.0,), lambda *_: 1, 1, 2, 1)
    run = DesignRun(design, {PARENTS: engine}, records, "m", 0, going_on=lambda: not engine.asked)
    assert not run.run()
    assert engine.asked == [None]


def test_a_resumed_run_keeps_a_prefix_left_out_and_drops_a_half_line(records):
    design = Design(("fork",), [PROBLEM], ("timeout",), (0.0,), lambda *_: 1, 1, 2, 1)
    assert DesignRun(design, {PARENTS: FakeEngine()}, records, "m", 0).run()
    records.close("finished", 0.0)
    with open(records.folder / "left_out.jsonl", "a") as file:
        file.write('{"protocol": "fork", "pro')  # its writer was killed
    again, engine = opened(records.folder, resume=True), FakeEngine()
    assert DesignRun(design, {PARENTS: engine}, again, "m", 0).run()
    assert engine.asked == []
    again.leave_out(LeftOut("natural", "a", 0, 1, "x"))
    assert [one.protocol for one in read_left_out(records.folder)] == ["fork", "natural"]


def test_a_folder_that_is_resumed_with_smaller_numbers_keeps_what_it_has(records):
    records.close("finished", 0.0)
    folder = records.folder
    calls = {"fork_calls": {"a": [1, 2, 1]}}
    opened(folder, True, k=3, m=1, samples=4, protocols=["dose"], **calls).close("finished", 0.0)
    calls = {"fork_calls": {"a": [1]}}
    now = opened(folder, True, k=1, m=2, samples=1, protocols=["fork"], **calls).record
    assert (now.k, now.m, now.samples, now.protocols) == (3, 2, 4, ["dose", "fork"])
    assert now.fork_calls == {"a": [1, 2, 1]} and read_recover(folder) == now


class FlakyEngine(FakeEngine):
    """An engine whose sandbox fails at the first fork under a fault, until it is mended."""

    broken = True

    async def episode(self, problem, seed, on_turn, on_begin, fork=None):
        self.asked.append(None if fork is None else (fork.arm, seed[-1]))
        if fork is None or fork.schedule is None:
            return PARENT
        parent = Parent(0, 1, fork.arm)
        if self.broken and seed[-1] == 0:
            lost = episode("a", StopReason.INFRASTRUCTURE, CODE)
            return dataclasses.replace(lost, parent=parent)
        run = dataclasses.replace(OK, fault=Fault(fork.arm, injected=False))
        true = episode("a", ANSWERED, (CODE, run), RIGHT, correct=True)
        return dataclasses.replace(true, parent=parent)


def test_a_failed_fork_runs_again_also_where_a_later_one_was_not_eligible(records):
    engine = FlakyEngine()
    design = Design(("fork",), [PROBLEM], ("stale",), (0.0,), lambda *_: 1, 1, 3, 1)
    assert DesignRun(design, {PARENTS: engine}, records, "m", 0).run()
    stale = [asked for asked in engine.asked if asked and asked[0] == "stale"]
    assert stale[:2] == [("stale", 0), ("stale", 1)]
    records.close("finished", 0.0)
    again = opened(records.folder, resume=True)
    assert sum(again.ended.values()) == 1
    engine.broken, engine.asked = False, []
    assert DesignRun(design, {PARENTS: engine}, again, "m", 0, retry_failed=True).run()
    assert engine.asked == [("stale", 0)] and not any(again.ended.values())


class RefusingEngine(FakeEngine):
    """An engine of an API that refuses the requests of some arms."""

    def __init__(self, *refused):
        super().__init__()
        self.refused = refused

    async def episode(self, problem, seed, on_turn, on_begin, fork=None):
        arm = None if fork is None else fork.arm
        on_begin(Episode(problem, Rules()))
        if arm in self.refused:
            raise RequestRefused("no such words, please")
        return PARENT if fork is None else dataclasses.replace(PARENT, parent=Parent(0, 1, arm))


def test_a_refused_request_fails_its_episode_and_the_others_go_on(records):
    design = Design(("fork",), [PROBLEM], (), (0.0,), lambda *_: 1, 1, 1, 1)
    assert DesignRun(design, {PARENTS: RefusingEngine("control")}, records, "m", 0).run()
    whole, fork = read_arms(records.folder)
    assert (whole.failed, whole.error) == (False, None)
    assert (fork.failed, fork.error) == (True, "no such words, please")


def test_a_refusal_before_any_answer_ends_the_run(records):
    design = Design(("fork",), [PROBLEM], (), (0.0,), lambda *_: 1, 1, 1, 1)
    with pytest.raises(RequestRefused):
        DesignRun(design, {PARENTS: RefusingEngine(None)}, records, "m", 0).run()
    assert list(read_arms(records.folder)) == []


def test_a_whole_folder_is_not_resumed_as_a_quick_one(records):
    records.close("finished", 0.0)
    with pytest.raises(SettingsError, match="quick: True, not False"):
        opened(records.folder, True, quick=True)
