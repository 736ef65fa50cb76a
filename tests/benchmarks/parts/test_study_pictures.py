"""The pictures of the recovery study."""

from __future__ import annotations

from helpers.drawings import drawn

from benchmarks.parts.study_pictures import draw, draw_values, observed_and_causal
from benchmarks.parts.study_values import DISTANCES

__all__ = ["drawn"]


def evaluation(fault):
    rows = [[f"p{at}", fault if at % 3 else fault / 2, 1.0, 4] for at in range(12)]
    return {"pairs": {"busy": rows, "empty": rows}}


def third(ran):
    interval = {"mean": ran, "low": ran - 0.1, "high": ran + 0.1}
    return {"recovery": {"next_call_ok": {"count": 30, "interval": interval}}}


def test_the_picture_has_the_observed_thirds_and_three_causal_points():
    along = {name: evaluation(0.8) for name in ("half", "end")}
    training = {"20": third(0.8), "40": third(0.5), "60": third(0.4)}
    results = {
        "cold-0": {"evaluations": {"end": evaluation(0.2)}},
        "grpo-0": {"evaluations": along, "training": training},
        "grpo-1": {"evaluations": along, "training": training},  # without its cold start
    }
    made = observed_and_causal(results)
    assert list(made) == ["seed 0"]
    observed, seen, held_out = made["seed 0"].values()
    assert [point[:2] for point in observed] == [(10, 0.8), (30, 0.5), (50, 0.4)]
    assert [point[0] for point in seen] == [0, 30, 60] == [point[0] for point in held_out]
    assert [round(point[1], 2) for point in seen] == [0.17, 0.67, 0.67]
    assert draw(made).startswith(b"\x89PNG")


def test_a_kind_is_in_the_curve_if_it_counts_at_each_point_and_else_the_panel_says_why(drawn):
    few = {"pairs": {"busy": evaluation(0.8)["pairs"]["busy"], "empty": [["p0", 1.0, 1.0, 4]]}}
    training = {"20": third(0.8), "40": third(0.5), "60": third(0.4)}
    results = {
        "cold-0": {"evaluations": {"end": evaluation(0.2)}},
        "grpo-0": {"evaluations": {"half": few, "end": evaluation(0.8)}, "training": training},
    }
    made = observed_and_causal(results)
    _, seen, held_out = made["seed 0"].values()
    assert seen == [] and [point[0] for point in held_out] == [0, 30, 60]
    draw(made)
    assert not drawn[0].axes[1].texts
    made["seed 0"]["held-out kinds"] = []
    draw(made)
    assert "too few problems" in drawn[1].axes[1].texts[0].get_text()


def values(seed):
    change = {"mean": 0.1, "low": -0.1, "high": 0.3, "count": 24, "clusters": 20}
    measured = {name: {"noticed": change, "contagion": change} for name in DISTANCES}
    measured["sign"] = {key: {**change, "mean": None} for key in ("noticed", "contagion")}
    return {"seed": seed, "values": {f"cold-{seed}": {"figures": measured}}}


def test_false_values_without_a_case_leave_a_gap(drawn):
    assert draw_values({"values-0": values(0)}).startswith(b"\x89PNG")
    [line] = [one for one in drawn[0].axes[0].lines if len(one.get_xdata()) != 2]
    assert list(line.get_xdata()) == [0, 1, 3]


def test_each_seed_has_its_panels_of_false_values(drawn):
    draw_values({**{f"values-{seed}": values(seed) for seed in (0, 2)}, "cold-0": {}})
    titles = [axis.get_title() for axis in drawn[0].axes]
    assert titles == [f"{what}, seed {n}" for n in (0, 2) for what in ("checked again", "adopted")]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["cold"]
