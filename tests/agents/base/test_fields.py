"""The settings that several algorithms share: their help texts and their checks."""

from __future__ import annotations

import dataclasses

import pytest

from agents import cispo, demo, dr_grpo, grpo, ppo, sft
from agents.base.fields import PolicySettings, check_policy_settings
from agents.base.presets import load_settings
from agents.base.settings import SettingsError, describe, help_of


def test_a_default_of_its_own_leaves_a_setting_as_it_is_described():
    for name in ("clip_high", "correction", "name"):
        assert help_of(dr_grpo.Settings, name) == help_of(ppo.Settings, name) != ""
    assert help_of(grpo.Settings, "steps") != help_of(ppo.Settings, "steps")


@pytest.mark.parametrize("module", [sft, grpo, demo])
def test_every_setting_is_described(module):
    for line in describe(module.Settings).splitlines():
        assert not line.endswith(": "), line


def test_cispo_refuses_what_has_no_part_in_its_loss(tmp_path):
    settings = load_settings(cispo.Settings, "cispo", "tiny", ["ratio_cap=9"])
    with pytest.raises(SettingsError, match="ratio_cap has no effect with loss=cispo"):
        grpo.check_batch(settings, 1)
    settings = load_settings(cispo.Settings, "cispo", "tiny", ["clip_low=0.1"])
    with pytest.raises(SettingsError, match="CISPO's loss does not use clip_low"):
        cispo.train(settings, tmp_path / "run")


def test_the_shared_settings_of_the_defaults_are_in_range():
    check_policy_settings(PolicySettings(name="x"), 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batch": 0}, "micro_batch must be at least 1"),
        ({"deadline": -1.0}, "deadline must be at least 0"),
        ({"staleness": -1}, "staleness must be at least 0"),
        ({"tokens_in_flight": -1}, "tokens_in_flight must be at least 0"),
        ({"resample": -1}, "resample must be at least 0"),
        ({"oversample": 0.5}, "oversample must be at least 1"),
        ({"spare": 0.5}, "spare must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"correction_cap": 0.5}, "correction_cap must be at least 1"),
        ({"correction_low": 1.0}, "correction_low=1.0 must be at least 0 and below 1"),
        ({"correction_high": 1.0}, "correction_high=1.0 must be above 1"),
        ({"prompts": 15}, "take a multiple of 4"),
    ],
)
def test_a_shared_setting_out_of_range_is_refused(change, message):
    settings = dataclasses.replace(PolicySettings(name="x"), **change)
    with pytest.raises(SettingsError, match=message):
        check_policy_settings(settings, 4)
