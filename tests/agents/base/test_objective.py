"""An algorithm hands its parts over without a training."""

from types import SimpleNamespace

import pytest

from agents import dapo, gspo, ppo, reinforce_pp, rloo
from agents.advantages import batch_normalised, group_centred, group_normalised, leave_one_out
from agents.base.objective import objective_of
from agents.base.settings import SettingsError


def test_each_algorithm_hands_over_the_parts_in_which_it_differs_from_grpo():
    found = objective_of(rloo, rloo.Settings())
    assert (found.advantages, found.normalise, found.bonus) == (leave_one_out, None, None)
    found = objective_of(reinforce_pp, reinforce_pp.Settings())
    assert (found.advantages, found.normalise) == (group_centred, batch_normalised)
    found = objective_of(gspo, gspo.Settings())
    assert found.arguments == {"importance_sampling_level": "sequence"}
    found = objective_of(dapo, dapo.Settings())
    assert found.advantages is group_normalised and found.bonus is not None
    assert objective_of(dapo, dapo.Settings(overlong=0.0)).bonus is None


def test_wrong_settings_are_refused_as_in_a_training():
    with pytest.raises(SettingsError, match="overlong must be a share"):
        objective_of(dapo, dapo.Settings(overlong=2.0))


def test_an_algorithm_that_is_not_built_on_grpo_is_refused_and_trains_nothing():
    other = SimpleNamespace(__name__="other", train=lambda settings, folder, resume: folder)
    with pytest.raises(SettingsError, match="other is not built on grpo"):
        objective_of(other, ppo.Settings())
