"""Trainers without a loop: what one step does, and that it changes no weight."""

from __future__ import annotations

import pytest
import torch

from benchmarks.parts import batches
from benchmarks.parts.trainers import OURS, PASSES, Steps

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_step_trains_in_micro_batches_and_changes_no_weight(
    checkpoint: str, batch: batches.Batch, tmp_path, monkeypatch
) -> None:
    steps = Steps(OURS, checkpoint, batch, PASSES, 0.0, False, str(tmp_path))
    before = [p.detach().clone() for p in steps.trainer.model.parameters()]
    updates = []
    original = steps.trainer.optimizer.step
    monkeypatch.setattr(steps.trainer.optimizer, "step", lambda: updates.append(original()))
    assert steps.step() > 0
    assert len(updates) == PASSES
    after = steps.trainer.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_gradient_holds_all_parameters(checkpoint: str, batch: batches.Batch, tmp_path) -> None:
    steps = Steps(OURS, checkpoint, batch, 1, 0.0, False, str(tmp_path))
    loss, gradient = steps.loss_and_gradient(steps.batch())
    number = sum(p.numel() for p in steps.trainer.model.parameters())
    assert gradient.shape == (number,) and gradient.dtype == torch.float64
    assert gradient.norm() > 0 and abs(loss) < 10
    assert all(p.grad is None for p in steps.trainer.model.parameters())
