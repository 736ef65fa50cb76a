"""Pictures: readable letters, distinct looks, legends below the panels, whole ticks."""

import itertools
import sys

import pytest
from helpers.drawings import drawn

from retool_env.errors import MissingPackage
from retool_env.pictures import (
    COLOURS,
    LINES,
    MARKERS,
    curve,
    look,
    picture,
    share_axis,
    whole_numbers,
)

__all__ = ["drawn"]

pytest.importorskip("matplotlib")


def luminance(colour: str) -> float:
    """The relative luminance of a colour, as WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_series_differ_by_colour_marker_and_line_and_stand_out_from_white():
    looks = [look(number) for number in range(len(COLOURS))]
    for one, other in itertools.combinations(looks, 2):
        assert all(one[name] != other[name] for name in ("color", "marker", "linestyle"))
    assert look(len(COLOURS)) == look(0)
    assert len(COLOURS) == len(MARKERS) == len(LINES)
    assert all(1.05 / (luminance(colour) + 0.05) > 2 for colour in COLOURS)


def test_a_picture_has_its_panels_and_letters_of_at_least_eight_points(drawn):
    with picture(1, 2, (4, 3)) as made:
        assert made.axes.shape == (1, 2)
        curve(made.axes[0, 1], [(1, 0.5, 0.4, 0.6), (2, 0.6, None, None)], 0, "a")
        made.axes[0, 1].set(title="title", xlabel="steps")
        made.legend()
    assert made.png.startswith(b"\x89PNG")
    from matplotlib.text import Text

    texts = [text for text in drawn[0].findobj(Text) if text.get_text()]
    assert {"a", "title", "steps"} <= {text.get_text() for text in texts}
    assert min(text.get_fontsize() for text in texts) >= 8


def test_a_legend_names_each_series_once_and_covers_no_panel(drawn):
    with picture(1, 2, (6, 3)) as made:
        for axis in made.axes[0]:
            curve(axis, [(1, 0.5, 0.4, 0.6), (2, 0.6, 0.5, 0.7)], 0, "one")
            curve(axis, [(1, 0.1, 0.0, 0.2), (2, 0.2, 0.1, 0.3)], 1, "two")
        made.legend()
    [legend] = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two"]
    box = legend.get_window_extent()
    assert all(axis.get_window_extent().y0 >= box.y1 for axis in made.axes[0])


def test_an_interval_is_a_band_and_an_unbounded_one_has_none(drawn):
    with picture() as made:
        axis = made.axes[0, 0]
        curve(axis, [(1, 0.5, 0.4, 0.6), (2, 0.5, 0.3, 0.7), (3, 0.5, None, None)], 0, "a")
    [band] = axis.collections
    corners = {tuple(point) for path in band.get_paths() for point in path.vertices.tolist()}
    assert {(1, 0.4), (1, 0.6), (2, 0.3), (2, 0.7)} <= corners
    assert all(x != 3 for x, _ in corners)


@pytest.mark.parametrize("last", [1, 2, 3, 50, 1200])
def test_steps_have_ticks_at_whole_numbers(last):
    with picture() as made:
        axis = made.axes[0, 0]
        axis.plot([1, last], [0, 1])
        whole_numbers(axis.xaxis)
        share_axis(axis.yaxis)
    assert all(tick == round(tick) for tick in axis.get_xticks())
    assert "." not in "".join(label.get_text() for label in axis.get_xticklabels())
    assert axis.get_ylim() == (-0.03, 1.03)


def test_a_picture_that_can_not_be_drawn_has_no_bytes():
    with pytest.raises(RuntimeError, match="no data"), picture() as made:
        raise RuntimeError("no data")
    assert made.png == b""


def test_without_matplotlib_the_error_names_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackage, match=r"pip install 'retool-env\[report\]'"), picture():
        pass
