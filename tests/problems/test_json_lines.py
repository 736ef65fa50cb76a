"""A user's own file: which columns are read, and which line is to blame."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.grading import is_equivalent
from retool_env.problems import ProblemsUnavailable, jsonl


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
        return path

    return write


@pytest.mark.parametrize("question", ["question", "problem", "input", "prompt"])
@pytest.mark.parametrize(
    ("answer", "value", "expected"),
    [
        ("answer", " 42 ", "42"),
        ("answer", 42, "42"),
        ("output", 0.5, "0.5"),
        ("answer", "6 * 7\n#### 42", "42"),
        ("solution", r"\boxed{1}, no: $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
    ],
)
def test_columns(write, question, answer, value, expected):
    (problem,) = jsonl(write({question: " How many? ", answer: value}))
    assert problem.question == "How many?" and problem.answer == expected
    assert problem.id == "jsonl/mine/0"


def test_named_columns_ids_and_metadata(write):
    row = {
        "q": "?",
        "a": "1",
        "question": "other",
        "answer": "2",
        "id": 7,
        "level": 3,
        "tags": ["x"],
    }
    (problem,) = jsonl(write(row), question_key="q", answer_key="a")
    assert (problem.id, problem.question, problem.answer) == ("7", "?", "1")
    assert problem.metadata == {"level": 3, "question": "other"}  # and no second answer


def test_blank_lines_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.jsonl"
    row = b'{"question": "?", "answer": "1"}\n'
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\n  \n" + row)
    assert [p.id for p in jsonl(path)] == ["jsonl/mine/0", "jsonl/mine/1"]


GOOD = {"question": "?", "answer": "1"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{'question': 1}", "not JSON"),
        ("[1, 2]", "expected an object"),
        ("[" * 200_000, "nested too deeply"),
        ({"text": "?", "answer": "1"}, "no column for the question: expected one of question, "),
        ({"question": "?", "gold": "1"}, "no column for the answer: .*answer_key="),
        ({"question": "?", "answer": " "}, "answer.*empty"),
        ({"question": "?", "answer": "so\n####"}, "no result after '####'"),
        ({"question": "?", "answer": None}, "neither text nor a number: None"),
        ({"question": "?", "answer": ["1"]}, "neither text nor a number"),
        ({"question": "?", "solution": "42"}, "no .boxed{}"),
        ({"question": "", "answer": "1"}, "question is empty"),
        ({"prompt": [{"role": "user"}], "answer": "1"}, "question .'prompt'. is not text"),
        (GOOD | {"id": "a"}, "the id 'a' is already that of .*line 1"),
    ],
)
def test_errors_name_file_line_and_reason(write, row, message):
    path = write(GOOD | {"id": "a"}, "", row)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}, line 3: .*{message}"):
        jsonl(path)


def test_files_without_problems(write, tmp_path):
    with pytest.raises(ProblemsUnavailable, match="no file"):
        jsonl(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="holds no problem"):
        jsonl(write("", " "))
    with pytest.raises(ValueError, match="no column 'q' for the question"):
        jsonl(write(GOOD), question_key="q")
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"question": "\xe9", "answer": "1"}')
    with pytest.raises(ValueError, match="line 1: not UTF-8"):
        jsonl(path)


text = st.text(st.characters(codec="utf-8"), min_size=1).filter(
    lambda t: t.strip() and "####" not in t
)


possible = text.filter(lambda t: is_equivalent(f"\\boxed{{{t.strip()}}}", t.strip()))


@given(rows=st.lists(st.tuples(text, possible), min_size=1, max_size=5))
def test_any_text_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "mine.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    assert [(p.question, p.answer) for p in jsonl(path)] == [
        (q.strip(), a.strip()) for q, a in rows
    ]
