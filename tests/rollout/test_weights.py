"""The names and shapes of a model's weights."""

from __future__ import annotations

import pytest
import torch

from agents.models.tiny import make_checkpoint, make_model
from retool_env.rollout.weights import Inventory


def test_an_inventory_is_read_from_a_configuration_and_checks_weights(tmp_path):
    inventory = Inventory.of(str(make_checkpoint(tmp_path, 0)))
    weights = make_model(7)[0].state_dict()
    found = list(inventory.checked(weights))
    # The head is tied: its tensor has the embedding's name, and comes once.
    assert [name for name, _ in found] == [name for name in weights if name != "lm_head.weight"]
    assert inventory.elements == sum(tensor.numel() for _, tensor in found)
    name = "model.norm.weight"
    for wrong, words in (
        (
            {each: weights[each] for each in weights if each != name},
            f"missing, for example .{name}",
        ),
        ({f"module.{name}": weights[name]}, "no weight 'module"),
        ({name: torch.ones(3)}, r"shape \(3,\), but \(128,\) in the model"),
    ):
        with pytest.raises(ValueError, match=words):
            list(inventory.checked(wrong))
