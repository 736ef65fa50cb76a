"""The catalogue: its entries, the dates of problems, and the comparison of dates."""

import re

import pytest

from retool_env import ENVIRONMENTS
from retool_env.problems import DATA_SETS, Problem, arithmetic, load_problems, published
from retool_env.problems.catalogue import check_date, is_published_by

NOT_IN_THE_CATALOGUE = {"arithmetic", "jsonl", "staged", "words"}


@pytest.mark.parametrize("key", DATA_SETS)
def test_an_entry_is_complete(key):
    data_set = DATA_SETS[key]
    assert check_date(data_set.published) == data_set.published
    assert data_set.rows > 0 and data_set.title and data_set.columns
    assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in data_set.files)
    assert re.fullmatch(r"[\w-]+/[\w-]+", data_set.hub.repo)
    if data_set.hub.repo.startswith("MathArena/"):
        assert data_set.licence == "CC BY-NC-SA 4.0"


def test_no_two_entries_share_a_file_or_a_split():
    files = [name for data_set in DATA_SETS.values() for name in data_set.files]
    assert len(set(files)) == len(files)
    assert len({data_set.hub for data_set in DATA_SETS.values()}) == len(DATA_SETS)


@pytest.mark.parametrize("key", DATA_SETS)
def test_the_problems_of_an_entry_have_its_key_and_its_date(key, hub):
    """Each entry is found by the settings of a registered id or by a split."""
    data_set = DATA_SETS[key]
    row = {"problem": "6 * 7?", "answer": "42", "answer_type": "number"}
    place = data_set.hub.repo, data_set.hub.config, data_set.hub.split
    hub[place] = [row | {"answer": "#### 42"} if key.startswith("gsm8k") else row]
    found = []
    for settings in ENVIRONMENTS.values():
        options = dict(settings)
        if (name := options.pop("problems")) in NOT_IN_THE_CATALOGUE:
            continue
        for more in _choices(name, options):
            try:
                found += [problem.id for problem in load_problems(name, **options, **more)]
            except FileNotFoundError:
                continue
    assert set(found) == {f"{key}/0"}
    assert published(Problem(found[0], "?", "1")) == data_set.published


def _choices(name, options):
    """The further settings that select each set of a source."""
    if name == "olymmath":
        return [{"language": a, "level": b} for a in ("en", "zh") for b in ("easy", "hard")]
    if name in ("math", "gsm8k"):
        return [{"split": split} for split in ("train", "test")]
    return [{}]


def test_a_date_in_the_metadata_comes_first():
    assert published(Problem("hmmt/2025-11/3", "?", "1", {"published": "2024"})) == "2024"
    assert published(Problem("mine/0", "?", "1", {"published": 2023})) == "2023"
    assert published(Problem("mine/0", "?", "1", {"published": "last year"})) is None
    assert published(Problem("hmmt/2025-11/3", "?", "1", {"published": "?"})) == "2025-11"
    assert published(arithmetic()[0]) is None


@pytest.mark.parametrize(
    ("date", "model_date", "expected"),
    [
        ("2025-02-12", "2025-06", True),
        ("2025-02-12", "2025-02-12", True),
        ("2025-02-12", "2025-02-11", False),
        ("2025-06", "2025-06-01", True),
        ("2025-11", "2025-06", False),
        ("2025", "2025-06", True),
        ("2025", "2024-12-31", False),
        ("2026-02-06", "2026", True),
    ],
)
def test_the_shorter_date_decides(date, model_date, expected):
    assert is_published_by(date, model_date) is expected


@pytest.mark.parametrize(
    "text", ["", "25", "2025-13", "2025-6", "2025-06-32", "June 2025", "2025-"]
)
def test_other_texts_are_not_dates(text):
    with pytest.raises(ValueError, match="is not a date, such as 2025, 2025-06"):
        check_date(text)
