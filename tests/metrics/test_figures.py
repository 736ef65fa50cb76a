"""Figures of transcripts that were worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
from helpers.episodes import (
    ANSWERED,
    BROKEN,
    CODE,
    DIRECT,
    LATE,
    MENDED,
    NAME,
    NOTICE,
    OK,
    RIGHT,
    TYPE,
    episode,
    figures_of,
    means,
    sample,
    with_ids,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.errors import SettingsError
from retool_env.metrics.failed_calls import FATES
from retool_env.metrics.figures import Figure, measure
from retool_env.metrics.summary import summarise
from retool_env.metrics.tables import figures_table
from retool_env.protocol.result import EMPTY_PROGRAM
from retool_env.transcript import StopReason


def test_cost_by_hand():
    def used(prompt, completion, cost=None):
        return SimpleNamespace(prompt_tokens=prompt, completion_tokens=completion, cost=cost)

    rollouts = [
        sample("p", "42", correct=True),
        sample("p", "7"),
        sample("q", "42", correct=True),
        BROKEN,
        sample("r", "7"),
    ]
    usage = [used(100, 10, 0.5), used(200, 20, 1.5), used(60, 10), used(9000, 0, 9.0), None]
    found = figures_of(rollouts, usage=usage)
    assert means(found, "cost/prompt_tokens", "cost/completion_tokens") == [
        pytest.approx(360 / 3),
        pytest.approx(40 / 3),
    ]
    tokens = found["cost/tokens_per_right"]
    assert (tokens.count, tokens.problems, tokens.mean) == (3, 2, pytest.approx(400 / 2))
    # Residuals: p 330 - 200, q 70 - 200; t of one degree of freedom.
    half = 12.7062047 * math.sqrt(2 * (130**2 + 130**2)) / 2
    assert tokens.high == pytest.approx(200 + half)
    assert means(found, "cost/dollars", "cost/dollars_per_right") == [1.0, 2.0]
    assert found["cost/dollars"].low is None  # one problem
    without = [SimpleNamespace(prompt_tokens=1, completion_tokens=1)] * 5  # a cost is not asked
    assert figures_of(rollouts, usage=without)["cost/dollars"].count == 0
    wrong = figures_of(rollouts[1:2], usage=usage[1:2])
    assert wrong["cost/tokens_per_right"].mean is None  # no right answer
    assert not any(key.startswith("cost/") for key in figures_of(rollouts))
    with pytest.raises(SettingsError, match="4 entries and 5 transcripts"):
        measure(rollouts, usage=usage[1:])


def test_an_unfinished_episode_is_refused():
    with pytest.raises(SettingsError, match="finished"):
        measure([DIRECT, dataclasses.replace(DIRECT, stop_reason=None)])


def test_without_a_case_there_is_no_figure():
    for transcripts in ([], [BROKEN]):
        found = figures_of(transcripts, usage=[None] * len(transcripts))
        assert "accuracy/avg" in found and "use/attempted" in found and "cost/dollars" in found
        for figure in found.values():
            assert (figure.count, figure.problems, figure.mean) == (0, 0, None), figure.key
            assert figure.low is figure.high is None and figure.marked


def test_a_figure_on_fewer_than_50_cases_has_a_mark_and_is_shown():
    few = Figure("use/ran", 49, 7, 0.123456, 0.05, 0.25, "A share.")
    many = dataclasses.replace(few, key="use/calls", count=50, mean=12.0, low=None, high=None)
    none = dataclasses.replace(few, key="use/silent", count=0, mean=None, low=None, high=None)
    assert few.marked and none.marked and not many.marked
    lines = figures_table([few, many, none]).splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[:5]]
    assert rows[0] == ["figure", "mean [95 % interval]", "n"] and set("".join(rows[1])) == {"-"}
    assert rows[2:] == [
        ["use/ran", "0.1235 [0.05, 0.25]", "49 †"],
        ["use/calls", "12 [–, –]", "50"],
        ["use/silent", "–", "0 †"],
    ]
    assert lines[5:] == ["", "† fewer than 50 cases"]
    assert "†" not in figures_table([many])


TURNS = st.one_of(
    st.sampled_from([OK, NAME, TYPE, LATE, NOTICE]).map(lambda result: (f"so {CODE}", result)),
    st.just(("<code>\n</code>", EMPTY_PROGRAM)),
)
EPISODES = st.lists(
    st.builds(
        lambda problem, reason, turns, answer: dataclasses.replace(
            episode(problem, reason, *turns, RIGHT, correct=answer == "42"), answer=answer
        ),
        st.sampled_from("abcd"),
        st.sampled_from([ANSWERED, StopReason.CALL_LIMIT, StopReason.INFRASTRUCTURE]),
        st.lists(TURNS, max_size=4),
        st.sampled_from(["42", "7", None]),
    ),
    max_size=10,
)


@settings(max_examples=40, deadline=None)
@given(episodes=EPISODES)
def test_what_holds_of_any_figures(episodes):
    found = figures_of(episodes)
    assert [f.key for f in measure(episodes[::-1])] == list(found)
    for figure in found.values():
        assert figure.problems <= figure.count
        assert (figure.mean is None) == (figure.count == 0)
        assert (figure.low is None) == (figure.high is None)
        assert figure.key == figure.key.lower() and figure.definition.endswith(".")
        if figure.low is not None:
            assert figure.low <= figure.mean <= figure.high
    summary = summarise(episodes)
    if summary.accuracy:
        average = found["accuracy/avg"].mean
        assert average == pytest.approx(summary.accuracy.mean)
        assert found["use/calls"].mean == pytest.approx(summary.calls_per_episode)
        ones = ("accuracy/pass@1", "accuracy/pass^1", "accuracy/maj@1")
        assert means(found, *ones) == pytest.approx([average] * 3)
        stages = [f"use/{stage}" for stage in ("attempted", "well_formed", "ran", "right")]
        assert means(found, *stages) == sorted(means(found, *stages), reverse=True)
        histogram = [f.mean for key, f in found.items() if key.startswith("use/calls/")]
        assert sum(histogram) == pytest.approx(1)
    for key in found:
        if key.endswith("/next/ok") and found[key].count:
            row = key.removesuffix("ok")
            assert sum(found[row + fate].mean for fate in FATES) == pytest.approx(1)
    failed = found["error/calls"].count - summary.calls_ok
    assert found["error/all/next/ok"].count == failed
    if failed:
        kinds = [f.mean for key, f in found.items() if key.startswith("error/")]
        rows = [k for k in found if k.startswith("error/") and "/next/" not in k]
        assert kinds and sum(found[k].mean for k in rows if k != "error/calls") == pytest.approx(1)
        if summary.recovery.next_call_ok.count:
            assert found["error/all/next/ok"].mean == pytest.approx(
                summary.recovery.next_call_ok.interval.mean
            )
            assert found["error/all/next/same_error"].mean == pytest.approx(
                summary.recovery.same_error.interval.mean
            )


def test_a_mended_episode_is_measured_the_same_with_and_without_token_ids():
    text, ids = figures_of([MENDED]), figures_of([with_ids(MENDED)])
    differing = [key for key in text if text[key] != ids[key]]
    assert differing == ["use/first_call/tokens"]
