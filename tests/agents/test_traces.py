from __future__ import annotations

import ast
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.settings import find_task, read_preset
from agents.tiny import make_tokenizer
from agents.traces import make_traces, text_steps
from retool_env.episode import Rules
from retool_env.problems import Problem, arithmetic
from retool_env.transcript import check_transcript

RULES = Rules(max_tokens=200, max_calls=3, prompt_template="{query}\n", errors="last_line")
TOKENIZER = make_tokenizer()


def traces(mix, sandbox, count=12, rules=RULES, problems=None):
    source = arithmetic(difficulty=(1, 2, 4))
    problems = problems or [source[i] for i in range(count)]
    return make_traces(problems, mix, rules, TOKENIZER, sandbox, seed=0)


@pytest.mark.parametrize(
    ("style", "outcomes"),
    [("tool", [True]), ("mended", [False, True]), ("worked", []), ("direct", [])],
)
def test_code_was_really_run_and_answers_really_checked(sandbox, style, outcomes):
    made = traces({style: 1.0}, sandbox)
    assert len(made) == 12
    for trace in made:
        check_transcript(trace)
        assert trace.correct and trace.reward == 1.0
        assert [call.ok for call in trace.calls] == outcomes
        if outcomes:  # what it answers is what the sandbox printed
            assert trace.calls[-1].execution.stdout.strip() in trace.answer
        if style == "mended":
            assert "Error" in trace.calls[0].execution.error


def test_what_the_tiny_model_is_taught_of_errors(sandbox):
    """One line each, under the preset's own rules; and within its budget, or no mended trace would be left."""
    rules, source = find_task(read_preset("tiny")["env"])
    problems = [source[i] for i in range(24)]
    made = make_traces(problems, {"mended": 1.0}, rules, TOKENIZER, sandbox, seed=0)
    assert len(made) == 24
    seen = set()
    for trace in made:
        shown = [span.text for span in trace.spans if span.author == "env"]
        error = shown[0].removeprefix("\n<interpreter>\n").removesuffix("\n</interpreter>\n\n")
        assert "\n" not in error
        seen.add(error)
    assert seen == {
        "SyntaxError: '(' was never closed (line 1)",
        "SyntaxError: invalid syntax (line 1)",
        "NameError: name 'prnt' is not defined",
    }


def test_an_error_is_mended_as_well_where_its_traceback_is_shown(sandbox):
    rules = dataclasses.replace(RULES, max_tokens=400, errors="traceback")
    made = traces({"mended": 1.0}, sandbox, rules=rules)
    assert len(made) == 12
    for trace in made:
        assert [call.ok for call in trace.calls] == [False, True]
        assert 'File "<program>", line 1' in trace.spans[2].text


def test_the_mix_is_kept_and_repeats_with_its_seed(sandbox):
    made = traces({"tool": 1, "worked": 1}, sandbox, count=60)
    share = sum(bool(trace.calls) for trace in made) / len(made)
    assert 0.3 < share < 0.7
    assert made == traces({"tool": 1, "worked": 1}, sandbox, count=60)


def test_a_trace_with_a_wrong_answer_is_dropped(sandbox):
    wrong = Problem(id="w", question="Compute 1 + 1.", answer="3", metadata={"expression": "1 + 1"})
    assert traces({"tool": 1}, sandbox, problems=[wrong]) == []


def test_text_only_traces_need_no_interpreter():
    rules = Rules(max_tokens=200, interpreter=False, prompt_template="{query}\n")
    made = traces({"tool": 5, "worked": 1, "direct": 1}, None, rules=rules)
    assert len(made) == 12 and not any("<code>" in trace.text for trace in made)


def test_bad_input_is_refused(sandbox):
    with pytest.raises(ValueError, match="unknown style"):
        traces({"magic": 1}, sandbox)
    with pytest.raises(ValueError, match="no style is left"):
        traces({"tool": 1}, None, rules=Rules(max_tokens=9, interpreter=False))
    with pytest.raises(ValueError, match="no expression"):
        traces({"tool": 1}, sandbox, problems=[Problem(id="p", question="q", answer="1")])


operands = st.integers(0, 99).map(str)
expressions = st.recursive(
    operands,
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda t: f"({t[0]} {t[1]} {t[2]})"
    ),
    max_leaves=6,
)


@given(expressions)
def test_steps_of_an_expression_are_each_right_and_end_in_its_value(expression):
    lines, result = text_steps(expression)
    assert result == eval(expression)
    for line in lines:
        left, _, right = line.partition(" = ")
        assert eval(left.replace("- -", "+ ")) == int(right)
    assert len(lines) == sum(
        isinstance(node, ast.BinOp) for node in ast.walk(ast.parse(expression))
    )


def test_other_expressions_are_refused():
    for expression in ("1 / 2", "x + 1", "2 ** 3", "f(1)", "1.5 + 1"):
        with pytest.raises(ValueError, match="integer expression"):
            text_steps(expression)
