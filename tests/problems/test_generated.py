"""Generated sources: indices, ids, splits and settings, the same for all of them."""

import pickle

import pytest

from retool_env.errors import SettingsError
from retool_env.problems import ProblemSource, arithmetic, staged, words

SOURCES = [(arithmetic, 1, 5), (staged, 2, 5), (words, 1, 3)]
"""Each source with its lowest and its highest difficulty."""


@pytest.mark.parametrize(("make", "least", "most"), SOURCES)
def test_it_is_a_source(make, least, most):
    source = make(7, (least, most), size=20)
    assert isinstance(source, ProblemSource)
    assert source[-1] == source[19] and source.get(source[12].id) == source[12]
    assert [p.metadata["difficulty"] for p in source] == [least, most] * 10
    assert pickle.loads(pickle.dumps(source))[3] == source[3]
    for index in (20, -21):
        with pytest.raises(IndexError, match="20 problems"):
            source[index]
    prefix = f"{make.__name__}/train-seed7-level{least}{most}/"
    assert source[0].id == f"{prefix}0"
    other = make(8, least)[0].id
    for wrong in (f"{prefix}20", f"{prefix}007", "7", "", f"{prefix}x", other):
        with pytest.raises(KeyError, match=f"nearest is '{make.__name__}/train-seed7"):
            source.get(wrong)


@pytest.mark.parametrize(("make", "least", "most"), SOURCES)
def test_wrong_settings_are_named(make, least, most):
    wrong = (least - 1, most + 1, (), (least, 9), float(least), f"{least}", None, True, [[least]])
    for difficulty in wrong:
        with pytest.raises(SettingsError, match=f"difficulty must be {least} to {most}"):
            make(difficulty=difficulty)
    for size in (0, -1, 2.5, "5", True):
        with pytest.raises(SettingsError, match="size must be a whole number from 1 to 100000000"):
            make(size=size)
    with pytest.raises(ValueError, match="split"):
        make(split="dev")


@pytest.mark.parametrize(("make", "level"), [(arithmetic, 2), (staged, 2), (words, 1)])
def test_a_problem_is_in_one_split_for_every_seed(make, level):
    texts = {
        split: {p.question for seed in range(3) for p in make(seed, level, size=size, split=split)}
        for split, size in (("train", 300), ("test", 50))
    }
    assert not texts["train"] & texts["test"]
    assert len(texts["test"]) > 100
