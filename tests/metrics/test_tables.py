"""avg@k of scripted policies, and the tables of the figures."""

from __future__ import annotations

import dataclasses

import pytest

from retool_env.evaluation.run import evaluate
from retool_env.metrics.figures import Figure
from retool_env.metrics.intervals import Estimate, Interval
from retool_env.metrics.summary import wilson
from retool_env.metrics.tables import COLUMNS, TOOL_USE, highlights, markdown, table, tool_table
from retool_env.problems import Problem
from retool_env.rollout import ScriptedPolicy
from retool_env.rules import Rules
from retool_env.transcript import StopReason, check_transcript

PROBLEMS = [Problem(id=f"p{i}", question=f"{i} + 1?", answer=f"{i + 1}") for i in range(3)]


class CharacterTokenizer:
    """One token for each character; token 0 ends the sequence."""

    eos_token_id = 0
    chat_template = None

    def encode(self, text, **_):
        return [ord(c) for c in text]

    def decode(self, token_ids, **_):
        return "".join(chr(i) for i in token_ids)


def policy(script) -> ScriptedPolicy:
    return ScriptedPolicy(script, CharacterTokenizer())


def adder(text: str) -> str:
    """Computes p0 and p1 with code, and gives a wrong answer to p2 without code."""
    question = text.partition("Q ")[2]
    number = int(question[0])
    if number == 2:
        return "<answer>7</answer>"
    if "<interpreter>" not in question:
        return f"<code>print({number} + 1)</code>"
    return f"<answer>{question.partition('<interpreter>')[2].split()[0]}</answer>"


RULES = Rules(max_tokens=1000, prompt_template="Q {query}\n")


def test_an_evaluation_from_policy_to_figures(sandbox):
    seen = []
    summary, transcripts = evaluate(
        policy(adder),
        RULES,
        PROBLEMS,
        2,
        sandbox,
        on_group=lambda i, group: seen.append((i, group)),
    )
    assert [t.problem.id for t in transcripts] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert [t.correct for t in transcripts] == [True] * 4 + [False] * 2
    for transcript in transcripts:
        check_transcript(transcript)
    assert summary.accuracy == wilson(2 / 3, 3) and summary.episodes == 6
    assert summary.code_ratio == pytest.approx(4 / 6) and summary.call_pass_rate == 1.0
    assert sorted(i for i, _ in seen) == [0, 1, 2]
    assert [t for _, group in sorted(seen, key=lambda s: s[0]) for t in group] == transcripts


def test_without_an_interpreter_there_is_no_sandbox():
    rules = dataclasses.replace(RULES, interpreter=False)
    summary, transcripts = evaluate(
        policy(lambda text: "<code>1</code> <answer>1</answer>"), rules, PROBLEMS, 1, None
    )
    assert summary.accuracy.mean == pytest.approx(1 / 3) and summary.calls == 0
    assert {t.stop_reason for t in transcripts} == {StopReason.ANSWERED}


def test_wrong_arguments_are_refused(sandbox):
    for problems, k in (([], 1), (PROBLEMS, 0)):
        with pytest.raises(ValueError, match="at least one problem, and k of at least 1"):
            evaluate(policy(adder), RULES, problems, k, sandbox)
    with pytest.raises(ValueError, match="need a sandbox"):
        evaluate(policy(adder), RULES, PROBLEMS, 1, None)
    with pytest.raises(ValueError, match="max_tokens"):
        evaluate(policy(adder), dataclasses.replace(RULES, max_tokens=None), PROBLEMS, 1, sandbox)


