"""Step: a trainer that names no later batch has none sampled ahead."""

from __future__ import annotations

import dataclasses

import pytest

from retool_env.training.step import Step

ASKED = {"number": 3, "batch": 3, "prompts": ["a", "a"], "group": 2, "temperature": 1.0}


def test_by_default_a_step_trains_and_foresees_no_batch():
    step = Step(**ASKED, model=None, accelerator=None, eos_token_ids=[0], log=print)
    assert step.training
    assert [step.coming(number) for number in range(3, 6)] == [None] * 3


def test_a_step_does_not_change_while_its_episodes_run():
    step = Step(**ASKED, model=None, accelerator=None, eos_token_ids=[0], log=print)
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.number = 4
