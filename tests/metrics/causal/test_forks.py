"""All figures of the world that is worked out by hand."""

from __future__ import annotations

import random

import pytest
from helpers.episodes import RAN
from helpers.forks import fork, world

from retool_env.metrics.causal import CausalFigure, fork_figures


def test_all_figures_are_made_once_and_survive_json():
    found = fork_figures([*world(), RAN, fork("a", "keep", "7")], equal=str.__eq__)
    keys = [figure.key for figure in found]
    assert len(set(keys)) == len(keys)
    rooms = {key.split("/")[0] for key in keys}
    assert {"effect", "contagion", "detection", "natural", "outcome"} <= rooms
    for figure in found:
        assert CausalFigure.from_json(figure.to_json()) == figure
        assert figure.definition and figure.shown == (not figure.reason)


def test_the_order_of_the_transcripts_does_not_matter():
    forks = world()
    random.Random(0).shuffle(forks)
    first, second = (
        {f.key: f.mean for f in fork_figures(some, equal=str.__eq__)} for some in (forks, world())
    )
    assert first == pytest.approx(second)


def test_without_forks_there_are_no_figures():
    assert fork_figures([RAN]) == []
