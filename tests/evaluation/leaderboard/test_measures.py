"""The figures of a run are those of its agent, by families of faults."""

import dataclasses

import pytest
from helpers.leaderboards import AGENTS

from retool_env.evaluation.leaderboard.entries import read_entries
from retool_env.evaluation.leaderboard.measures import FAMILIES, family_of, measure_recover
from retool_env.evaluation.records import EpisodeRecord
from retool_env.evaluation.recover.records import read_arms, read_left_out, read_recover
from retool_env.faults import KINDS
from retool_env.rollout.policy import Usage


@pytest.fixture(scope="module")
def measures(made_board):
    """The figures of each agent, by its name."""
    entries, _ = read_entries(made_board)
    return {entry.record.model.title: entry.measures for entry in entries}


def means(measures):
    return {key: figure.mean for key, figure in measures.figures.items()}


def test_each_kind_of_fault_has_a_family():
    assert {family_of(kind) for kind in KINDS.values()} == set(FAMILIES)
    assert family_of(KINDS["gone"]) == "explicit_persistent"
    assert family_of(KINDS["stale"]) == "silent" and family_of(KINDS["slow"]) == "placebo"


@pytest.mark.parametrize(
    ("agent", "accuracy", "faults", "effect", "ratio"),
    [("strong", 1, 1, 0, 1), ("brittle", 1, 0, -1, 0), ("weak", 0, 0, 0, None)],
)
def test_the_figures_are_those_of_the_agents(measures, agent, accuracy, faults, effect, ratio):
    found = means(measures[agent])
    assert (found["accuracy"], found["faults"], found["effect"]) == (accuracy, faults, effect)
    assert found["uplift"] == accuracy  # in text alone, no agent is right
    assert [found[name] for name in ("attempted", "well_formed", "ran", "invented")] == [1, 1, 1, 0]
    assert found["recovery/explicit/seen"] == found["recovery/silent/seen"] == ratio
    assert found["recovery/explicit/held_out"] is None


def test_the_values_of_the_tests_have_the_mean_of_the_figure(measures):
    for agent in AGENTS:
        for key, values in measures[agent].values.items():
            assert len(values) == 8
            mean = sum(values.values()) / 8
            assert mean == pytest.approx(measures[agent].figures[key].mean)


def test_a_placebo_is_in_no_figure_of_faults(measures):
    assert measures["brittle"].figures["recovery/placebo/seen"].mean == 1.0
    # 8 problems with one prefix and two kinds of faults, and the placebo apart
    assert measures["brittle"].figures["faults"].count == 16


def test_figures_without_a_value_have_a_reason(measures):
    found = measures["weak"].figures
    reasons = {key: f.reason for key, f in found.items() if f.mean is None}
    assert reasons["recovery/explicit/seen"] == "no continuation of the true result is right"
    assert reasons["recovery/explicit/held_out"] == "the run has no kind of this family"
    assert reasons["dollars"].startswith("the run has no price")
    assert all(reasons.values())


def test_protocols_that_did_not_run_are_named(made_board):
    folder = made_board / "strong"
    arms = [arm for arm in read_arms(folder) if arm.protocol == "dose"]
    found = measure_recover(read_recover(folder), arms, read_left_out(folder)).figures
    assert found["uplift"].reason == "the protocol frequency was not run"
    assert found["faults"].reason == found["effect"].reason == "no episode was forked"


def test_the_episodes_of_a_run_may_have_the_tokens_of_an_api(made_board):
    """An answer without figures leaves its episode out, since its tokens are not known."""
    folder = made_board / "strong"
    record = dataclasses.replace(
        read_recover(folder), price={"prompt": 0.0, "completion": 1e6, "cached": None}
    )

    def with_usage(arm: EpisodeRecord, number: int) -> EpisodeRecord:
        used = Usage(1, 50, 7) if number else Usage(1, 50, 9, uncounted=1)
        return dataclasses.replace(arm, usage=used)

    parents = [arm for arm in read_arms(folder) if arm.protocol == "dose"]
    arms = [with_usage(arm, number) for number, arm in enumerate(parents)]
    found = measure_recover(record, arms, []).figures
    assert (found["tokens"].mean, found["dollars"].mean) == (7.0, 7.0)
    assert found["tokens"].count == 7
