"""The answer that a false value implies: the value itself, or what staged problems make of it."""

import dataclasses

import pytest
from helpers.episodes import episode

from retool_env.evaluation.recover.implied import implied_by_fault
from retool_env.execution import Execution, Fault, Outcome
from retool_env.problems import arithmetic, staged

SUM = arithmetic(difficulty=1)[0]
STAGED = staged(0, 3)[1]  # a = 13330, b = 6 a + 37 = 80017, c = 16, the sum of b's digits


def fork(problem, true, shown, kind="wrong_value", injected=True, real=True):
    """An episode whose second call showed a false result."""
    fault = Fault(kind, injected, Execution(Outcome.OK, true) if real else None)
    faulty = Execution(Outcome.OK, shown, fault=fault)
    before = Execution(Outcome.OK, "7\n", fault=Fault("slow", True, Execution(Outcome.OK, "7\n")))
    turns = [("<code>1</code>", before), ("<code>2</code>", faulty), "<answer>1</answer>"]
    made = episode("p", None, *turns)
    return dataclasses.replace(made, problem=problem)


@pytest.mark.parametrize(
    ("problem", "true", "shown", "implied"),
    [
        (SUM, "21\n", "-21\n", "-21"),
        (SUM, "the sum is 21", "the sum is 22", "22"),
        (SUM, "x = 3.5\n21\n", "x = 3.5\n20\n", "20"),
        (STAGED, "13330\n", "13331\n", "13"),  # b = 80023
        (STAGED, "a 13330\nb 80017\n", "a 13330\nb 80018\n", "17"),
        (STAGED, "13330 80017 16\n", "13330 80017 15\n", "15"),
        (STAGED, "13330\n", "-13330\n", None),  # b < 0 has no digits to add
        (STAGED, "26660\n", "26661\n", None),  # not the value of a stage
        (STAGED, "13330\n80017\n", "80017\n13330\n", None),  # two lines swapped
        (SUM, "21\n", "21 1\n", None),
        (SUM, "2.5\n", "2.6\n", None),
    ],
)
def test_the_implied_answer(problem, true, shown, implied):
    assert implied_by_fault(fork(problem, true, shown)) == implied


def test_results_without_a_known_false_value_are_not_judged():
    for settings in (
        {"injected": False},
        {"kind": "cut"},
        {"kind": "wrong_function", "real": False},
    ):
        assert implied_by_fault(fork(SUM, "21\n", "22\n", **settings)) is None


def test_a_wrong_function_is_judged_if_it_struck_once():
    once = fork(STAGED, "80017\n", "80018\n", kind="wrong_function")
    assert implied_by_fault(once) == "17"
    result = once.spans[4]
    again = dataclasses.replace(
        once, spans=(*once.spans[:-1], *once.spans[3:4], result, *once.spans[-1:])
    )
    assert implied_by_fault(again) is None  # its later results are wrong as well
