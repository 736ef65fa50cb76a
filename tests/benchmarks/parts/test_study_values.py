"""Study D: false values at four distances, and whether a model notices them."""

from __future__ import annotations

import contextlib
import json
import random

import pytest
from helpers.episodes import ANSWERED
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.parts import study_values
from benchmarks.parts.study_language import values_of
from benchmarks.parts.study_values import (
    CONTROL,
    DISTANCES,
    cases_of,
    checks_again,
    figures,
)
from retool_env.execution import Execution, Outcome
from retool_env.problems.staged import implied_answer, read_stages, staged
from retool_env.transcript import Parent, Span, Transcript

PROBLEM = staged(difficulty=3, split="test")[0]
STAGES = read_stages(PROBLEM)
KNOWN = {stage.name: stage.value for stage in STAGES}
FIRST, SECOND = (
    [value.programs[at].format(**KNOWN) for value in values_of(PROBLEM)] for at in (0, 1)
)


def ran(program: str, shown: str):
    turn = Span("model", f"<code>\n```python\n{program}\n```\n</code>")
    return [turn, Span("env", shown, execution=Execution(Outcome.OK, shown))]


def solution(*calls, answer=PROBLEM.answer, parent=None) -> Transcript:
    spans = [span for program, shown in calls for span in ran(program, shown)]
    return Transcript(
        PROBLEM,
        (Span("prompt", "?"), *spans, Span("model", f"<answer>{answer}</answer>")),
        stop_reason=ANSWERED,
        answer=answer,
        correct=answer == PROBLEM.answer,
        parent=parent,
    )


PARENT = solution(*((FIRST[at], f"{s.name} = {s.value}\n") for at, s in enumerate(STAGES)))


@given(st.integers(2, 10**8), st.integers(0, 10**6))
def test_a_false_value_differs_by_its_distance(value, seed):
    false = {name: change(value, random.Random(seed)) for name, change in DISTANCES.items()}
    assert value not in false.values()
    assert abs(false["one"] - value) == 1 and abs(false["digit"] - value) > 1
    assert len(str(false["digit"])) == len(str(value))
    assert false["sign"] == -value and false["magnitude"] == 10 * value


def test_a_case_is_the_first_or_the_second_call_that_shows_a_value():
    first, second = cases_of([(0, PARENT), (1, PARENT)])
    assert (first.call, first.stage, first.value) == (1, "a", STAGES[0].value)
    assert (second.call, second.stage, second.value) == (2, "b", STAGES[1].value)
    checked = solution((FIRST[0], f"a = {STAGES[0].value}"), (SECOND[0], str(STAGES[0].value)))
    assert [case.call for case in cases_of([(1, checked)])] == [1]
    assert cases_of([(0, solution((FIRST[0], "a = 1")))]) == []


def test_a_false_result_keeps_its_form_and_leads_to_the_implied_answer():
    [case] = cases_of([(0, PARENT)])
    for name, false, implied in case.false_values():
        shown = case.shown(false)
        assert shown.stdout == f"a = {false}\n" and name in DISTANCES
        assert shown.fault.real.stdout == f"a = {case.value}\n" and shown.fault.injected
        assert implied == implied_answer(PROBLEM, "a", false) != PROBLEM.answer


@pytest.mark.parametrize(
    ("program", "checks"), [(FIRST[0], True), (SECOND[0], True), (FIRST[1], False)]
)
def test_a_second_program_for_the_value_is_a_check(program, checks):
    [case] = cases_of([(0, PARENT)])
    assert checks_again(solution((FIRST[0], "a = 7"), (program, "?")), case) == checks


def test_figures_are_differences_from_the_true_value():
    [case] = cases_of([(0, PARENT)])
    answers = {name: implied for name, _, implied in case.false_values()}
    check = solution((FIRST[0], "?"), (SECOND[0], "?"), parent=Parent(0, 1, "one"))
    adopted = solution((FIRST[0], "?"), answer=answers["one"], parent=Parent(0, 1, "one"))
    made = figures(
        [case], {(0, CONTROL): [PARENT, check], (0, "one"): [check, check, adopted, adopted]}
    )
    assert made["one"]["noticed"]["mean"] == 0.0  # 2 of 4, and 1 of 2
    assert made["one"]["checks_of_true"]["mean"] == 0.5
    assert made["one"]["contagion"]["mean"] == 0.5
    assert made["one"]["right"]["mean"] == 0.5
    assert made["sign"]["noticed"]["count"] == 0


def test_a_stopped_measurement_continues_with_the_models_that_are_left(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("cold", "grpo", "faults")]
    for folder in folders:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(folder.name.encode())
    measured, stops = [], ["grpo"]

    def measure(model, problems, k, m, sandbox):
        name = model.rpartition("/")[2]
        if name in stops:
            raise KeyboardInterrupt
        measured.append(name)
        return {"cases": len(measured), "figures": {}}

    monkeypatch.setattr(study_values, "measure", measure)
    monkeypatch.setattr(study_values, "find_sandbox", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(study_values, "_task", lambda count: (None, [PROBLEM] * count))
    out = tmp_path / "runs" / "values.json"
    arguments = [*map(str, folders), "--out", str(out), "-n", "2"]
    with pytest.raises(KeyboardInterrupt):
        study_values.main(arguments)
    assert list(json.loads(out.read_text())) == [str(folders[0])] and measured == ["cold"]
    stops.clear()
    assert study_values.main(arguments) == 0 == study_values.main(arguments)
    assert measured == ["cold", "grpo", "faults"]
    found = json.loads(out.read_text())
    assert [found[str(folder)]["cases"] for folder in folders] == [1, 2, 3]
    # A model that was trained anew is measured anew, and so are all models with other numbers.
    (folders[1] / "model.safetensors").write_bytes(b"other")
    assert study_values.main(arguments) == 0 and measured[3:] == ["grpo"]
    assert study_values.main([*arguments, "--m", "2"]) == 0
    assert measured[4:] == ["cold", "grpo", "faults"]
