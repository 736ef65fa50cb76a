"""Turns that are sampled by several requests."""

from __future__ import annotations

from helpers.server_policies import Letters
from hypothesis import given
from hypothesis import strategies as st

from retool_env.rollout.vllm.partial_turn import PartialTurn
from retool_env.tokens import cut_turn

STOP = ("</code>", "</answer>")


def partial(budget: int = 100, seed: int = 5) -> PartialTurn:
    return PartialTurn(Letters(), [1, 2], STOP, budget, seed)


def ids(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def requested(model: str, turn: PartialTurn, cuts: set[int]):
    """Let an engine that writes a text sample the turn; returns the turn and the engine's requests.

    Args:
        model: The text that the engine writes, whatever the seed.
        turn: The turn.
        cuts: The numbers of tokens after which new weights cut the turn.
    """
    requests, at = [], 0
    while True:
        start, budget = at, turn.request_budget
        assert turn.prompt == [1, 2, *ids(model[:at])] and budget > 0
        requests.append((budget, turn.request_seed))
        reason = None
        while reason is None and not (at > start and at in cuts):
            at += 1
            if at > len(model):
                reason = "eos"
            elif any(model[start:at].endswith(tag) for tag in STOP):
                reason = "tag"
            elif at - start == budget:
                reason = "length"
        sampled = ids((model + "\0")[start:at])
        version = sum(cut <= start for cut in cuts)
        generation = turn.add(sampled, [-0.5] * len(sampled), version, reason)
        if generation is not None:
            return generation, requests


@st.composite
def texts(draw) -> str:
    parts = st.sampled_from([*STOP, *(tag[:n] for tag in STOP for n in (2, 4, 6)), "a", "> b", "<"])
    return "".join(draw(st.lists(parts, max_size=8)))


@given(texts(), st.sets(st.integers(1, 40), max_size=6), st.integers(1, 60))
def test_a_turn_is_the_same_wherever_it_is_cut(text, cuts, budget):
    whole, [first] = requested(text, partial(budget), set())
    assert first == (budget, 5)
    turn, requests = requested(text, partial(budget), cuts)
    assert (turn.token_ids, turn.stop_reason) == (whole.token_ids, whole.stop_reason)
    assert len(turn.logprobs) == len(turn.token_ids)
    assert len({seed for _, seed in requests}) == len(requests)
    expected = [sum(at <= n for at in cuts) for n in range(len(turn.token_ids))]
    runs = turn.weight_runs or ((turn.weight_version, len(turn.token_ids)),)
    assert [version for version, length in runs for _ in range(length)] == expected
    assert len(turn.weight_runs) != 1


def test_a_tag_that_a_cut_divides_ends_the_turn():
    turn = partial()
    assert turn.add(ids("x</co"), [-1.0] * 5, 3, None) is None
    assert turn.request_budget == 3  # "de>", a character in each token
    generation = turn.add(ids("de>"), [-1.0] * 3, 4, "length")
    assert generation.stop_reason == "tag" and generation.weight_runs == ((3, 5), (4, 3))


def test_what_is_no_tag_after_all_goes_on():
    turn = partial()
    turn.add(ids("x</co"), [-1.0] * 5, 3, None)
    assert turn.add(ids("ol "), [-1.0] * 3, 4, "length") is None
    assert turn.request_budget == 92
    assert turn.add(ids("</answer>"), [-1.0] * 9, 4, "tag").token_ids == tuple(
        ids("x</cool </answer>")
    )


def test_a_cut_after_the_last_token_ends_the_turn():
    for text, budget, reason in (("ab</code>", 100, "tag"), ("ab", 2, "length")):
        generation = partial(budget).add(ids(text), [-1.0] * len(text), 1, None)
        assert (generation.stop_reason, generation.weight_runs) == (reason, ())


def test_a_cut_without_a_token_leaves_no_version():
    turn = partial()
    assert turn.add([], [], 3, None) is None and turn.prompt == [1, 2]
    generation = turn.add(ids("ab</code>"), [-1.0] * 9, 4, "tag")
    assert (generation.weight_version, generation.weight_runs) == (4, ())


def test_tokens_after_a_tag_are_dropped():
    turn = partial()
    turn.add(ids("ab</co"), [-1.0] * 6, 1, None)
    generation = turn.add(ids("de> and"), [-2.0] * 7, 2, "length")
    kept, _ = cut_turn(Letters(), ids("ab</code> and"), STOP)
    assert len(generation.token_ids) == len(generation.logprobs) == kept == 9
