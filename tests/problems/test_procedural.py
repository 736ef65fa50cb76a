"""Arithmetic: right answers, the same problems again, their difficulties, and disjoint splits."""

import ast
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.problems import Problem, arithmetic

LEVELS = (1, 2, 3, 4, 5)


def evaluate(node):
    """The value of an expression, from Python's syntax tree."""
    match node:
        case ast.Expression(body=body):
            return evaluate(body)
        case ast.Constant(value=value):
            return value
        case ast.BinOp(left=left, op=op, right=right):
            a, b = evaluate(left), evaluate(right)
            return a + b if isinstance(op, ast.Add) else a - b if isinstance(op, ast.Sub) else a * b
    raise AssertionError(ast.dump(node))


@given(
    st.integers(),
    st.sampled_from(LEVELS),
    st.integers(0, 9_999),
    st.sampled_from(["train", "test"]),
)
def test_the_answer_is_the_value_of_the_expression(seed, level, index, split):
    problem = arithmetic(seed, level, split=split)[index]
    expression = problem.metadata["expression"]
    assert int(problem.answer) == evaluate(ast.parse(expression, mode="eval"))
    assert problem.question == f"Compute {expression}."
    assert problem.metadata["difficulty"] == level


def test_equal_settings_give_equal_problems_in_any_order():
    first = [arithmetic(3, LEVELS)[i] for i in range(50)]
    random.seed(0)
    state = random.getstate()
    assert [arithmetic(3, LEVELS)[i] for i in reversed(range(50))] == first[::-1]
    assert random.getstate() == state
    assert first[:2] != [arithmetic(4, LEVELS)[i] for i in range(2)]
    # A problem never changes, in any process or version, because runs are compared by these ids.
    assert arithmetic(0, 4)[0] == Problem(
        "arithmetic/train-seed0-level4/0",
        "Compute (22 + 32) * 15 - 89.",
        "721",
        {"difficulty": 4, "expression": "(22 + 32) * 15 - 89"},
    )


@pytest.mark.parametrize("level", LEVELS)
def test_no_expression_is_in_both_splits(level):
    train = {p.question for seed in range(3) for p in arithmetic(seed, level, size=1500)}
    test = {
        p.question for seed in range(3) for p in arithmetic(seed, level, size=500, split="test")
    }
    assert not train & test
    assert len(test) > 100


@pytest.mark.parametrize(
    ("level", "digits", "products", "brackets"),
    [
        (1, 1, {0}, {0}),
        (2, 2, {0, 1}, {0}),
        (3, 2, {1}, {0}),
        (4, 2, {1}, {1, 2}),
        (5, 3, {3}, {2}),
    ],
)
def test_difficulty(level, digits, products, brackets):
    expressions = [p.metadata["expression"] for p in arithmetic(1, level, size=300)]
    assert {text.count("*") for text in expressions} == products
    assert {text.count("(") for text in expressions} == brackets
    assert {max(map(len, re.findall(r"\d+", text))) for text in expressions} == {digits}
    assert len(set(expressions)) > 250


def test_levels_take_turns():
    source = arithmetic(0, (2, 5), size=10)
    assert [p.metadata["difficulty"] for p in source] == [2, 5] * 5
    assert len(source) == 10 and len({p.id for p in source}) == 10
