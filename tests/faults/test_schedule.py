"""The schedule of faults: a hash that is the same for every model, and nested in the rate."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from retool_env.faults import KINDS, Faults
from retool_env.faults.schedule import At, Hashed
from retool_env.problem import Problem
from retool_env.rules import Rules

PROBLEM = Problem("p", "?", "1")


def orders(faults, problem="p", rollout=0, calls=200):
    schedule = Hashed(faults, problem, rollout)
    return [schedule.ordered(call) for call in range(1, calls + 1)]


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 5), st.integers(0, 5))
def test_a_higher_rate_keeps_the_faults_of_a_lower_rate(one, other, seed, rollout):
    low, high = (
        orders(Faults(rate=rate, seed=seed), rollout=rollout, calls=40)
        for rate in sorted((one, other))
    )
    assert all(a is None or a == b for a, b in zip(low, high, strict=True))


def test_the_share_of_calls_is_the_rate_and_every_kind_comes():
    assert set(orders(Faults(rate=0))) == {None}
    assert set(orders(Faults(rate=1), calls=2000)) == set(KINDS)
    quarter = orders(Faults(rate=0.25), calls=4000)
    assert 900 < sum(kind is not None for kind in quarter) < 1100


def test_problem_rollout_seed_and_call_change_the_faults():
    plain = orders(Faults(rate=0.5))
    assert plain == orders(Faults(rate=0.5))
    assert plain != orders(Faults(rate=0.5), rollout=1)
    assert plain != orders(Faults(rate=0.5), problem="q")
    assert plain != orders(Faults(rate=0.5, seed=1))


def test_in_training_all_rollouts_of_a_problem_meet_the_same_faults():
    faults = Faults(rate=0.5, by_rollout=False)
    assert orders(faults) == orders(faults, rollout=3)
    assert orders(faults) != orders(faults, problem="q")


def test_the_first_faults_of_the_suite_never_change():
    assert orders(Faults(rate=0.5), calls=8) == FIRST


def test_the_rules_give_the_schedule_of_an_episode():
    assert Rules().schedule(PROBLEM, 0) is None
    faults = Faults(rate=0.5)
    assert Rules(faults=faults).schedule(PROBLEM, 2) == Hashed(faults, "p", 2)
    assert dataclasses.replace(Rules(faults=faults), faults=None).schedule(PROBLEM, 2) is None


def test_a_fork_has_one_fault():
    assert [At(2, "cut").ordered(call) for call in (1, 2, 3)] == [None, "cut", None]


FIRST = [None, None, None, "timeout", "missing_package", None, None, None]