def test_a_table_is_markdown_with_a_row_each(sandbox):
    some, _ = evaluate(policy(adder), RULES, PROBLEMS, 1, sandbox)
    none = dataclasses.replace(
        some,
        accuracy=None,
        code_ratio=None,
        calls_per_episode=None,
        call_pass_rate=None,
        response_tokens=None,
        episodes=0,
        failed=3,
    )
    lines = table({"adder": some, "a policy with a long name": none}).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    header, rule, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    assert header == ["", *COLUMNS] and set("".join(rule)) == {"-"}
    length = f"{some.response_tokens:.0f}"
    assert rows[0] == ["adder", "66.7 % [20.8, 93.9]", "66.7%", "0.67", "100.0%", length, "3"]
    assert rows[1] == ["a policy with a long name", *"–" * 5, "0 (+3 failed)"]


def test_a_table_of_tool_use_marks_figures_on_few_cases(sandbox):
    some, _ = evaluate(policy(adder), RULES, PROBLEMS, 1, sandbox)
    estimate = Estimate(50, Interval(1.5, 1.25, 2.0))
    old = dataclasses.replace(some, calls_ok=None, recovery=None, call_forms=None)
    forms = {**some.call_forms, "plain": 1, "mended:dedent": 1}
    turns = dataclasses.replace(some.recovery, turns=estimate)
    columns = {"adder": some, "mends": dataclasses.replace(some, recovery=turns, call_forms=forms)}
    columns["old"] = old
    lines = tool_table(columns).splitlines()
    assert lines[-2:] == ["", "† fewer than 50 cases"]
    del lines[-2:]
    assert len(lines) == 2 + len(TOOL_USE) and len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert cells[0] == ["", *columns]
    rows = {name: shown for name, *shown in cells[2:]}
    assert rows["calls that ran, in all"] == ["2 of 2", "2 of 2", "– of 2"]
    assert rows["lines of code a response"] == ["0.7"] * 3
    assert rows["first call at, of a response"] == ["0.0%"] * 3
    shown = "100.0 % [34.2, 100.0], n = 2 †"
    assert rows["last call ran, right responses"] == [shown] * 3
    assert rows["failed calls whose next one ran"] == ["–"] * 3
    assert rows["programs: plain"] == ["100.0%", "50.0%", "–"]
    assert rows["programs: mended:dedent"] == ["0.0%", "50.0%", "–"]
    assert rows["programs: unread"] == ["0.0%", "0.0%", "–"]
    assert rows["turns to mend one"] == ["–", "1.50 [1.25, 2.00], n = 50", "–"]


def figure(key, mean, low=0.25, high=0.75, count=60):
    return Figure(key, count, 9, mean, low, high, f"The definition of {key}.")


def test_highlights_are_the_largest_k_the_funnel_and_verdicts_to_look_at():
    accuracy = [figure(f"accuracy/{name}{k}", k / 8) for k in (1, 2, 4) for name in NAMES]
    stages = ("attempted", "well_formed", "ran", "right")
    use = [figure(f"use/{stage}", 0.5, count=40) for stage in stages]
    doubts = [
        figure("warning/right_not_in_form", 0.5),
        figure("warning/cut_before_answer", 0.0),
        figure("use/missed/fence", 0.1, None, None),
        figure("use/missed/half_tag", None),
    ]
    shown = "50.0 % [25.0, 75.0]"
    assert highlights([*accuracy, *use, *doubts]) == [
        f"pass@4 {shown}, pass^4 {shown}, maj@4 {shown}",
        f"use of the interpreter: attempted {shown} † → well formed {shown} † → ran {shown} † → "
        f"right {shown} †",
        f"look at {shown}: The definition of warning/right_not_in_form.",
        "look at 10.0 %: The definition of use/missed/fence.",
    ]
    assert highlights([figure(f"accuracy/{name}1", 0.5) for name in NAMES]) == []
    assert highlights([]) == []


NAMES = ("pass@", "pass^", "maj@")


def test_a_text_with_bars_and_line_breaks_stays_in_its_cell():
    lines = markdown([["a", "b"], ["x|y", "1\n2"]]).splitlines()
    assert lines[2] == r"| x\|y | 1 2 |" and len(lines) == 3
