"""The picture of learning curves has a panel for each logged figure."""

from __future__ import annotations

import math

from helpers.drawings import drawn

from retool_env.training.curves import PANELS, WINDOW, draw_curves

__all__ = ["drawn"]


def panels(figure):
    return {axis.get_title(): axis for axis in figure.axes if axis.get_title()}


def test_each_logged_figure_has_a_panel_with_the_steps_and_their_moving_mean(drawn):
    values = [0.1 * i for i in range(2 * WINDOW)]
    one = [{"step": i + 1, "env/accuracy": value} for i, value in enumerate(values)]
    two = [{"step": 1, "completions/mean_length": 70.0, "env/accuracy": None, "loss": 1.0}]
    assert draw_curves({"one": one, "two": two}).startswith(b"\x89PNG")
    [figure] = drawn
    found = panels(figure)
    assert list(found) == [PANELS["env/accuracy"], PANELS["completions/mean_length"]]
    steps, mean = found[PANELS["env/accuracy"]].lines
    assert steps.get_ydata().tolist() == values
    assert math.isclose(mean.get_ydata()[0], values[0])
    assert math.isclose(mean.get_ydata()[-1], sum(values[-WINDOW:]) / WINDOW)
    length = found[PANELS["completions/mean_length"]]
    assert [line.get_ydata().tolist() for line in length.lines] == [[70.0], [70.0]]


def test_the_accuracy_on_held_out_problems_stands_beside_that_of_rollouts(drawn):
    records = [
        {"step": 0, "eval/accuracy": 0.25},
        {"step": 1, "env/accuracy": 0.5},
        {"step": 2, "env/accuracy": 0.75},
        {"step": 2, "eval/accuracy": 0.5},
    ]
    draw_curves({"run": records})
    [axis] = drawn[0].axes
    dots, steps, _ = axis.lines
    assert dots.get_label() == "run, held-out"
    assert dots.get_xydata().tolist() == [[0, 0.25], [2, 0.5]]
    assert steps.get_xydata().tolist() == [[1, 0.5], [2, 0.75]]
    draw_curves({"run": records[:1]})
    assert [line.get_ydata().tolist() for line in drawn[1].axes[0].lines] == [[0.25]]


def test_steps_have_whole_ticks_and_a_figure_that_diverged_is_left_out(drawn):
    records = [{"step": 1, "env/accuracy": 0.5}, {"step": 2, "env/accuracy": float("nan")}]
    draw_curves({"run": [*records, {"step": 3, "env/accuracy": 1.0}]})
    [axis] = drawn[0].axes
    assert all(tick == round(tick) for tick in axis.get_xticks())
    assert axis.lines[0].get_xydata().tolist() == [[1, 0.5], [3, 1.0]]


def test_without_a_figure_to_draw_there_is_no_picture(drawn):
    assert draw_curves({"run": [{"step": 1, "loss": 2.0}]}) == b""
    assert draw_curves({}) == b"" and drawn == []
