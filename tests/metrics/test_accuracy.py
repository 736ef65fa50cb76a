"""Figures of accuracy, worked out by hand."""

import pytest
from helpers.episodes import ALL, figures_of, means, sample

from retool_env.errors import SettingsError
from retool_env.metrics.figures import measure
from retool_env.metrics.intervals import wilson
from retool_env.metrics.summary import summarise


def test_accuracy_of_twelve_episodes():
    found = figures_of(ALL)
    # a 1/2, b 1, c 1/2, d 0, e 0, f 0, g 1, h 0; eight problems are always near the edge.
    average, expected = found["accuracy/avg"], wilson(3 / 8, 8)
    assert (average.count, average.problems, average.mean) == (11, 8, 3 / 8)
    assert average.mean == summarise(ALL).accuracy.mean
    assert (average.low, average.high) == pytest.approx((expected.low, expected.high))
    assert means(found, "accuracy/pass@1", "accuracy/pass^1") == [3 / 8, 3 / 8]
    # Two episodes each of a, b and c alone: one right of two, both, and one.
    assert means(found, "accuracy/pass@2", "accuracy/pass^2") == [1, pytest.approx(1 / 3)]
    assert (found["accuracy/pass@2"].count, found["accuracy/pass@2"].problems) == (6, 3)
    assert "accuracy/pass@4" not in found
    groups = ("none", "without_error", "error_mended", "error_not_mended")
    # DIRECT of it, GUESS and CUT; RAN; MENDED and PAUSED, not TWICE; STUBBORN of four.
    keys = [f"accuracy/calls/{group}" for group in groups]
    assert means(found, *keys) == pytest.approx([1 / 3, 1, 2 / 3, 1 / 4])
    assert [found[key].count for key in keys] == [3, 1, 3, 4]


def test_warnings_of_twelve_episodes():
    found = figures_of(ALL)
    assert found["warning/cut_before_answer"].mean == pytest.approx(1 / 11)  # CUT
    assert found["warning/right_not_in_form"].mean == 0


def test_figures_of_several_samples_by_hand():
    rollouts = [
        # Two right of four. Votes: 42, and 42.0 with it; 7; none.
        sample("p", "42", correct=True),
        sample("p", "7"),
        sample("p", "42.0", correct=True),
        sample("p", None),
        # One right of four, and two votes for another answer.
        sample("q", "8"),
        sample("q", "8"),
        sample("q", "42", correct=True),
        sample("q", " "),
    ]
    found = figures_of(rollouts)
    assert [key for key in found if "/maj@" in key] == [f"accuracy/maj@{k}" for k in (1, 2, 4)]
    assert found["accuracy/avg"].mean == found["accuracy/maj@1"].mean == 3 / 8
    # pass@2: 1 - C(2, 2) / 6 and 1 - C(3, 2) / 6. pass^2: C(2, 2) / 6 and 0.
    assert found["accuracy/pass@2"].mean == pytest.approx((5 / 6 + 3 / 6) / 2)
    assert found["accuracy/pass^2"].mean == pytest.approx((1 / 6 + 0) / 2)
    # Of p's six pairs, right, right; two ties with 7; twice 42 and none; 7 and none is wrong.
    # Of q's, 42 and none; two ties with 8.
    assert found["accuracy/maj@2"].mean == pytest.approx(((1 + 2 * 0.5 + 2) / 6 + (1 + 1) / 6) / 2)
    assert found["accuracy/maj@4"].mean == 1 / 2
    assert means(found, "accuracy/pass@4", "accuracy/pass^4") == [1, 0]
    never = figures_of(rollouts, equal=lambda a, b: False)  # equal texts need no question
    assert never["accuracy/maj@4"].mean == pytest.approx((1 / 3 * 2 + 0) / 2)


def test_the_sizes_may_be_chosen():
    rollouts = [sample("p", "42", correct=True)] * 3 + [sample("q", "7")] * 2
    assert [key for key in figures_of(rollouts) if "pass@" in key] == [
        f"accuracy/pass@{k}" for k in (1, 2, 3)
    ]
    found = figures_of(rollouts, ks=(3,))
    assert [key for key in found if "pass@" in key] == ["accuracy/pass@3"]
    # A problem with fewer samples is left out.
    assert (found["accuracy/pass@3"].mean, found["accuracy/pass@3"].problems) == (1, 1)
    assert found["accuracy/pass@3"].low is None
    with pytest.raises(SettingsError, match="k = 4 and n = 3"):
        measure(rollouts, ks=(4,))


def test_accuracy_by_data_set_difficulty_and_subject():
    rollouts = [
        sample("math/test/0", "42", correct=True, level=5, subject="Number Theory"),
        sample("math/test/0", "7", level=5, subject="Number Theory"),
        sample("math/test/1", "7", level=10, subject="Counting & Probability"),
        sample("math/test/2", "7", level="10"),
        sample("mine", "42", correct=True, difficulty=2, data_set="Own"),
        sample("plain", "42", correct=True),
    ]
    found = figures_of(rollouts)
    groups = {key: f.mean for key, f in found.items() if key.count("/") >= 2}
    groups = {key: mean for key, mean in groups.items() if key.startswith("accuracy/")}
    groups = {key: mean for key, mean in groups.items() if "/calls/" not in key}
    assert list(groups.items()) == [
        ("accuracy/data_set/math/test", pytest.approx(1 / 6)),
        ("accuracy/data_set/own", 1),
        ("accuracy/difficulty/2", 1),
        ("accuracy/level/5", 1 / 2),
        ("accuracy/level/10", 0),
        ("accuracy/subject/counting_probability", 0),
        ("accuracy/subject/number_theory", 1 / 2),
    ]
    numbers = [
        (found[f"accuracy/level/{n}"].count, found[f"accuracy/level/{n}"].problems) for n in (5, 10)
    ]
    assert numbers == [(2, 1), (2, 2)]
