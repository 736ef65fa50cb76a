"""The calls of an episode compared with the schedule of faults."""

import dataclasses

import pytest

from retool_env.episode import Episode, RunProgram
from retool_env.evaluation.recover.ordered import shows_arm, strange_call
from retool_env.execution import Execution, Outcome
from retool_env.faults import KINDS, Faults
from retool_env.faults.kinds import MADE_IN_GUEST, show
from retool_env.faults.schedule import At, Hashed
from retool_env.problem import Problem
from retool_env.rollout.fork import error_arms
from retool_env.rules import Rules

PROBLEM = Problem(id="p", question="?", answer="1")
KNOWN = tuple(kind for kind in KINDS if kind not in MADE_IN_GUEST)
OUTPUTS = ("the sum is 1234\n", "99 98\n" * 9, "", "no number at all\n", "7\n", "12345678\n" * 60)
RULES = Rules(output_characters=400)


def episode(schedule, rules=RULES, outputs=OUTPUTS, void_at=0):
    made = Episode(PROBLEM, rules, schedule=schedule)
    for number, stdout in enumerate(outputs, 1):
        need = made.act("I think" if number == void_at else f"<code>print({number})</code>")
        if isinstance(need, RunProgram):
            true = Execution(Outcome.OK, stdout)
            made.executed(true if need.fault is None else show(need, true))
    return made.transcript


def changed(transcript, call, **values):
    spans = list(transcript.spans)
    execution = dataclasses.replace(spans[2 * call].execution, **values)
    spans[2 * call] = dataclasses.replace(spans[2 * call], execution=execution)
    return dataclasses.replace(transcript, spans=tuple(spans))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("cut", ["middle", "head", "tail"])
def test_the_calls_of_an_episode_follow_from_its_own_schedule(seed, cut):
    rules = Rules(output_cut=cut, output_characters=50, void_turn="continue")
    schedule = Hashed(Faults(rate=0.7, kinds=KNOWN, seed=seed), "p", 0)
    assert strange_call(episode(schedule, rules, void_at=seed % 7), rules, schedule) == 0


def test_a_shown_result_that_is_longer_than_the_true_result_is_cut_in_the_record():
    rules = Rules(output_cut="tail", output_characters=100)
    schedule = At(2, "warning")
    transcript = episode(schedule, rules)  # the second output has 54 characters
    assert "characters cut" in transcript.spans[4].execution.stdout
    assert strange_call(transcript, rules, schedule) == 0


def test_another_rate_seed_rollout_or_problem_is_another_schedule():
    faults = Faults(rate=0.5, kinds=("busy", "try_again", "cut"))
    transcript = episode(Hashed(faults, "p", 0))
    for other in (
        Hashed(dataclasses.replace(faults, rate=1.0), "p", 0),
        Hashed(dataclasses.replace(faults, seed=1), "p", 0),
        Hashed(faults, "p", 1),
        Hashed(faults, "q", 0),
        None,
    ):
        assert strange_call(transcript, RULES, other) > 0


@pytest.mark.parametrize("kind", ["gone", "always_cut", "always_timeout"])
def test_a_persistent_fault_lasts_to_the_end_of_a_fork(kind):
    schedule = At(2, kind)
    transcript = episode(schedule)
    assert strange_call(transcript, RULES, schedule) == 0
    real = transcript.spans[10].execution.fault.real or Execution(Outcome.OK, OUTPUTS[4])
    assert strange_call(changed(transcript, 5, **vars_of(real)), RULES, schedule) == 5


def vars_of(execution):
    """The fields of a result without its fault."""
    return {"outcome": execution.outcome, "stdout": execution.stdout, "error": "", "fault": None}


def test_a_result_that_its_fault_does_not_make_is_strange():
    schedule = At(1, "wrong_value")
    transcript = episode(schedule)
    fault = transcript.spans[2].execution.fault
    real = Execution(Outcome.OK, "the sum is 1\n")
    forged = (
        {"stdout": "the sum is 5\n"},
        {"fault": dataclasses.replace(fault, injected=False)},
        {"fault": dataclasses.replace(fault, real=None)},
        {"fault": dataclasses.replace(fault, real=real)},
    )
    for values in forged:
        assert strange_call(changed(transcript, 1, **values), RULES, schedule) == 1
    assert strange_call(transcript, RULES, At(1, "unknown")) == 1


@pytest.mark.parametrize("arm", ["keep", "drop", "bare", "mended"])
def test_a_fork_at_an_error_shows_the_result_of_its_arm(arm):
    failed = Execution(Outcome.RUNTIME_ERROR, "", "NameError: x")
    made = Episode(PROBLEM, RULES)
    for result in (failed, Execution(Outcome.OK, "7\n")):
        made.act("<code>print(x)</code>")
        made.executed(result)
    made.act("<answer>7</answer>")
    made.graded(False)
    parent = made.transcript
    begun = next(one for one in error_arms(parent, 1) if one.arm == arm).begin(
        Episode(PROBLEM, RULES)
    )
    fork = begun.transcript
    assert shows_arm(fork, parent)
    if arm != "drop":
        assert not shows_arm(changed(fork, 1, outcome=Outcome.OK, stdout="8\n"), parent)
    other = dataclasses.replace(fork, parent=dataclasses.replace(fork.parent, arm="other"))
    assert not shows_arm(other, parent)
