"""DAPO: the overlong punishment, and the arguments that it passes to GRPO."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from helpers import references

from agents import dapo
from agents.base.settings import SettingsError
from agents.dapo import soft_overlong


@pytest.mark.parametrize(
    ("length", "punishment"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (130, -1.0)],
)
def test_the_soft_overlong_punishment(length, punishment):
    assert soft_overlong(length, 100, 20) == pytest.approx(punishment)
    assert references.overlong(length, 100, 20) == pytest.approx(punishment)


@pytest.mark.parametrize("overlong", [0.1, 1.0])
def test_dapo_punishes_in_the_last_share_of_the_budget(handed, overlong):
    dapo.train(dapo.Settings(overlong=overlong), None)
    for length in (0, 45, 90, 95, 100, 120):
        expected = references.overlong(length, 100, 100 * overlong)
        transcript = SimpleNamespace(completion_ids=[1] * length)
        assert handed["bonus"](transcript, 100) == pytest.approx(expected)


def test_dapo_without_the_punishment_adds_nothing(handed):
    dapo.train(dapo.Settings(overlong=0.0), None)
    assert handed["bonus"] is None


@pytest.mark.parametrize("overlong", [-0.1, 1.1])
def test_dapo_refuses_what_is_no_share(overlong):
    with pytest.raises(SettingsError, match="from 0 to 1"):
        dapo.train(dapo.Settings(overlong=overlong), None)
