"""Figures and counts rest on the records alone."""

import dataclasses
from types import SimpleNamespace

import pytest
from helpers.episodes import ANSWERED, CODE, OK, RIGHT, WRONG, episode, with_ids

from retool_env.evaluation.recover.figures import counts, figures_of, selected, within_budget
from retool_env.evaluation.recover.records import ArmRecord
from retool_env.execution import Fault
from retool_env.rollout.policy import Usage
from retool_env.transcript import Parent, StopReason

RAN = episode("b", ANSWERED, (CODE, OK), RIGHT, correct=True)


@pytest.mark.parametrize(("budget", "right"), [(66, True), (65, False), (None, True)])
def test_a_budget_of_the_models_own_tokens_cuts_an_episode(budget, right):
    transcript = with_ids(RAN)
    cut = within_budget(transcript, budget, 66)
    assert cut.correct is right and (cut is transcript) == right
    if not right:
        assert cut.stop_reason is StopReason.TOKEN_BUDGET


@pytest.mark.parametrize(
    ("rules", "uncounted", "right"),
    [
        ({"max_tokens": 66}, 0, [True]),  # of a local model: 2 tokens a character of its text
        ({"max_tokens": 65}, 0, [False]),
        ({"max_tokens": None}, 0, [False]),  # of an API: by its count, 200 tokens
        ({"max_tokens": None}, 1, [True]),  # a turn was not counted
    ],
)
def test_the_arms_of_frequency_have_equal_budgets_also_behind_an_api(rules, uncounted, right):
    local = rules["max_tokens"] is not None
    sampling = {} if local else {"max_tokens": 199}
    record = SimpleNamespace(rules=rules, sampling=sampling)
    usage = None if local else Usage(2, completion_tokens=200, uncounted=uncounted)
    one = ArmRecord("m", "b", 0, 0, with_ids(RAN), usage, protocol="frequency", arm="tool")
    other = dataclasses.replace(one, protocol="dose", arm="0")
    arms = selected(record, [one, other], [])
    assert [t.correct for t in arms["frequency", "tool"]] == right
    assert arms["dose", "0"][0].correct  # the other protocols count results as well


def test_figures_are_of_the_protocols_that_ran():
    forked = [
        dataclasses.replace(
            episode(name, ANSWERED, (CODE, OK), answer, correct=answer == RIGHT),
            parent=Parent(0, 1, arm),
        )
        for name in "abc"
        for arm, answer in (("keep", WRONG), ("mended", RIGHT), ("bare", WRONG), ("drop", WRONG))
    ]
    arms = {}
    for one in forked:
        arms.setdefault(("natural", one.parent.arm), []).append(one)
    by_key = {figure.key: figure for figure in figures_of(arms)}
    assert by_key["natural/keep"].mean == 0.0 and by_key["natural/mended"].mean == 1.0
    assert all(key.startswith("natural/") for key in by_key)
    assert figures_of({}) == []


def test_an_arm_is_not_eligible_once_whichever_of_its_episodes_says_so():
    unfit = episode(
        "b", ANSWERED, (CODE, dataclasses.replace(OK, fault=Fault("cut", False))), RIGHT
    )
    lost = episode("b", StopReason.INFRASTRUCTURE, CODE)
    episodes = [
        ArmRecord(
            *("m", "b", sample, 0, dataclasses.replace(one, parent=Parent(parent, 1, "cut"))),
            **{"protocol": "fork", "arm": "cut", "parent": parent, "call": 1},
        )
        for parent, some in enumerate([(lost, unfit), (unfit, unfit), (lost, lost)])
        for sample, one in enumerate(some)
    ]
    found = counts(SimpleNamespace(fork_calls={}), episodes, [])
    assert found["not_eligible"] == {"cut": 2}
    assert found["infrastructure_failures"] == {"fork/cut": 3}
