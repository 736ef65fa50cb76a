"""The pictures of the recovery study."""

from __future__ import annotations

import pytest
from helpers.drawings import drawn
from helpers.studies import TRAINING, evaluation

from benchmarks.parts.study_pictures import draw, draw_values, observed_and_causal
from benchmarks.parts.study_values import DISTANCES

__all__ = ["drawn"]


def results(before, half, end):
    """Seed 0 of GRPO and its cold start, and seed 1 without its cold start."""
    grpo = {"evaluations": {"whole": end, "half": half, "end": end}, "training": TRAINING}
    cold = {"evaluations": {"whole": before, "end": before}}
    return {"cold-0": cold, "grpo-0": grpo, "grpo-1": grpo}


def test_the_picture_has_the_observed_thirds_and_the_causal_points():
    made = observed_and_causal(results(evaluation(0.2), evaluation(0.8), evaluation(0.8)))
    assert list(made) == ["seed 0"]
    observed, along, whole = made["seed 0"]
    for curve in observed.values():
        assert [point[:2] for point in curve] == [(10, 0.8), (30, 0.5), (50, 0.4)]
    assert list(along) == ["seen kinds", "held-out kinds"] == list(whole)
    assert [[p[0] for p in some["seen kinds"]] for some in (along, whole)] == [[0, 30, 60], [0, 60]]
    assert [round(p[1], 2) for p in along["held-out kinds"]] == [0.17, 0.67, 0.67]
    assert [round(p[1], 2) for p in whole["held-out kinds"]] == [0.17, 0.67]


def test_a_kind_is_in_a_curve_if_it_counts_at_each_point_and_else_the_panel_says_why(drawn):
    few = {**evaluation(0.8), "pairs": {**evaluation(0.8)["pairs"], "empty": [["p0", 1.0, 1.0, 4]]}}
    made = observed_and_causal(results(evaluation(0.2), few, evaluation(0.8)))
    _, along, whole = made["seed 0"]
    assert along["seen kinds"] == [] and [p[0] for p in along["held-out kinds"]] == [0, 30, 60]
    assert [p[0] for p in whole["seen kinds"]] == [0, 60]
    assert draw(made).startswith(b"\x89PNG")
    assert not drawn[0].axes[1].texts
    along["held-out kinds"] = []
    draw(made)
    assert "too few problems" in drawn[1].axes[1].texts[0].get_text()
    colors = [{line.get_label(): line.get_color() for line in axis.lines} for axis in drawn[0].axes]
    assert colors[1] == colors[2] and not set(colors[0].values()) & set(colors[1].values())


def values(seed):
    change = {"mean": 0.1, "low": -0.1, "high": 0.3, "count": 24, "clusters": 20}
    measured = {name: {"noticed": {**change}, "contagion": {**change}} for name in DISTANCES}
    measured["sign"] = {key: {**change, "mean": None} for key in ("noticed", "contagion")}
    return {"seed": seed, "values": {f"cold-{seed}": {"figures": measured}}}


def test_false_values_without_a_case_leave_a_gap(drawn):
    assert draw_values({"values-0": values(0)}).startswith(b"\x89PNG")
    points, _, [bars] = drawn[0].axes[0].containers[0]
    assert list(points.get_xdata()) == [0, 1, 3] and list(points.get_ydata()) == [10, 10, 10]
    assert [[y for _, y in bar] for bar in bars.get_segments()] == [[-10, pytest.approx(30)]] * 3


def test_a_false_value_with_an_unknown_interval_is_a_point(drawn):
    one = values(0)
    one["values"]["cold-0"]["figures"]["digit"]["noticed"] |= {"low": None, "high": None}
    draw_values({"values-0": one})
    _, _, [bars] = drawn[0].axes[0].containers[0]
    assert [[y for _, y in bar] for bar in bars.get_segments()][1] == [10, 10]


def test_each_seed_has_its_panels_of_false_values(drawn):
    draw_values({**{f"values-{seed}": values(seed) for seed in (0, 2)}, "cold-0": {}})
    titles = [axis.get_title() for axis in drawn[0].axes]
    assert titles == [f"{what}, seed {n}" for n in (0, 2) for what in ("noticed", "adopted")]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["cold"]
