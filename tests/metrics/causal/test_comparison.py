"""Paired tests of two models, and Holm's adjustment."""

from __future__ import annotations

import itertools

import pytest
from helpers.forks import fork
from hypothesis import given
from hypothesis import strategies as st

from retool_env.metrics.causal.comparison import compare_models, holm


def model(effects):
    """Forks with these fault effects by kind and problem: 0, or -1."""
    return [
        fork(problem, arm, end)
        for kind, values in effects.items()
        for problem, value in values.items()
        for arm, end in (("control", "right"), (kind, "7" if value else "right"))
    ]


def test_models_are_paired_by_problem():
    first = model({"timeout": dict(zip("abcdefg", (0, 0, 0, 0, 0, -1, 0), strict=True))})
    second = model({"timeout": dict(zip("abcdefx", (-1, 0, -1, 0, -1, 0, -1), strict=True))})
    (found,) = compare_models(first, second)
    assert (found.kind, found.problems) == ("timeout", 6)
    assert found.difference == pytest.approx(2 / 6)
    # Differences 1, 0, 1, 0, 1, -1: with 10 of 16 choices of signs, the sum is 2 or more from 0.
    assert found.p == pytest.approx(10 / 16)
    assert found.adjusted == found.p
    assert (found.low, found.high) == (None, None)  # only three differ from the most frequent 0


def test_models_whose_difference_hardly_varies_have_no_interval():
    def compared(worse):
        names = [f"p{i}" for i in range(40)]
        second = {name: -1 if i < worse else 0 for i, name in enumerate(names)}
        first = model({"timeout": dict.fromkeys(names, 0)})
        return compare_models(first, model({"timeout": second}))[0]

    for worse in (0, 4, 36, 40):
        found = compared(worse)
        assert (found.difference, found.low, found.high) == (worse / 40, None, None)
    found = compared(5)
    assert found.low < 5 / 40 < found.high


def test_several_kinds_are_adjusted_together():
    names = [f"p{i}" for i in range(8)]
    first = model({k: dict.fromkeys(names, 0) for k in ("timeout", "busy")})
    worse = {name: -1 if i < 6 else 0 for i, name in enumerate(names)}
    second = model({"timeout": worse, "busy": dict.fromkeys(names, 0)})
    timeout, busy = compare_models(first, second)
    assert timeout.p == 2 / 2**6 and timeout.adjusted == 2 * timeout.p
    assert (busy.difference, busy.p, busy.adjusted) == (0, 1, 1)


def test_few_common_problems_and_placebos_are_not_tested():
    five, six = dict.fromkeys("abcde", 0), dict.fromkeys("abcdef", 0)
    assert compare_models(model({"timeout": six}), model({"timeout": five})) == []
    assert compare_models(model({"blank_line": six}), model({"blank_line": six})) == []
    assert len(compare_models(model({"timeout": six}), model({"timeout": six}))) == 1


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(values):
    adjusted = holm(values)
    assert all(p <= q <= 1 for p, q in zip(values, adjusted, strict=True))
    ranked = [q for _, q in sorted(zip(values, adjusted, strict=True))]
    assert ranked == sorted(ranked)
    assert all(q <= min(1, len(values) * p) for p, q in zip(values, adjusted, strict=True))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni_tests(values):
    """A hypothesis falls if each intersection that holds it falls by Bonferroni's test."""
    indices = range(len(values))
    subsets = [s for size in indices for s in itertools.combinations(indices, size + 1)]
    by_closure = [
        max(min(1.0, len(s) * min(values[j] for j in s)) for s in subsets if i in s)
        for i in indices
    ]
    assert holm(values) == pytest.approx(by_closure)
