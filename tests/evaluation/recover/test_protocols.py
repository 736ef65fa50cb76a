"""The jobs of a design: each once, with the rules and the state of its arm."""

import asyncio
import dataclasses
import itertools

import pytest
from helpers.episodes import ANSWERED, CODE, NOTICE, OK, RIGHT, WRONG, episode

from agents.models.tiny import make_tokenizer
from retool_env.evaluation.recover import protocols
from retool_env.evaluation.recover.protocols import (
    Design,
    Job,
    can_fork,
    first_failed,
    fork_of,
    injected,
    prefix_jobs,
    with_room_for_results,
    with_turn_cap,
)
from retool_env.execution import Execution, Fault, Outcome
from retool_env.faults.schedule import At
from retool_env.problem import Problem
from retool_env.rollout import ScriptedPolicy
from retool_env.rules import Rules
from retool_env.transcript import Parent, StopReason

ERROR = Execution(Outcome.RUNTIME_ERROR, "shown", "NameError: x")
PROBLEMS = [Problem(id=name, question="?", answer="42") for name in "ab"]
RAN = episode("a", ANSWERED, (CODE, OK), RIGHT, correct=True)
MENDED = episode("a", ANSWERED, (CODE, ERROR), (CODE, OK), RIGHT, correct=True)
FAILED = episode("b", StopReason.INFRASTRUCTURE, (CODE, ERROR), CODE)
STUCK = episode("b", ANSWERED, ("hm", NOTICE), (CODE, ERROR), WRONG)


def design(*chosen, **more):
    settings = {
        **{"kinds": ("timeout", "gone"), "rates": (0.0, 0.25), "fork_call": lambda *_: 1},
        **{"k": 1, "m": 2, "samples": 3},
        **more,
    }
    return Design(chosen or protocols.PROTOCOLS, PROBLEMS, **settings)


def test_arms_differ_in_their_faults_alone_and_the_text_arm_in_its_prompt():
    rules, text = Rules(max_tokens=100, max_calls=2), Rules(interpreter=False, max_tokens=100)
    arms = design().whole_arms(rules, text)
    assert arms["dose", "0"] == rules and arms["frequency", "text"] == text
    assert arms["dose", "0.25"].faults.rate == 0.25
    gone = arms["frequency", "gone"].faults
    assert (gone.rate, gone.kinds) == (1.0, ("gone",))
    assert arms["frequency", "tool"] == with_room_for_results(rules)
    assert arms["frequency", "tool"].max_tokens >= 100 + 2 * rules.output_characters


def test_forks_alone_run_only_the_rate_without_faults():
    assert list(design("fork").whole_arms(Rules(), Rules())) == [protocols.PARENTS]
    assert list(design("frequency").whole_arms(Rules(), Rules())) == [
        ("frequency", arm) for arm in protocols.FREQUENCY
    ]


def test_each_job_has_a_key_of_its_own():
    one = design()
    arms = one.whole_arms(Rules(), Rules())
    parents = {("a", 0): MENDED, ("b", 0): STUCK}
    prefixes = [list(prefix_jobs(one, parents, first)) for first in (True, False)]
    keys = [job.key for job in itertools.chain(one.whole_jobs(arms), *prefixes)]
    assert len(set(keys)) == len(keys)
    by_protocol = [[job for job in jobs if job.protocol == "fork"] for jobs in prefixes]
    assert [len(jobs) for jobs in by_protocol] == [3, 3]  # control and two kinds, of one prefix
    natural = [job for job in prefixes[0] if job.protocol == "natural"]
    assert [(job.problem.id, job.call, job.arm) for job in natural] == [
        *[("a", 1, arm) for arm in ("keep", "drop", "bare", "mended")],
        *[("b", 2, arm) for arm in ("keep", "drop", "bare")],  # no later call ran
    ]


@pytest.mark.parametrize(
    ("transcript", "call", "forked", "failed"),
    [(RAN, 1, True, 0), (RAN, 2, False, 0), (STUCK, 1, False, 2), (FAILED, 1, False, 1)],
)
def test_a_prefix_needs_a_call_with_a_program(transcript, call, forked, failed):
    assert can_fork(transcript, call) == forked
    assert first_failed(transcript) == failed


def test_a_failed_parent_has_no_prefix():
    assert not list(prefix_jobs(design(), {("b", 0): FAILED}, True))


@pytest.mark.parametrize("arm", ["control", "timeout"])
def test_a_fork_meets_the_fault_of_its_arm_at_its_call(arm):
    fork = fork_of(Job("fork", arm, 0, PROBLEMS[0], 0, 3, 1), RAN)
    assert (fork.call, fork.arm, fork.sample) == (1, arm, 3)
    assert fork.schedule == (None if arm == "control" else At(1, arm))


def test_a_fault_that_did_not_take_place_is_told_from_one_that_did():
    def forked(arm, fault):
        shown = Execution(Outcome.OK, "42\n", fault=fault)
        parent = Parent(0, 1, arm)
        made = episode("a", ANSWERED, (CODE, shown), RIGHT)
        return type(made)(
            **{name: getattr(made, name) for name in made.__slots__} | {"parent": parent}
        )

    assert injected(forked("empty", Fault("empty", True)))
    assert not injected(forked("empty", Fault("empty", False)))
    assert injected(forked("control", None)) and injected(forked("keep", None)) and injected(RAN)


def test_a_fork_whose_sandbox_failed_at_the_call_says_nothing_of_its_fault():
    lost = episode("a", StopReason.INFRASTRUCTURE, CODE)
    assert injected(dataclasses.replace(lost, parent=Parent(0, 1, "empty")))


def test_a_capped_policy_writes_shorter_turns_and_the_shared_one_does_not():
    policy = ScriptedPolicy(lambda text: "abcdef", make_tokenizer())
    capped = with_turn_cap(policy, 3)
    assert len(asyncio.run(capped.act([], (), 100, 0)).token_ids) == 3
    assert len(asyncio.run(policy.act([], (), 100, 0)).token_ids) > 3
    assert asyncio.run(capped.act([], (), 2, 0)).stop_reason == "length"
