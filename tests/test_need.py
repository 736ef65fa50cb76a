"""Actions and needs are values."""

import dataclasses

import pytest

from retool_env.execution import Limits
from retool_env.need import Generation, RunProgram


def test_turns_that_differ_in_their_seconds_alone_are_equal():
    turn = Generation((1, 2), (-0.5, -0.25), "tag")
    assert turn == dataclasses.replace(turn, seconds=3.0)
    assert turn != dataclasses.replace(turn, stop_reason="eos")


def test_a_need_is_frozen_and_tells_programs_with_a_fault_apart():
    need = RunProgram("print(1)", Limits())
    assert need != dataclasses.replace(need, fault="timeout")
    with pytest.raises(dataclasses.FrozenInstanceError):
        need.program = "print(2)"
