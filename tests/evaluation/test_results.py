"""The figures of an evaluation come from the episodes that it asks for, in their order."""

import pytest
from evaluation.test_records import PROBLEM, episode, transcript, written

from retool_env.evaluation import results
from retool_env.evaluation.cost import Price
from retool_env.evaluation.records import EpisodeRecord
from retool_env.problem import Problem
from retool_env.rollout.policy import Usage

OTHER = Problem("own/2", "2 + 2?", "4")


def other(sample=0, answer="4"):
    made = transcript(problem=OTHER, answer=answer, correct=answer == "4")
    return EpisodeRecord("m", OTHER.id, sample, 0, made, Usage(2, 50, 6))


def figures_of(*arguments, **settings):
    figures, summary = results.measured(*arguments, **settings)
    return {figure.key: figure for figure in figures}, summary


def test_samples_and_problems_beyond_the_asked_ones_do_not_count(tmp_path):
    written(
        tmp_path, episode(sample=1, answer="3"), other(), episode(), other(sample=1, answer="5")
    )
    found, summary = figures_of(tmp_path)
    assert (found["accuracy/avg"].count, found["accuracy/avg"].mean) == (4, 1 / 2)
    assert summary.episodes == 4
    found, summary = figures_of(tmp_path, k=1)
    assert (found["accuracy/avg"].count, found["accuracy/avg"].mean) == (2, 1)
    found, summary = figures_of(tmp_path, [PROBLEM])
    assert (found["accuracy/avg"].count, found["accuracy/avg"].problems) == (2, 1)
    assert summary.episodes == 2


def test_episodes_are_measured_in_the_order_of_the_problems_and_samples(tmp_path, monkeypatch):
    """The order of classes of answers, and so of votes, depends on the order of the samples."""
    seen = []
    monkeypatch.setattr(results, "measure", lambda transcripts, usage: seen.extend(transcripts))
    seconds = [other(sample=1, answer="5"), episode(sample=1, answer="3")]
    written(tmp_path, *seconds, other(), episode())
    results.measured(tmp_path, [PROBLEM, OTHER])
    results.measured(tmp_path, [OTHER, PROBLEM])
    assert [each.answer for each in seen] == ["2", "3", "4", "5", "4", "5", "2", "3"]


def test_tokens_and_dollars_are_those_of_the_records(tmp_path):
    written(tmp_path, episode(), other())
    found, _ = figures_of(tmp_path, price=Price(1_000_000, 2_000_000))
    assert found["cost/prompt_tokens"].mean == (30 + 50) / 2
    assert found["cost/completion_tokens"].mean == (4 + 6) / 2
    assert found["cost/dollars"].mean == pytest.approx((30 + 2 * 4 + 50 + 2 * 6) / 2)
    assert figures_of(tmp_path)[0]["cost/dollars"].count == 0


def test_without_usage_there_are_no_costs(tmp_path):
    local = EpisodeRecord("m", PROBLEM.id, 0, 0, transcript(), None)
    written(tmp_path, local)
    assert not any(key.startswith("cost/") for key in figures_of(tmp_path)[0])
