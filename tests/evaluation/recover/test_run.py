"""The order of jobs, and prefixes that can't be reproduced."""

from types import SimpleNamespace

import pytest
from helpers.episodes import ANSWERED, CODE, OK, RIGHT, episode

from retool_env.errors import NotReproducible
from retool_env.evaluation.identity import ModelIdentity, fingerprint
from retool_env.evaluation.records import rules_to_json
from retool_env.evaluation.recover.protocols import PARENTS, Design
from retool_env.evaluation.recover.records import (
    ArmRecords,
    RecoverRecord,
    read_arms,
    read_left_out,
)
from retool_env.evaluation.recover.run import DesignRun
from retool_env.problem import Problem
from retool_env.rollout.progress import Progress
from retool_env.rules import Rules

PROBLEM = Problem(id="a", question="?", answer="42")
PARENT = episode("a", ANSWERED, (CODE, OK), RIGHT, correct=True)


class FakeEngine(SimpleNamespace):
    """An engine whose forks under faults are not reproducible."""

    def __init__(self):
        super().__init__(progress=Progress(), concurrency=1, policy=None, asked=[])

    def check_prompts(self, problems):
        assert list(problems) == [PROBLEM]

    async def episode(self, problem, seed, on_turn, fork=None):
        self.asked.append(None if fork is None else fork.arm)
        if fork is not None and fork.schedule is not None:
            raise NotReproducible("another output")
        return PARENT


@pytest.fixture
def records(tmp_path):
    record = RecoverRecord(
        **{"name": "n", "model": ModelIdentity("m", "hub"), "env": "e", "settings": {}},
        **{"rules": rules_to_json(Rules()), "prompt": "{query}", "problems": 1, "sampling": {}},
        **{"fingerprint": fingerprint([PROBLEM]), "k": 1, "seed": 0},
    )
    return ArmRecords(tmp_path, record, [PROBLEM])


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
