"""An error on one process is one on all of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import distributed

from retool_env.training import processes
from retool_env.training.processes import (
    RolloutsAbandoned,
    everywhere,
    gathered,
    phase,
    present_phase,
    together,
)


@pytest.fixture
def two(monkeypatch):
    """Makes this process the first of two processes, of which the second has these numbers."""

    def made(other):
        monkeypatch.setattr(processes, "everywhere", lambda own: [own, other])
        return SimpleNamespace(num_processes=2)

    return made


def work():
    return 7


def leave():
    raise RolloutsAbandoned("stop")


def fail():
    raise OSError("disk full")


def test_numbers_are_those_of_each_process(two):
    assert gathered(two([3.0, 4.0]), 1, 2) == [[1.0, 2.0], [3.0, 4.0]]
    assert gathered(SimpleNamespace(num_processes=1), 1, 2) == [[1.0, 2.0]]


def test_what_succeeds_everywhere_gives_its_result(two):
    assert together(two([0.0, 0.0]), work) == 7


@pytest.mark.parametrize(
    ("own", "other", "error", "message"),
    [
        (fail, [0.0, 0.0], OSError, "disk full"),
        (fail, [0.0, 1.0], OSError, "disk full"),
        (work, [1.0, 0.0], RuntimeError, "process 1 failed"),
        (leave, [1.0, 0.0], RuntimeError, "process 1 failed"),
        (work, [0.0, 1.0], RolloutsAbandoned, "abandoned"),
        (leave, [0.0, 0.0], RolloutsAbandoned, "abandoned"),
    ],
)
def test_an_error_anywhere_ends_the_work_of_all(two, own, other, error, message):
    with pytest.raises(error, match=message):
        together(two(other), own)


def test_a_value_is_everywhere_in_a_group_with_a_long_time_limit(tmp_path):
    assert everywhere({"step": 1}) == [{"step": 1}]
    store = f"file://{tmp_path}/store"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        group = processes._waiting_group()
        assert group is processes._waiting_group() is not distributed.group.WORLD
        assert group._get_backend(torch.device("cpu")).options._timeout == processes.WAIT
    finally:
        distributed.destroy_process_group()


def test_a_phase_ends_with_its_block_and_outer_work_goes_on():
    before = present_phase()[0]
    with phase("rollouts"):
        assert present_phase()[0] == "rollouts"
        with phase("weights"):
            name, since = present_phase()
            assert name == "weights" and since > 0
        assert present_phase()[0] == "rollouts"
    assert present_phase()[0] == before
