"""Problems in stages: their values, the answers that false values imply, and foreign metadata."""

import dataclasses
import itertools
import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.errors import DataError
from retool_env.problems import arithmetic, staged
from retool_env.problems.staged import IMPORTS, asked_stage, implied_answer, read_stages

LEVELS = (2, 3, 4, 5)
problems = st.builds(
    lambda seed, level, index, split: staged(seed, level, split=split)[index],
    st.integers(),
    st.sampled_from(LEVELS),
    st.integers(0, 9_999),
    st.sampled_from(["train", "test"]),
)


@cache
def imported():
    names = {}
    exec(IMPORTS, names)
    return names


def values_of(stages, **false):
    """The values of the expressions, in order, with false values in place of some."""
    values = {}
    for stage in stages:
        computed = eval(stage.expression, dict(imported()), values)
        values[stage.name] = false.get(stage.name, computed)
    return values


@given(problems)
@settings(max_examples=60)
def test_the_values_are_those_of_the_expressions(problem):
    stages = read_stages(problem)
    values = values_of(stages)
    assert values == {stage.name: stage.value for stage in stages}
    assert str(values[stages[-1].name]) == problem.answer
    assert len(stages) == problem.metadata["difficulty"] == len(set(values.values()))
    assert all(2 <= value <= 10**8 for value in values.values()) and int(problem.answer) >= 10
    texts = [stage.text for stage in stages]
    assert problem.question == " ".join([*texts, f"Compute {stages[-1].name}."])
    for before, stage in itertools.pairwise(stages):
        assert stage.operands[0] == before.name  # so every stage leads to the answer


@given(problems, st.data())
@settings(max_examples=60)
def test_a_false_value_implies_the_answer_that_the_later_expressions_give(problem, data):
    stages = read_stages(problem)
    stage = data.draw(st.sampled_from(stages))
    assert implied_answer(problem, stage.name, stage.value) == problem.answer
    false = data.draw(st.integers(1, 10**9))
    implied = implied_answer(problem, stage.name, false)
    try:
        values = values_of(stages, **{stage.name: false})
    except ValueError:  # the largest prime factor of 1 or 0
        assert implied is None
    else:
        # Of 0 and 1, some functions have a value that no reader would expect.
        degenerate = {0, 1} & {values[s.name] for s in stages[:-1]}
        assert implied == str(values[stages[-1].name]) or (implied is None and degenerate)


def test_a_false_value_nearly_always_changes_the_answer():
    changed = [
        implied_answer(problem, stage.name, stage.value + step) != problem.answer
        for problem in staged(0, LEVELS, size=200)
        for stage in read_stages(problem)
        for step in (-1, 1)
    ]
    assert sum(changed) / len(changed) > 0.95


def test_values_without_a_next_value_imply_nothing():
    problem = next(
        p
        for p in staged(0, 2, size=200)
        if read_stages(p)[1].operation in ("divisors", "largest_prime", "prime_sum")
    )
    for false in (0, -12, 10**16):
        assert implied_answer(problem, "a", false) is None
    assert implied_answer(problem, "b", -12) == "-12"


def test_a_problem_never_changes():
    problem = staged(0, 3)[1]
    assert (problem.id, problem.answer) == ("staged/train-seed0-level3/1", "16")
    assert problem.question == (
        "Let a = 31 * 430. Let b = a * 6 + 37. Let c be the sum of the decimal digits of b. "
        "Compute c."
    )
    assert [dataclasses.astuple(stage)[:3] for stage in read_stages(problem)] == [
        ("a", "product", (31, 430)),
        ("b", "product_more", ("a", 6, 37)),
        ("c", "digit_sum", ("b",)),
    ]
    # b = 80017 and its digits sum to 16; a false a = 13331 gives b = 80023 and the sum 13.
    assert implied_answer(problem, "a", 13331) == "13"


def test_other_problems_have_no_stages():
    assert read_stages(arithmetic()[0]) == ()
    with pytest.raises(KeyError, match="has no stage 'z'; its stages are a, b"):
        implied_answer(staged()[0], "z", 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: "[",
        lambda rows: [{}],
        lambda rows: [1],
        lambda rows: [rows[0], {**rows[1], "operation": "__import__"}],
        lambda rows: [rows[0], {**rows[1], "operands": ["z", 3, 4]}],
        lambda rows: [rows[0], {**rows[1], "operands": ["a", None, 4]}],
        lambda rows: [rows[0], {**rows[1], "operation": "remainder", "operands": ["a", 0]}],
    ],
)
def test_foreign_stages_are_refused_and_never_run(change):
    problem = staged()[0]
    changed = change(json.loads(problem.metadata["stages"]))
    stages = changed if isinstance(changed, str) else json.dumps(changed)
    problem = dataclasses.replace(problem, metadata={"stages": stages})
    with pytest.raises(DataError):
        implied_answer(problem, "a", 5)


@pytest.mark.parametrize(
    ("program", "outputs", "name"),
    [
        ("b = a + 1\nprint(b", (), "b"),  # the name that it prints
        ("print(a)\nprint( c )", (), "c"),  # the last such name
        ("print(total)", (), "a"),
        ("print(a + b)", ("{a}\n",), "b"),  # the first number that was not shown
        ("print(x)", ("a = {a}, b = {b}",), "c"),
        ("print(x)", ("{a}0\n", "{a}.5"), "a"),  # other numbers
        ("print(x)", ("{a} {b} {c}",), "c"),
    ],
)
def test_a_failed_program_asked_for_the_stage_that_it_prints_or_for_the_next_one(
    program, outputs, name
):
    problem = staged(difficulty=3)[0]
    values = {stage.name: stage.value for stage in read_stages(problem)}
    shown = [text.format(**values) for text in outputs]
    assert asked_stage(problem, program, shown).name == name


def test_other_problems_have_no_stage():
    assert asked_stage(arithmetic()[0], "print(a)", ()) is None
