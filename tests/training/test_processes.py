"""An error on one process is one on all of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from retool_env.training.processes import RolloutsAbandoned, gathered, together


def two(other):
    """The first of two processes, of which the second has these numbers."""
    return SimpleNamespace(
        num_processes=2,
        device="cpu",
        gather=lambda own: torch.cat([own, torch.tensor([other], dtype=own.dtype)]),
    )


def work():
    return 7


def leave():
    raise RolloutsAbandoned("stop")


def fail():
    raise OSError("disk full")


def test_numbers_are_those_of_each_process():
    assert gathered(two([3.0, 4.0]), 1, 2) == [[1.0, 2.0], [3.0, 4.0]]
    assert gathered(SimpleNamespace(num_processes=1), 1, 2) == [[1.0, 2.0]]


def test_what_succeeds_everywhere_gives_its_result():
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
def test_an_error_anywhere_ends_the_work_of_all(own, other, error, message):
    with pytest.raises(error, match=message):
        together(two(other), own)
