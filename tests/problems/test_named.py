"""Sources by name: known names, own sources, and the errors of names and options."""

import pytest

from retool_env.problems import SOURCES, Problem, ProblemList, arithmetic, load_problems


def test_a_name_makes_the_source_with_its_options():
    source = load_problems("arithmetic", difficulty=2, size=5)
    assert list(source) == list(arithmetic(difficulty=2, size=5))
    evaluation = {"aime", "hmmt", "brumo", "apex", "beyond_aime", "amo", "olymmath", "math500"}
    generated = {"arithmetic", "staged", "words"}
    assert set(SOURCES) == evaluation | generated | {"dapo", "gsm8k", "math", "jsonl"}


def test_an_own_source_is_found_by_its_name(monkeypatch):
    def mine(answer: str = "1") -> ProblemList:
        return ProblemList([Problem("mine/0", "?", answer)])

    monkeypatch.setitem(SOURCES, "mine", mine)
    assert load_problems("mine", answer="2")[0].answer == "2"


def test_an_unknown_name_lists_the_sources():
    with pytest.raises(ValueError, match=r"no source of problems is called 'aim'; .*aime, hmmt"):
        load_problems("aim")


def test_an_unknown_option_lists_the_options():
    with pytest.raises(TypeError, match=r"'difficulty'.*takes split, path"):
        load_problems("gsm8k", difficulty=3)


def test_a_missing_option_is_named():
    with pytest.raises(TypeError, match="jsonl: missing a required argument: 'path'"):
        load_problems("jsonl")
