"""Problems are paired by id, question and answer."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.compared_runs import ended, problem_of, write_run, write_verdicts

from retool_env.errors import DataError
from retool_env.evaluation.compare.matching import match
from retool_env.evaluation.compare.outcomes import read_outcomes


def a_run(folder, *problems):
    return read_outcomes(write_run(folder, [(0, ended(one, True)) for one in problems]), "A")


def test_problems_of_one_run_only_are_named(tmp_path):
    p, q, r = map(problem_of, "pqr")
    found = match(a_run(tmp_path / "a", p, q), a_run(tmp_path / "b", r, q))
    assert [key[0] for key in found.common] == ["q"]
    assert (found.only_first, found.only_second, found.changed) == (("p",), ("r",), ())


@pytest.mark.parametrize("change", [{"question": "Another?"}, {"answer": "43"}])
def test_a_problem_with_another_text_is_never_paired(tmp_path, change):
    p, q = map(problem_of, "pq")
    found = match(
        a_run(tmp_path / "a", p, q), a_run(tmp_path / "b", dataclasses.replace(p, **change), q)
    )
    assert [key[0] for key in found.common] == ["q"]
    assert (found.only_first, found.only_second, found.changed) == ((), (), ("p",))


def test_other_metadata_are_the_same_problem(tmp_path):
    found = match(
        a_run(tmp_path / "a", problem_of("p")), a_run(tmp_path / "b", problem_of("p", level=3))
    )
    assert len(found.common) == 1


def test_runs_without_a_common_problem_are_refused(tmp_path):
    first = a_run(tmp_path / "a", problem_of("p"))
    with pytest.raises(DataError, match="share no problem: compare runs on the same problems"):
        match(first, a_run(tmp_path / "b", problem_of("q")))
    changed = dataclasses.replace(problem_of("p"), question="Another?")
    with pytest.raises(DataError, match="the text of 1 problems differs under one id"):
        match(first, a_run(tmp_path / "c", changed))


def test_the_ids_are_sorted(tmp_path):
    path = write_verdicts(tmp_path / "a", {name: [True] for name in "zpm"})
    found = match(read_outcomes(path, "A"), a_run(tmp_path / "b", problem_of("z")))
    assert found.only_first == ("m", "p")
