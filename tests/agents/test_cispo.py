"""CISPO: the settings that it refuses, and the loss that it passes to GRPO."""

from __future__ import annotations

import pytest

from agents import cispo
from agents.base.settings import SettingsError


def test_a_lower_clip_is_refused_before_anything_is_made(handed):
    with pytest.raises(SettingsError, match=r"leave clip_low=0\.1 out"):
        cispo.train(cispo.Settings(clip_low=0.1), None)
    assert not handed


def test_it_is_grpo_with_one_bound_on_the_weight(handed):
    settings = cispo.Settings()
    assert (settings.loss, settings.clip_high, settings.ratio_cap) == ("cispo", 5.0, 0.0)
    cispo.train(settings, None)
    assert handed == {"settings": settings}
