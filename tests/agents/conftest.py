"""Fixtures of the tests of algorithms."""

import pytest

from agents import grpo


@pytest.fixture
def handed(monkeypatch):
    """The settings and further arguments that an algorithm passes to GRPO's training."""
    given = {}

    def train(settings, folder, resume, **more):
        given.update(more, settings=settings)

    monkeypatch.setattr(grpo, "train", train)
    return given
