"""The episodes of the benchmark: the stated mix, in an order of each process's own."""

from benchmarks.parts.two_ranks import EACH, GROUP, KINDS, LONG, PROMPT, SHORT, episodes


def test_a_quarter_of_the_episodes_is_eight_times_as_long():
    rows = episodes(0)
    sizes = [len(ids) for ids in rows["completion_ids"]]
    assert LONG == 8 * SHORT
    assert sorted(sizes) == [SHORT] * (EACH * 3 // 4) + [LONG] * (EACH // 4)
    assert [len(mask) for mask in rows["env_mask"]] == sizes
    assert [len(logprobs) for logprobs in rows["logprobs"]] == sizes


def test_groups_share_a_prompt_and_have_different_rewards():
    rows = episodes(0)
    for start in range(0, EACH, GROUP):
        assert len({tuple(ids) for ids in rows["prompt_ids"][start : start + GROUP]}) == 1
        assert len(set(rows["reward"][start : start + GROUP])) > 1


def test_each_process_has_an_order_of_its_own():
    orders = [[len(ids) for ids in episodes(rank)["completion_ids"]] for rank in (0, 1)]
    assert orders[0] != orders[1]


def test_the_budget_of_tokens_is_the_longest_episode():
    assert list(KINDS.values()) == [0, PROMPT + LONG]
