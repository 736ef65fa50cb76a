"""Drawn outcomes have the stated means, and agree where the world says so."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.parts.worlds import World, draw


def test_the_drawn_outcomes_have_the_true_means():
    random = np.random.default_rng(0)
    data = draw(World(0.75, 0.8, 0.3), 4000, random)
    assert np.mean([pair.second for pair in data.pairs]) == pytest.approx(0.75, abs=0.02)
    assert np.mean([pair.first for pair in data.pairs]) == pytest.approx(0.6, abs=0.02)
    assert np.mean([p.first - p.second for p in data.calls]) == pytest.approx(0.5, abs=0.05)
    assert len({pair.problem for pair in data.pairs}) == 4000
    assert np.mean([pair.first for pair in data.only_implied]) == pytest.approx(0.192, abs=0.02)
    assert {pair.second for pair in data.only_implied} == {0}
    assert np.mean([pair.second for pair in data.areas]) == pytest.approx(0.75, abs=0.02)
    assert np.mean([pair.first for pair in data.areas]) == pytest.approx(0.675, abs=0.02)


def test_samples_of_a_decided_world_agree_and_a_problem_with_one_sample_has_one_prefix():
    random = np.random.default_rng(0)
    data = draw(World(0.5, 0.8, 1.0, samples=1, rare=0.1), 4000, random)
    assert len(data.pairs) == 4000 and {pair.first for pair in data.pairs} == {0, 1}
    assert np.mean([pair.first for pair in data.pairs]) == pytest.approx(0.4, abs=0.03)
    assert np.mean([pair.first for pair in data.rare_calls]) == pytest.approx(0.1, abs=0.02)
    several = draw(World(0.5, 0.8, 0.97), 1000, random)
    assert np.mean([pair.second in (0, 1) for pair in several.pairs]) > 0.9
    effects = [pair.first - pair.second for pair in several.models]
    assert len(effects) == 1000 and np.mean(effects) == pytest.approx(-0.05, abs=0.03)
