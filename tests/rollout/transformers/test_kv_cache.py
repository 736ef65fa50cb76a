"""The paged cache: rows of slots that share prefixes, and padding that stays zero."""

import torch

from retool_env.rollout.transformers.kv_cache import PagedCache


def states(*rows: list[float]) -> torch.Tensor:
    """Keys or values of one head and one dimension, shape `(B, 1, Q, 1)`."""
    return torch.tensor(rows)[:, None, :, None]


def test_rows_share_slots_and_padding_stays_zero():
    cache = PagedCache(8)
    # Two rows of three columns, the first with two tokens: its padding must not be written.
    cache.begin(torch.tensor([[0, 1, 2], [3, 4, 5]]), 3, torch.tensor([1, 2, 3, 4, 5]))
    assert cache.allocated == 0 and cache.get_seq_length() == 0
    new = states([9.0, 1.0, 2.0], [3.0, 4.0, 5.0])
    keys, values = cache.update(new, 10 * new, 0)
    assert torch.equal(keys, states([0.0, 1.0, 2.0], [3.0, 4.0, 5.0]))
    assert torch.equal(values, 10 * keys) and cache.allocated == 8

    # A row with a common prefix reads the slots of the first row.
    cache.begin(torch.tensor([[1, 2, 6]]), 1, None)
    assert cache.get_seq_length() == 2 and cache.get_mask_sizes(1, 0) == (3, 0)
    keys, values = cache.update(states([7.0]), states([70.0]), 0)
    assert torch.equal(keys, states([1.0, 2.0, 7.0]))
    assert torch.equal(values, states([10.0, 20.0, 70.0]))


def test_layers_are_apart_and_a_cleared_cache_begins_with_zeros():
    cache = PagedCache(4)
    for layer, number in ((0, 1.0), (1, 2.0)):
        cache.begin(torch.tensor([[1]]), 1, None)
        cache.update(states([number]), states([number]), layer)
    cache.begin(torch.tensor([[1, 2]]), 1, None)
    keys, _ = cache.update(states([3.0]), states([3.0]), 1)
    assert torch.equal(keys, states([2.0, 3.0]))
    cache.clear()
    assert cache.allocated == 0
    keys, _ = cache.update(states([3.0]), states([3.0]), 1)
    assert torch.equal(keys, states([0.0, 3.0]))
