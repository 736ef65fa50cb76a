"""The problems of a run and their order. `tests/agents/test_algorithms.py` tests the rollouts."""

from __future__ import annotations

import pytest
from helpers.small_runs import make_small, settings

from agents import grpo, ppo
from agents.base.selection import chosen_ids, pass_rates, subset
from agents.base.settings import SettingsError
from retool_env.problems import Problem, ProblemList
from retool_env.transcript import Span, StopReason, Transcript, read_transcripts, write_transcripts

SOURCE = ProblemList(Problem(str(i), f"{i} + 1?", str(i + 1)) for i in range(6))
RIGHT = {"0": [1, 1], "1": [0, 1, 0, 0], "2": [0, 0], "3": [1, 0], "4": [1, 1, 0, 1], "far": [1, 0]}


def write(path, right):
    write_transcripts(
        path,
        [
            Transcript(
                Problem(name, "?", "1"),
                (Span("prompt", "?"), Span("model", "<answer>1</answer>")),
                stop_reason=StopReason.INFRASTRUCTURE if one is None else StopReason.ANSWERED,
                correct=None if one is None else bool(one),
            )
            for name, each in right.items()
            for one in each
        ],
    )
    return str(path)


def test_a_pass_rate_is_the_share_of_scored_ones_that_are_right(tmp_path):
    path = write(tmp_path / "t.jsonl", {"1": [1, 0, None, 0], "2": [None], "3": [1]})
    assert pass_rates(path) == {"1": pytest.approx(1 / 3), "3": 1.0}


@pytest.mark.parametrize("size", [2, 3, 8])
def test_undecided_problems_are_drawn_evenly_and_ordered_from_easy_to_hard(tmp_path, size):
    path = write(tmp_path / "t.jsonl", RIGHT)
    ids = chosen_ids(SOURCE, size, 3, path)
    assert ids == sorted(ids, key=["4", "3", "1"].index) and len(ids) == size
    counts = [ids.count(name) for name in "431"]
    assert max(counts) - min(counts) <= 1
    assert chosen_ids(SOURCE, size, 3, path) == ids


def test_without_a_curriculum_all_are_drawn_in_random_order():
    ids = chosen_ids(SOURCE, 6, 0)
    assert sorted(ids) == list("012345") and ids != chosen_ids(SOURCE, 6, 1)


@pytest.mark.parametrize(
    ("right", "message"),
    [
        ({"far": [1, 0]}, "has 1 problems, 0 of them from this environment"),
        ({"0": [1, 1], "2": [0]}, "2 of them from this environment, and none with both right and"),
        ({}, "has 0 problems"),
    ],
)
def test_a_curriculum_that_leaves_nothing_is_refused(tmp_path, right, message):
    path = write(tmp_path / "t.jsonl", right)
    with pytest.raises(SettingsError, match=message):
        chosen_ids(SOURCE, 4, 0, path)


def test_what_is_no_file_of_transcripts_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n')
    for name in ("t.jsonl", "none.jsonl"):
        with pytest.raises(SettingsError, match="curriculum: "):
            chosen_ids(SOURCE, 4, 0, str(tmp_path / name))


@pytest.mark.parametrize("algorithm", [grpo, ppo])
def test_a_run_trains_on_a_runs_problems_from_easy_to_hard(tmp_path, algorithm):
    name = algorithm.__name__.rpartition(".")[2]
    model = make_small(tmp_path / "model")
    first = settings(name, model=model, steps=2)
    algorithm.train(first, tmp_path / "first")
    seen = list(
        dict.fromkeys(
            t.problem.id for t in read_transcripts(tmp_path / "first" / "transcripts.jsonl")
        )
    )
    path = write(tmp_path / "t.jsonl", {seen[0]: [0, 1, 0], seen[1]: [1, 1], seen[2]: [1, 1, 0]})
    algorithm.train(settings(name, model=model, steps=2, curriculum=path), tmp_path / "second")
    ids = [t.problem.id for t in read_transcripts(tmp_path / "second" / "transcripts.jsonl")]
    assert list(dict.fromkeys(ids)) == [seen[2], seen[0]]


def test_what_replaces_others_is_of_the_curriculum_too():
    problems = subset(SOURCE, ["4", "1", "4"])
    assert [problem.id for problem in problems] == ["4", "1"]
