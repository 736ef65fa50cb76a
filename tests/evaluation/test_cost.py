"""Prices and estimates."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.errors import SettingsError
from retool_env.evaluation.cost import Estimate, Price
from retool_env.problem import Problem
from retool_env.rollout.policy import Usage
from retool_env.rules import Rules


def test_a_price_is_dollars_for_a_million_tokens():
    usage = Usage(1, prompt_tokens=3_000_000, completion_tokens=500_000, cached_tokens=1_000_000)
    assert Price.parse("2,10").of(usage) == 3 * 2 + 0.5 * 10
    assert Price.parse("2,10,0.5").of(usage) == 2 * 2 + 1 * 0.5 + 0.5 * 10
    assert Price.parse("2,10,0").of(usage) == 2 * 2 + 0.5 * 10  # a free cache is not no cache


@pytest.mark.parametrize(
    "text", ["", "2", "a,b", "1,2,3,4", "-1,2", "nan,1", "1,inf", "1,1e300", "1;2"]
)
def test_a_price_that_cannot_be_read_is_refused(text):
    with pytest.raises(SettingsError, match="--price must be in,out"):
        Price.parse(text)


@given(st.integers(1, 5), st.integers(0, 6), st.integers(1, 500))
def test_an_estimate_covers_every_turn_of_an_api(count, calls, tokens):
    problems = [Problem(str(i), "x" * 35, "1") for i in range(count)]
    rules = Rules(max_calls=calls, prompt_template="{query}")
    estimate = Estimate.of(problems, rules, tokens, episodes=2 * count)
    assert estimate.episodes == 2 * count and estimate.turns == 2 * count * (calls + 1)
    assert estimate.usage.completion_tokens == estimate.turns * tokens
    # Each turn reads the prompt and everything before it.
    least = 2 * count * sum(10 + turn * tokens for turn in range(calls + 1))
    assert estimate.usage.prompt_tokens >= least


def test_an_estimate_of_a_local_model_is_its_token_budget():
    rules = Rules(max_tokens=64, prompt_template="{query}")
    estimate = Estimate.of([Problem("a", "x" * 35, "1")], rules, None, episodes=4)
    assert (estimate.usage.prompt_tokens, estimate.usage.completion_tokens) == (40, 256)
    assert estimate.text(None).endswith("256 tokens out")
    assert estimate.text(Price(0, 1_000_000)).endswith(": $256.00 at most")


def test_an_answer_without_figures_is_estimated_by_the_others():
    price = Price(1_000_000, 0)
    assert price.estimated(Usage()) == 0
    assert price.estimated(Usage(2, 10)) == 10
    assert price.estimated(Usage(4, 10, uncounted=2)) == 20
    assert price.estimated(Usage(1, uncounted=1)) == math.inf


def test_an_estimate_without_a_limit_names_the_setting_and_promises_nothing():
    problems, free = [Problem("a", "x" * 35, "1")], Rules(max_tokens=None, max_calls=None)
    local = Estimate.of(problems, free, None, episodes=4).text(None)
    assert "36 turns with 8 calls an episode (max_calls sets no limit)" in local
    assert local.endswith("any number of tokens out (max_tokens sets no limit)")
    api = Estimate.of(problems, free, 10, episodes=4).text(Price(0, 1_000_000))
    assert api.endswith("360 tokens out: $360.00")  # for 8 calls, and not at most
    few = Rules(max_tokens=None, max_calls=2)
    assert "4 episodes, at most 12 turns" in Estimate.of(problems, few, None, 4).text(None)
