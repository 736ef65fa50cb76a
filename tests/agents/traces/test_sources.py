"""Sources: the lines of a cold start's input, and refusals by the line's number."""

from __future__ import annotations

import json

import pytest

from agents.base.settings import SettingsError
from agents.traces.sources import read_sources
from retool_env.rules import Rules

RULES = Rules(max_tokens=100, prompt_template="Solve: {query}")
RESPONSE = "<code>\nprint(1)\n</code>\n<interpreter>\n2\n</interpreter>\n\n<answer>2</answer>"


def read(path, *rows, require_answer=True):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_sources(path, RULES, require_answer)


def test_a_solution_is_the_rewriters_and_the_question_the_environments(tmp_path):
    row = {"question": "6 * 7?", "answer": "6 * 7 = <<6*7=42>>42.\n#### 42"}
    [source] = read(tmp_path / "s.jsonl", row)
    assert source.prompt == "Solve: 6 * 7?"
    assert source.known == {"id": "s/0", "question": "6 * 7?", "answer": "42"}
    assert "Problem: 6 * 7?\n" in source.problem.question
    assert "Solution: 6 * 7 = 42.\n" in source.problem.question and not source.parts


def test_a_rewritten_trace_keeps_its_message_and_who_wrote_what(tmp_path):
    said = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": RESPONSE}]
    [source] = read(tmp_path / "s.jsonl", {"id": "a", "messages": said}, require_answer=False)
    assert (source.prompt, source.problem.question, source.known) == ("Q", "Q", {"id": "a"})
    assert [author for author, _ in source.parts] == ["model", "env", "model"]
    assert "".join(text for _, text in source.parts) == RESPONSE
    with pytest.raises(SettingsError, match="require_answer=false"):
        read(tmp_path / "s.jsonl", {"id": "a", "messages": said})


def test_a_file_without_lines_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"s\.jsonl is empty"):
        read(tmp_path / "s.jsonl")


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object"),
        ('{"question": "q"}', "no column for the answer"),
        ('{"question": "q", "answer": 1}', 'solution is missing: add a column "solution"'),
        ('{"question": "q", "answer": 1, "solution": " "}', "text-only solution is missing"),
        ('{"question": "q", "solution": "no box"}', "no .*boxed"),
        ('{"question": 7, "answer": 1, "solution": "s"}', "the question .* is neither text nor"),
        ('{"messages": [], "answer": 1}', '"messages" must be one message of the user'),
        ('{"messages": [{"role": "user", "content": "q"}], "answer": 1}', '"messages" must be'),
        ('{"id": "s/0", "question": "q", "answer": 1, "solution": "s"}', "has the same id 's/0'"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(tmp_path, line, wrong):
    path = tmp_path / "s.jsonl"
    first = {"question": "Compute 6 * 7.", "answer": 42, "solution": "Six sevens are 42."}
    path.write_text(f"{json.dumps(first)}\n\n{line}\n")
    with pytest.raises(SettingsError, match=rf"data: .*s\.jsonl, line 3: .*{wrong}"):
        read_sources(path, RULES, True)
