"""The sign-flip test: exact for few sizes, drawn for many, and uniform without a difference."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.metrics import sign_flip
from retool_env.metrics.sign_flip import sign_flip_p

DIFFERENCES = st.lists(st.fractions(-1, 1, max_denominator=4).map(float), max_size=8)


def enumerated(values):
    """The p-value by all choices of signs."""
    least = abs(sum(values)) - 1e-9
    signs = list(itertools.product((1, -1), repeat=len(values)))
    extreme = sum(
        abs(sum(s * v for s, v in zip(some, values, strict=True))) >= least for some in signs
    )
    return extreme / len(signs)


@given(DIFFERENCES)
def test_the_p_value_is_the_share_of_all_choices_of_signs(values):
    assert sign_flip_p(values) == pytest.approx(enumerated(values))


@given(DIFFERENCES, st.randoms())
def test_neither_the_direction_nor_the_order_matters(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert sign_flip_p([-value for value in values]) == sign_flip_p(values)
    assert sign_flip_p(shuffled) == sign_flip_p(values)


def test_with_one_sample_it_is_the_exact_test_of_mcnemar():
    # b = 40 and c = 20 of 300 problems: twice the upper tail of a binomial with 60 cases.
    values = [1.0] * 40 + [-1.0] * 20 + [0.0] * 240
    tail = sum(math.comb(60, n) for n in range(40, 61)) / 2**60
    assert sign_flip_p(values) == pytest.approx(2 * tail)


def test_without_a_difference_p_is_1():
    assert sign_flip_p([]) == sign_flip_p([0.0, 0.0]) == sign_flip_p([0.5, -0.5]) == 1


def test_drawn_signs_agree_with_enumerated_signs(monkeypatch):
    values = [1.0] * 14 + [-1.0] * 6 + [0.5] * 9 + [-0.25] * 5
    exact = sign_flip_p(values)
    monkeypatch.setattr(sign_flip, "MOST_SUMS", 1)
    assert sign_flip_p(values) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(values) == sign_flip_p(values, seed=0) != sign_flip_p(values, seed=1)


def test_a_drawn_p_value_is_never_0():
    random = np.random.default_rng(0)
    values = list(random.uniform(0.1, 1, 300))  # 300 sizes
    assert sign_flip_p(values) == 1 / (sign_flip.DRAWS + 1)


def test_p_values_without_a_true_difference_are_uniform():
    random = np.random.default_rng(0)
    found = np.array(
        [sign_flip_p(list(np.diff(random.binomial(4, 0.6, (40, 2)) / 4)[:, 0])) for _ in range(400)]
    )
    for level in (0.05, 0.25, 0.5, 0.75):  # five standard errors, and the steps of the p-values
        assert abs(float((found <= level).mean()) - level) < 0.12, level
    assert 0.01 <= float((found <= 0.05).mean()) <= 0.1
