"""A figure is written and read back; its interval and its number of cases."""

import json

import pytest
from helpers.episodes import ALL

from retool_env.metrics.estimators import cluster_mean
from retool_env.metrics.figure import Figure, mean_of, over_problems, share
from retool_env.metrics.figures import measure


def test_figures_are_written_and_read_back():
    for figure in measure(ALL):
        record = json.loads(json.dumps(figure.to_json(), allow_nan=False))
        assert Figure.from_json(record) == Figure.from_json({**record, "later": 1}) == figure


def test_a_share_counts_cases_and_has_problems_for_clusters():
    cases = [("p", True), ("p", True), ("q", False), ("r", True)]
    found, expected = share("use/ran", cases, "A share."), cluster_mean(cases, share=True)
    assert (found.key, found.definition) == ("use/ran", "A share.")
    assert (found.count, found.problems, found.mean) == (4, 3, 3 / 4)
    assert (found.low, found.high) == (expected.low, expected.high)
    assert 0 <= found.low < 3 / 4 < found.high <= 1


def test_the_interval_of_a_mean_of_counts_begins_at_zero():
    cases = [("p", 0.0), ("q", 0.0), ("r", 9.0)]
    found, unbounded = mean_of("use/calls", cases, "A mean."), cluster_mean(cases)
    assert unbounded.low < 0 and (found.low, found.high) == (0, unbounded.high)
    assert mean_of("use/calls", cases[:1], "A mean.").low is None


def test_a_mean_over_problems_counts_their_episodes():
    found = over_problems("accuracy/avg", {"p": (1.0, 9), "q": (0.5, 2)}, "A mean.")
    assert (found.count, found.problems, found.mean) == (11, 2, pytest.approx(3 / 4))


@pytest.mark.parametrize(("count", "marked"), [(49, True), (50, False)])
def test_a_figure_on_fewer_than_50_cases_is_marked(count, marked):
    assert share("use/ran", [("p", True)] * count, "A share.").marked == marked
