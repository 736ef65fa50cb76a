"""A policy that can't sample for a trainer is refused, with the setting to change."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from agents.models.tiny import make_tokenizer
from retool_env.errors import SettingsError
from retool_env.rollout import ScriptedPolicy, TextPolicy
from retool_env.training.sampling_policy import check_policy, check_step


class Writer(ScriptedPolicy):
    def __init__(self, **more):
        super().__init__(lambda text: "", make_tokenizer())
        vars(self).update(more)


@pytest.mark.parametrize(
    ("setting", "temperature", "message"),
    [
        ({"top_p": 0.7}, None, "top_p = 1"),
        ({"temperature": 0.7}, 1.0, r"temperature 0\.7"),
        ({"temperature": 0.0}, 0.0, "above 0"),
    ],
)
def test_a_policy_whose_log_probs_are_not_the_losss_is_refused(setting, temperature, message):
    check_policy(Writer(), temperature or 1.0)
    with pytest.raises(SettingsError, match=message):
        check_policy(Writer(**setting), temperature)


def test_a_policy_of_text_is_refused():
    class Teller(TextPolicy):
        async def write(self, transcript, stop, seed):
            raise AssertionError("it is not asked")

    with pytest.raises(SettingsError, match="of text"):
        check_policy(Teller())


@pytest.mark.parametrize(
    ("at_update", "processes", "refused"),
    [("wait", 2, True), ("wait", 1, False), ("cut", 2, False), ("keep", 2, False)],
)
def test_shared_servers_that_wait_for_turns_allow_one_batch_ahead(at_update, processes, refused):
    policy = Writer(shares_servers=True, at_update=at_update)
    accelerator = SimpleNamespace(num_processes=processes)
    step = SimpleNamespace(temperature=1.0, model="m", accelerator=accelerator)
    check_step(policy, step, 1)
    if refused:
        with pytest.raises(SettingsError, match=r"staleness=2 is too large .* at_update=cut"):
            check_step(policy, step, 2)
    else:
        check_step(policy, step, 4)
