from __future__ import annotations

import ast
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.base.presets import read_preset
from agents.base.settings import find_task
from agents.models.tiny import make_tokenizer
from agents.traces.scripted import (
    authors,
    has_messages,
    make_traces,
    program_steps,
    read_messages,
    text_steps,
)
from retool_env.problems import Problem, arithmetic
from retool_env.rules import Rules
from retool_env.transcript import check_transcript, write_transcripts

RULES = Rules(max_tokens=200, max_calls=3, prompt_template="{query}\n", errors="last_line")
TOKENIZER = make_tokenizer()


def traces(mix, sandbox, count=12, rules=RULES, problems=None):
    source = arithmetic(difficulty=(1, 2, 4))
    problems = problems or [source[i] for i in range(count)]
    return make_traces(problems, mix, rules, TOKENIZER, sandbox, seed=0)


@pytest.mark.parametrize(
    ("style", "outcomes"),
    [
        ("tool", [True]),
        ("mended", [False, True]),
        ("stepwise", [True]),
        ("mended_stepwise", [False, True]),
        ("worked", []),
        ("direct", []),
    ],
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
        if style.startswith("mended"):
            assert "Error" in trace.calls[0].execution.error


def test_what_the_tiny_model_is_taught_of_errors(sandbox):
    """With the preset's rules and budget, without which no mended trace would be left."""
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
    with pytest.raises(ValueError, match=r"no style of .* is left"):
        traces({"tool": 1}, None, rules=Rules(max_tokens=9, interpreter=False))
    with pytest.raises(ValueError, match="lacks an expression"):
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


@given(expressions)
def test_a_program_of_an_expression_has_its_operations_and_prints_its_value(expression):
    program, printed = program_steps(expression), []
    exec(program, {"print": printed.append})
    assert printed == [eval(expression)]
    assert len(program.splitlines()) == len(text_steps(expression)[0]) + 1


def test_errors_of_programs_are_of_several_kinds(sandbox):
    made = traces({"mended_stepwise": 1.0}, sandbox, count=24)
    last_lines = {trace.calls[0].execution.error.splitlines()[-1] for trace in made}
    errors = {line.partition(":")[0] for line in last_lines}
    assert errors == {"SyntaxError", "NameError"}


def test_other_expressions_are_refused():
    for expression in ("1 / 2", "x + 1", "2 ** 3", "f(1)", "1.5 + 1"):
        for steps in (text_steps, program_steps):
            with pytest.raises(ValueError, match="integer expression"):
                steps(expression)
    with pytest.raises(ValueError, match="more operations than letters"):
        program_steps(" + ".join("1" * 28))


CALL = "So:\n<code>\n```python\nprint(42)\n```\n</code>"
RESULT = "\n<interpreter>\n42\n</interpreter>\n\n"
ANSWER = "It is 42.\n<answer>\n\\boxed{42}\n</answer>"


def messages(response, prompt="Compute 6 * 7."):
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": response},
        ]
    }


def test_messages_become_spans_as_an_episode_has_them(sandbox, tmp_path):
    made = traces({"mended": 1, "tool": 1, "worked": 1}, sandbox)
    path = tmp_path / "data.jsonl"
    rows = [messages(t.response_text, t.spans[0].text) for t in made]
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    assert has_messages(path)
    read = read_messages(path, TOKENIZER)
    assert len(read) == len(made) == 12
    for ours, theirs in zip(read, made, strict=True):
        check_transcript(ours)
        assert [(s.author, s.text, s.token_ids) for s in ours.spans] == [
            (s.author, s.text, s.token_ids) for s in theirs.spans
        ]
        assert ours.loss_mask == theirs.loss_mask and ours.correct


def test_results_as_others_write_them_are_the_environments(tmp_path):
    """Line breaks and what stands around the tags differ; what follows an answer is cut."""
    path = tmp_path / "data.jsonl"
    written = CALL + "\n\n<interpreter>42</interpreter>\n" + CALL + RESULT + ANSWER
    path.write_text(json.dumps(messages(written + "\n \n")))
    [trace] = read_messages(path, TOKENIZER)
    model, env, again, *_ = trace.response
    assert (model.text, again.text) == (CALL, CALL)
    assert env.text == "\n\n<interpreter>42</interpreter>\n"
    assert trace.response_text == written
    learned = [i for i, kept in zip(trace.completion_ids, trace.loss_mask, strict=True) if kept]
    assert TOKENIZER.decode(learned) == CALL + CALL + ANSWER


def test_a_chat_template_makes_the_prompt(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    )
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(messages(CALL + RESULT + ANSWER)))
    [trace] = read_messages(path, tokenizer)
    assert trace.spans[0].text == "[user]Compute 6 * 7.[assistant]"


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"messages": "hi"}, "one message of the user and one of the assistant"),
        ({"problem": "p"}, "one message of the user"),
        ({"messages": messages("x")["messages"] * 2}, "one message of the user"),
        ({"messages": messages("x")["messages"][::-1]}, "one message of the user"),
        (messages(ANSWER, prompt=" "), "one message of the user"),
        (messages("It is 42."), "must end with its answer"),
        (messages(ANSWER + " Or not."), "must end with its answer"),
        (messages("<answer> </answer>"), "must end with its answer"),
        (messages(CALL + RESULT), "must end with its answer"),
        (messages(CALL + ANSWER), "must have a result"),
        (messages(CALL + RESULT + RESULT + ANSWER), "would be trained on"),
    ],
)
def test_messages_that_are_no_trace_are_named_by_their_line(tmp_path, row, wrong):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(messages(ANSWER)) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"data\.jsonl, line 2: .*{wrong}"):
        read_messages(path, TOKENIZER)


def test_transcripts_are_no_messages(sandbox, tmp_path):
    path = tmp_path / "transcripts.jsonl"
    write_transcripts(path, traces({"worked": 1}, sandbox, count=1))
    assert not has_messages(path)
    path.write_text("")
    assert not has_messages(path)


def test_only_what_stands_behind_a_code_block_is_the_environments():
    assert authors(CALL + RESULT + "\n" + ANSWER) == [
        ("model", CALL),
        ("env", RESULT),
        ("model", "\n" + ANSWER),
    ]
    for response in (ANSWER + RESULT, "</code>" + RESULT, "Hm" + RESULT + ANSWER):
        assert authors(response) == [("model", response)]


pieces = st.sampled_from(
    ["<code>", "</code>", "<interpreter>", "</interpreter>", "<answer>", "</answer>", "\n", "x"]
)


@given(st.lists(pieces).map("".join))
def test_authors_take_turns_and_leave_nothing_out(response):
    parts = authors(response)
    assert "".join(text for _, text in parts) == response
    assert [author for author, _ in parts] == ["model", "env"] * (len(parts) // 2) + ["model"]
    for author, text in parts:
        if author == "env":
            assert text.strip().startswith("<interpreter>") and text.count("</interpreter>") == 1
