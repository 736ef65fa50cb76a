"""The picture of a comparison is a PNG file, for each shape of data."""

from __future__ import annotations

import pytest
from helpers.compared_runs import outcomes

from retool_env.evaluation.compare.comparison import compare_outcomes
from retool_env.evaluation.compare.picture import draw


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"p": [True]}, {"p": [False]}),
        ({"p": [True], "q": [True]}, {"p": [True], "q": [True]}),
        ({n: [True, False] for n in "abc"}, {n: [n == "b", True] for n in "abc"}),
    ],
)
def test_a_picture_is_drawn(first, second):
    pytest.importorskip("matplotlib")
    [found] = compare_outcomes([outcomes("A", first), outcomes("B", second)]).comparisons
    assert draw(found).startswith(b"\x89PNG")
