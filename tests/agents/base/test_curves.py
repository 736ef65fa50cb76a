"""The picture of learning curves has a panel for each logged figure."""

from __future__ import annotations

import pytest

from agents.base.curves import PANELS, WINDOW, draw_curves

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, kept open."""
    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    yield figures
    monkeypatch.undo()
    for figure in figures:
        pyplot.close(figure)


def test_each_logged_figure_has_a_panel_with_the_steps_and_their_moving_mean(tmp_path, drawn):
    values = [float(i) for i in range(2 * WINDOW)]
    one = [{"step": i + 1, "env/accuracy": value} for i, value in enumerate(values)]
    two = [{"step": 1, "completions/mean_length": 70.0, "env/accuracy": None, "loss": 1.0}]
    draw_curves({"one": one, "two": two}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [tmp_path / "curves.png"]
    [figure] = drawn
    accuracy, length = figure.axes
    assert accuracy.get_title() == PANELS["env/accuracy"]
    steps, mean = accuracy.lines
    assert steps.get_ydata().tolist() == values
    assert mean.get_ydata()[0] == 0.0 and mean.get_ydata()[-1] == sum(values[-WINDOW:]) / WINDOW
    assert [line.get_ydata().tolist() for line in length.lines] == [[70.0], [70.0]]


def test_the_accuracy_on_held_out_problems_stands_beside_that_of_rollouts(tmp_path, drawn):
    records = [
        {"step": 0, "eval/accuracy": 0.25},
        {"step": 1, "env/accuracy": 0.5},
        {"step": 2, "env/accuracy": 0.75},
        {"step": 2, "eval/accuracy": 0.5},
    ]
    draw_curves({"run": records}, tmp_path / "curves.png")
    [axis] = drawn[0].axes
    dots, steps, _ = axis.lines
    assert dots.get_label() == "run, held-out"
    assert dots.get_xydata().tolist() == [[0, 0.25], [2, 0.5]]
    assert steps.get_xydata().tolist() == [[1, 0.5], [2, 0.75]]
    draw_curves({"run": records[:1]}, tmp_path / "curves.png")
    assert [line.get_ydata().tolist() for line in drawn[1].axes[0].lines] == [[0.25]]


def test_without_a_figure_to_draw_no_file_is_written(tmp_path, drawn):
    draw_curves({"run": [{"step": 1, "loss": 2.0}]}, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir()) and drawn == []
