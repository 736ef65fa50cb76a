"""The block pool, also against a reference model without blocks."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.rollout.transformers.blocks import ROOT, BlockPool


def fill(pool: BlockPool, token_ids: list[int]):
    """Act as a sequence does: take cached blocks, compute the rest, complete full blocks."""
    blocks = pool.longest_prefix(token_ids)
    pool.hold(blocks)
    found = len(blocks)
    content = blocks[-1].content if blocks else ROOT
    while len(blocks) * pool.size < len(token_ids):
        block = pool.allocate()
        if block is None:
            pool.release(blocks)
            return None
        blocks.append(block)
    for number in range(found, len(token_ids) // pool.size):
        content = pool.complete(blocks[number], pool.key(token_ids, number, content))
    return blocks, found


def test_a_common_beginning_is_found_and_one_token_is_left_to_compute():
    pool = BlockPool(tokens=40, size=4)
    first, found = fill(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert found == 0 and len(first) == 3
    assert pool.longest_prefix([1, 2, 3, 4, 5, 6, 7, 8, 1, 1]) == first[:2]
    assert pool.longest_prefix([1, 2, 3, 4, 5, 6, 7, 8]) == first[:1]
    assert pool.longest_prefix([5, 6, 7, 8, 9]) == []  # the same tokens after others are others


def test_the_least_recently_used_goes_first_and_ends_go_before_beginnings():
    pool = BlockPool(tokens=16, size=4)
    for token_ids in ([1] * 8, [2] * 8):
        pool.release(fill(pool, token_ids)[0])
    pool.release(fill(pool, [1] * 9)[0])  # used again; its third block takes the place of 2's end
    assert len(pool.longest_prefix([1] * 9)) == 2
    assert len(pool.longest_prefix([2] * 9)) == 1
    held = [pool.allocate(), pool.allocate()]
    assert len(pool.longest_prefix([1] * 9)) == 2 and pool.longest_prefix([2] * 9) == []
    held.append(pool.allocate())
    assert len(pool.longest_prefix([1] * 9)) == 1
    held.append(pool.allocate())
    assert None not in held and pool.allocate() is None
    pool.release(held)
    assert pool.available == 4


def test_what_is_held_is_not_given_away():
    pool = BlockPool(tokens=12, size=4)
    blocks, _ = fill(pool, [1] * 9)
    pool.hold(blocks[:1])
    pool.release(blocks)
    others = [pool.allocate(), pool.allocate()]
    assert pool.allocate() is None
    assert blocks[0] not in others and pool.longest_prefix([1] * 9) == blocks[:1]


def test_nothing_is_found_after_clearing_not_even_what_is_held():
    pool = BlockPool(tokens=24, size=4)
    pool.release(fill(pool, [1] * 9)[0])
    held, found = fill(pool, [1] * 9)
    assert found == 2
    pool.clear()
    assert pool.longest_prefix([1] * 9) == []
    pool.release(held)
    assert pool.available == 6 and pool.longest_prefix([1] * 9) == []


def test_a_successor_is_not_found_where_its_predecessor_went_and_came_back_as_another():
    pool = BlockPool(tokens=8, size=4)
    blocks, _ = fill(pool, [1, 1, 1, 1, 2, 2, 2, 2])
    pool.release(blocks[:1])
    other = pool.allocate()  # in the first one's place
    pool.complete(other, pool.key([9, 9, 9, 9], 0, ROOT))
    assert pool.longest_prefix([9, 9, 9, 9, 2, 2, 2, 2, 0]) == [other]


def test_a_pool_without_room_is_refused():
    with pytest.raises(ValueError, match="no room"):
        BlockPool(tokens=3, size=4)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_any_order_of_use_keeps_the_books(seed):
    chance = random.Random(seed)
    pool = BlockPool(tokens=chance.randint(4, 40), size=chance.randint(1, 4))
    held, written = [], {}
    for _ in range(60):
        if held and chance.random() < 0.4:
            pool.release(held.pop(chance.randrange(len(held))))
        elif chance.random() < 0.05:
            pool.clear()
        else:
            ids = [chance.randint(0, 1) for _ in range(chance.randint(1, 12))]
            result = fill(pool, ids)
            if result is not None:
                blocks, found = result
                for number, block in enumerate(blocks):
                    upto = tuple(ids[: (number + 1) * pool.size])
                    if number < found:  # what is found holds just these tokens after just those
                        assert written[block.index] == upto
                    written[block.index] = upto
                held.append(blocks)
        in_use = {block.index for blocks in held for block in blocks}
        assert pool.available == pool.count - len(in_use)
        assert 0 not in in_use
    for blocks in held:
        pool.release(blocks)
    assert pool.available == pool.count
