"""One process: columns are laid out by pass, and come back in their order.

`tests/integrations/test_trl_processes.py` runs the exchange of two processes.
"""

import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.training.exchange import Exchange, one_pass

BUDGET = 16


def columns(lengths, left):
    """Which columns hold a value, and values that name their episode and place."""
    along = torch.arange(BUDGET)
    sizes = torch.tensor(lengths)[:, None]
    real = along >= BUDGET - sizes if left else along < sizes
    numbers = torch.arange(len(lengths))[:, None]
    return real, torch.where(real, 100 * (numbers + 1) + along, 0)


@settings(deadline=None)
@given(st.lists(st.integers(1, BUDGET), min_size=1, max_size=12), st.booleans())
def test_each_pass_has_its_rows_and_all_values_come_back(lengths, left):
    real, values = columns(lengths, left)
    exchange = Exchange(Accelerator(cpu=True), torch.tensor(lengths), BUDGET)
    column = exchange.tokens(real, left)
    passes = column.out(values)
    [plan] = exchange.plan
    assert sorted(episode for pack in plan for episode in pack) == list(range(len(lengths)))
    for pack, rows in zip(plan, passes, strict=True):
        assert sum(lengths[episode] for episode in pack) <= BUDGET
        for row, episode in zip(rows, pack, strict=True):
            assert row[row != 0].tolist() == values[episode][real[episode]].tolist()
    back = column.back([rows * 2 for rows in passes])
    assert torch.equal(back, values * 2)


def test_values_of_an_episode_go_with_its_tokens():
    exchange = Exchange(Accelerator(cpu=True), torch.tensor([9, 3, 9]), BUDGET)
    rewards = torch.tensor([[1.5], [-2.5], [3.5]])
    passes = exchange.episodes().out(rewards)
    for pack, rows in zip(exchange.plan[0], passes, strict=True):
        assert rows[: len(pack), 0].tolist() == [rewards[i, 0] for i in pack]


def test_gradients_are_exchanged_in_the_last_pass_only():
    accelerator = Accelerator(cpu=True)
    for last in (False, True):
        with one_pass(accelerator, last):
            assert accelerator.sync_gradients is last
