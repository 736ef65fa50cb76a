"""The pictures of a report show the numbers of its tables."""

import re

import pytest
from helpers.drawings import drawn
from helpers.episodes import (
    ALL,
    ANSWERED,
    CODE,
    DIRECT,
    GUESS,
    LATE,
    NAME,
    RAN,
    RIGHT,
    WRONG,
    episode,
)
from helpers.run_folders import a_training, an_eval

from retool_env.evaluation.report import drawings
from retool_env.evaluation.report.subject import read_subjects
from retool_env.evaluation.report.tables import flow_of
from retool_env.execution import Execution, Outcome

__all__ = ["drawn"]


@pytest.fixture
def read(tmp_path):
    """A function that reads runs of these episodes as the subjects of a report."""

    def read(*runs):
        paths = [an_eval(tmp_path / str(n), some) for n, some in enumerate(runs)]
        return read_subjects(paths, lambda line: None)

    return read


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_the_funnel_has_a_bar_for_each_stage_and_run(read, drawn):
    some = read([RAN, GUESS], [DIRECT, DIRECT])
    assert drawings.funnel(some).startswith(b"\x89PNG")
    [axis] = drawn[0].axes
    heights = [bar.get_height() for bar in axis.patches]
    assert heights == [1, 0.5, 0.5, 0.5, 0.5, 1, 0, 0, 0, 0]
    assert "50%" in texts(drawn[0])
    bars = axis.patches[0], axis.patches[5]
    assert bars[0].get_hatch() != bars[1].get_hatch()


def test_without_an_interpreter_there_is_no_funnel_and_no_histogram(read, drawn):
    text = episode("p", ANSWERED, RIGHT, correct=True, interpreter=False)
    empty, alone = read([], [text])
    assert drawings.funnel([empty, alone]) == b""
    assert drawings.histograms(empty) == drawings.histograms(alone) == b""
    assert drawings.flow(empty) == drawings.flow(alone) == b"" and drawn == []


def test_calls_are_counted_for_right_and_other_episodes(read, drawn):
    [subject] = read(ALL)
    assert drawings.histograms(subject)
    left, right = drawn[0].axes
    heights = {
        handle.get_label(): [bar.get_height() for bar in handle] for handle in left.containers
    }
    assert heights == {"right": [1, 2, 2, 0], "not right": [2, 2, 1, 1]}
    assert sum(bar.get_height() for bar in right.patches) == 8
    assert [label.get_text() for label in left.get_xticklabels()] == ["0", "1", "2", "3"]


def test_the_flow_names_each_error_and_each_fate_with_its_number(read, drawn):
    [subject] = read(ALL)
    assert drawings.flow(subject)
    found = texts(drawn[0])
    assert "NameError: 6 (67%)" in found and "ran: 3 (33%)" in found
    assert "answered right: 1 (11%)" in found and "cut: 1 (11%)" in found
    from matplotlib.patches import PathPatch

    bands = [patch for patch in drawn[0].axes[0].patches if isinstance(patch, PathPatch)]
    flow = flow_of(subject.figures)
    assert len(bands) == sum(bool(n) for fates in flow.values() for n in fates.values())


def test_rare_kinds_of_errors_are_one_bar(read, drawn):
    errors = [Execution(Outcome.RUNTIME_ERROR, "", f"E{n}Error: x") for n in range(12)]
    some = [episode("p", ANSWERED, (CODE, error), WRONG) for error in errors]
    [subject] = read([*some, *some[:5]])
    assert drawings.flow(subject)
    assert "5 other kinds: 5 (29%)" in texts(drawn[0])
    assert sum(re.match(r"e\d+error", text) is not None for text in texts(drawn[0])) == 7


def test_the_names_of_the_flow_do_not_touch(read, drawn):
    many = [episode("p", ANSWERED, (CODE, NAME), WRONG)] * 200
    rare = [episode("p", ANSWERED, (CODE, LATE), (CODE, NAME), WRONG)]
    [subject] = read([*many, *rare])
    assert drawings.flow(subject)
    boxes = [text.get_window_extent() for text in drawn[0].axes[0].texts]
    assert not [1 for n, box in enumerate(boxes) for other in boxes[:n] if box.overlaps(other)]


def test_figures_along_a_training_have_bands_and_held_out_points(tmp_path, drawn):
    path = a_training(
        tmp_path / "run",
        [(step, t) for step in (1, 2, 3) for t in (RAN, GUESS)],
        {0: [GUESS, RAN], 3: [RAN]},
    )
    assert drawings.along(read_subjects([path], lambda line: None))
    panels = {axis.get_title(): axis for axis in drawn[0].axes if axis.get_title()}
    assert {"right", "attempted a call", "calls in an episode"} <= panels.keys()
    rollouts, held_out = panels["right"].lines
    assert rollouts.get_xydata().tolist() == [[1, 0.5], [2, 0.5], [3, 0.5]]
    assert held_out.get_xydata().tolist() == [[0, 0.5], [3, 1]]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        "rollouts",
        "held-out problems",
    ]


def test_a_training_without_episodes_has_no_figures_along_its_steps(tmp_path, drawn):
    path = a_training(tmp_path / "run", records=[{"step": 1, "loss": 1.0}])
    assert drawings.along(read_subjects([path], lambda line: None)) == b"" and drawn == []
