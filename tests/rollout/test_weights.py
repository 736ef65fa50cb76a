"""The names and shapes of a model's weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.models.tiny import make_checkpoint, make_model
from retool_env.errors import NotFinite
from retool_env.rollout.weights import Inventory, check_finite, checksum


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


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_is_named(value):
    sound = [("big", torch.full((2, 2), 6e4, dtype=torch.float16)), ("none", torch.ones(0))]
    sound += [("ids", torch.tensor([1, 2])), ("away", torch.ones(2, device="meta"))]
    check_finite(sound, "the model x")  # the sum of `big` would overflow
    wrong = torch.ones(3, 3, dtype=torch.bfloat16)
    wrong[1, 2] = value
    with pytest.raises(NotFinite, match="the model x: the weight head holds NaN or infinite"):
        check_finite([*sound, ("head", wrong)], "the model x")


TENSORS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.lists(st.integers(-100, 100), min_size=1, max_size=6),
        st.sampled_from([torch.bfloat16, torch.float32, torch.int64, torch.uint8]),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda each: each[0],
)


@settings(max_examples=60, deadline=None)
@given(TENSORS, st.randoms(use_true_random=False))
def test_a_checksum_depends_on_names_values_and_places_and_not_on_the_order(drawn, chance):
    pairs = [(name, torch.tensor(values).to(dtype)) for name, values, dtype in drawn]
    total = checksum(pairs)
    assert 0 <= total < 2**64
    assert checksum(chance.sample(pairs, len(pairs))) == total
    assert checksum([(f"x{name}", tensor) for name, tensor in pairs]) != total
    assert checksum(pairs[1:]) != total
    name, tensor = pairs[0]
    moved = tensor.roll(1)
    if not torch.equal(moved, tensor):
        assert checksum([(name, moved), *pairs[1:]]) != total
    changed = tensor.clone()
    changed[-1] += 1
    assert checksum([(name, changed), *pairs[1:]]) != total


def test_a_checksum_of_parts_is_the_checksum_of_the_whole(monkeypatch):
    tensor = torch.randn(1000).to(torch.bfloat16)
    whole = checksum([("a", tensor)])
    monkeypatch.setattr("retool_env.rollout.weights._SUMMED", 7)
    assert checksum([("a", tensor.view(10, 100))]) == whole
