"""The language of the recovery study: its programs, its reactions, and its tokens."""

from __future__ import annotations

import contextlib
import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.base.presets import read_preset
from agents.base.settings import find_sandbox, find_task
from agents.traces.scripted import answer
from benchmarks.parts.study_language import (
    CONTEXT,
    Habits,
    language_tokenizer,
    main,
    make_traces,
    read_value,
    training_problems,
    turns_of,
    values_of,
    word_problems,
    write,
)
from benchmarks.parts.study_plan import PRESET, SEEN
from retool_env.faults import KINDS
from retool_env.problem import Problem
from retool_env.protocol.tags import parse_turn

PROBLEMS = training_problems(5, 40)
STAGED = [problem for problem in PROBLEMS if problem.id.startswith("staged/")]
PLAIN = {"text": 0.0, "check": 0.0, "slip": 0.0}


def run(program: str) -> str:
    """The output of a program of the language, or the last line of its error."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            exec(program, {})
    except (SyntaxError, NameError) as error:
        return f"{type(error).__name__}: {error}"
    return output.getvalue()


def solve(problem: Problem, habits: Habits, seed: int = 0, faults=()) -> list[str]:
    """The turns of a solution; `faults` are the results of the first calls, `None` the true one."""
    turn, text, turns = turns_of(write(problem, habits, random.Random(seed))), "", []
    given_results = list(faults)
    while True:
        turns.append(turn(text))
        parsed = parse_turn(turns[-1])
        if parsed.kind.value == "answer":
            return turns
        program = parsed.content.removeprefix("\n```python\n").removesuffix("\n```\n")
        shown = given_results.pop(0) if given_results else None
        text += f"<interpreter>\n{run(program) if shown is None else shown}\n</interpreter>"


def programs(turns: list[str]) -> list[str]:
    return [parse_turn(turn).content.strip() for turn in turns[:-1]]


@pytest.mark.parametrize("problem", STAGED, ids=lambda problem: problem.id)
def test_both_programs_of_a_value_print_it(problem):
    known = {}
    for value in values_of(problem):
        first, second = (run(program.format(**known)) for program in value.programs)
        assert first.strip() == f"{value.name} = {value.value}" and second.strip() == str(
            value.value
        )
        known[value.name] = value.value


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PROBLEMS), st.integers(0, 10**6))
def test_without_faults_every_solution_is_right(problem, seed):
    turns = solve(problem, Habits(slip=0.5), seed)
    assert turns[-1].endswith(answer(problem.answer)) and len(turns) <= 16


def test_after_an_error_a_solution_retries_or_takes_the_other_program_or_goes_on_in_text():
    problem = STAGED[0]
    [first, second] = values_of(problem)[0].programs
    error = "the interpreter could not run the program: try again"
    retried = solve(problem, Habits(**PLAIN, retry=1.0, second=0.0), faults=[error])
    assert programs(retried)[:2] == [first, first]
    changed = solve(problem, Habits(**PLAIN, retry=0.0, second=1.0), faults=[error])
    assert programs(changed)[:2] == [first, second]
    text = solve(problem, Habits(**PLAIN, retry=0.0, second=0.0), faults=[error])
    assert len(text) == 2 and text[1].endswith(answer(problem.answer)) and "a = " in text[1]


def test_a_missing_package_is_not_asked_for_again():
    missing = "ModuleNotFoundError: No module named 'sympy'"
    for problem in STAGED:
        for seed in range(3):
            turns = solve(problem, Habits(**PLAIN, retry=1.0, second=0.0), seed, [missing])
            assert len(set(programs(turns)[:2])) == 2


def test_a_check_finds_a_false_value_and_without_a_check_it_is_adopted():
    problem = next(problem for problem in PROBLEMS if problem.metadata["difficulty"] == 3)
    false = f"x = {int(problem.answer) + 1}"
    checked = solve(problem, Habits(text=0, check=1, slip=0), faults=[false])
    assert len(checked) == 4 and checked[-1] == answer(problem.answer)
    assert solve(problem, Habits(**PLAIN), faults=[false])[-1] == answer(false[4:])


@pytest.mark.parametrize(
    ("result", "value"),
    [("b = 12", 12), ("12\n\n", 12), ("a warning\nb = -3", -3), ("", None), ("a = 12", None)],
)
def test_a_result_of_another_form_shows_no_value(result, value):
    assert read_value(result, "b") == value


def test_the_model_reads_errors_of_all_kinds_by_bytes_and_the_language_by_pieces():
    tokenizer = language_tokenizer()
    for problem in STAGED[:5]:
        ids = tokenizer.encode(problem.question)
        assert tokenizer.decode(ids) == problem.question and len(ids) < len(problem.question) / 2
    for error in ("MemoryError: the program", "the interpreter is busy", "time limit: the program"):
        assert len(tokenizer.encode(error)) == len(error)
    assert tokenizer.model_max_length == CONTEXT


def test_traces_meet_seen_faults_in_the_sandbox_and_are_right():
    env = {**read_preset(str(PRESET))["env"], "id": "ReTool-Staged-v0"}
    rules, _ = find_task(
        {**env, "faults": {"rate": 1.0, "kinds": [k for k in SEEN if k != "slow"]}}
    )
    with find_sandbox("nsjail", rules) as sandbox:
        traces = make_traces(PROBLEMS[:12], Habits(), rules, language_tokenizer(), sandbox, 0)
    faults = [c.execution.fault for trace in traces for c in trace.calls if c.execution.fault]
    assert 0 < len(traces) <= 12 and all(trace.correct for trace in traces)
    assert any(fault.injected for fault in faults)
    assert all(KINDS[fault.kind].seen for fault in faults)


def test_problems_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="has no expression"):
        values_of(Problem("words/1/2/3", "How many?", "3"))


@settings(max_examples=30, deadline=None)
@given(number=st.integers(0, 59), seed=st.integers(0, 99))
def test_word_problems_are_solved_in_the_same_language(number, seed):
    problem = word_problems(7, 60)[number]
    assert ("story" in problem.metadata) == bool(number % 2)
    assert solve(problem, Habits(), seed)[-1].endswith(answer(problem.answer))
    known = {other.question for other in word_problems(8, 60, "test")}
    assert problem.question not in known


@pytest.mark.slow
def test_the_files_of_study_c_are_made_once_with_the_tokenizer_of_the_model(tmp_path):
    language_tokenizer().save_pretrained(tmp_path / "model")
    options = ["--traces", "4", "--problems", "6", "--held-out", "2"]
    arguments = [str(tmp_path / "c"), "--words", str(tmp_path / "model"), *options]
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    lines = {path.name: path.read_text().count("\n") for path in (tmp_path / "c").iterdir()}
    assert 1 <= lines.pop("traces.jsonl") <= 4
    assert lines == {"problems.jsonl": 6, "held_out.jsonl": 2}


@pytest.mark.slow
def test_the_files_of_a_seed_are_made_once(tmp_path):
    arguments = [str(tmp_path), "--seed", "1", "--traces", "6", "--problems", "4"]
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert (tmp_path / "problems.jsonl").read_text().count("\n") == 4
