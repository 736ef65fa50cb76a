"""The critic: a trunk with a head that computes in float32."""

from __future__ import annotations

import pytest
import torch

from agents.base.critic import Critic
from agents.base.model import load_model, lora_config
from agents.models.tiny import make_checkpoint
from retool_env.training.packing import pack


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("initial"), seed=1))


def test_a_new_critic_predicts_zero_and_lora_leaves_only_adapters_and_head_to_train(initial):
    critic = Critic(load_model(initial, "float32")[0], lora_config(2))
    rows = pack(torch.arange(8)[None], torch.ones(1, 8), torch.arange(8)[None] > 3)
    values = critic(rows)
    assert values.shape == (1, 7) and not values.any()
    trained = {name for name, p in critic.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias"} < trained
    assert all("lora_" in name for name in trained - {"head.weight", "head.bias"})


def test_values_are_in_float32_under_bfloat16(initial):
    critic = Critic(load_model(initial, "float32")[0])
    torch.nn.init.normal_(critic.head.weight)
    hidden = torch.randn(2, 3, critic.head.in_features)
    expected = hidden @ critic.head.weight[0] + critic.head.bias
    with torch.autocast("cpu", torch.bfloat16):
        found = critic.head.values(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    rows = pack(torch.arange(8)[None], torch.ones(1, 8), torch.arange(8)[None] > 3)
    with torch.autocast("cpu", torch.bfloat16):
        values = critic(rows)[0, 3:]
    assert values.dtype == torch.float32 and not torch.equal(values, values.bfloat16().float())
