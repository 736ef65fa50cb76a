"""Word problems in the study's language: both programs of each story give the answer."""

from __future__ import annotations

import contextlib
import io

import pytest

from benchmarks.parts.study_words import PROGRAMS, programs_of
from retool_env.problems.procedural import arithmetic
from retool_env.problems.words import STORIES, words


def run(program: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(program, {})
    return output.getvalue()


def test_every_story_of_the_first_two_difficulties_has_programs():
    assert set(PROGRAMS) == {story.__name__ for level in (1, 2) for story in STORIES[level]}


@pytest.mark.parametrize("seed", range(3))
def test_both_programs_of_a_story_give_its_answer(seed):
    problems = words(seed, (1, 2), size=120)
    for problem in (problems[number] for number in range(120)):
        first, second = programs_of(problem)
        assert run(first) == f"x = {problem.answer}\n", problem.question
        assert run(second) == f"{problem.answer}\n", problem.question


def test_other_problems_have_no_programs():
    assert programs_of(arithmetic()[0]) is None
    assert programs_of(words(difficulty=3)[0]) is None
