"""The user's own file: the columns that are read, their use, and the errors of rows."""

import gzip
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    assert problem.metadata == {"level": 3, "question": "other"}  # without the second answer


def test_blank_lines_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.jsonl"
    row = b'{"question": "?", "answer": "1"}\n'
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\n  \n" + row.replace(b"?", b"!"))
    assert [(p.id, p.question) for p in jsonl(path)] == [
        ("jsonl/mine/0", "?"),
        ("jsonl/mine/1", "!"),
    ]


GOOD = {"question": "?", "answer": "1"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{'question': 1}", "not JSON"),
        ("[1, 2]", "expected an object"),
        ("[" * 200_000, "nested too deeply"),
        ({"text": "?", "answer": "1"}, "no column for the question: expected one of question, "),
        ({"question": "?", "gold": "1"}, "no column for the answer: .*answer_key="),
        ({"question": "?", "answer": " "}, "answer .'answer'. is empty"),
        ({"question": "?", "answer": "so\n####"}, "no result after '####'"),
        ({"question": "?", "answer": None}, "answer .'answer'. is null"),
        ({"question": "?", "answer": float("nan")}, "is not a number .NaN."),
        ({"question": "?", "answer": float("inf")}, "is infinite"),
        ({"question": "?", "answer": True}, "is a truth value, neither text nor a number: True"),
        ({"question": "?", "answer": {"a": 1}}, "is an object, neither text nor a number"),
        ({"question": "?", "answer": []}, "is an empty list"),
        ({"question": "?", "answer": ["1", "2"]}, "is a list of different answers"),
        ({"question": "?", "answer": "None"}, "is 'None', the text of a missing value"),
        ('{"question": "?", "answer": ' + "9" * 5000 + "}", "more than 2,000 digits"),
        ({"question": "?", "answer": "9" * 5000}, "has 5,000 characters"),
        ('{"question": "?", "answer": 1e999999999}', "more than 2,000 digits"),
        ('{"question": "?", "answer": 1e9999999999999999999}', "exponent out of range"),
        ('{"question": "?", "answer": 1, "answer": 2}', "an object has 'answer' twice"),
        ({"question": "\ud800", "answer": 1}, "not Unicode text"),
        ({"question": "?", "solution": "42"}, "no .boxed{}"),
        ({"question": "", "answer": "1"}, "question .*is empty"),
        ({"question": "?", "answer": 1, "id": ["x"]}, "the id .'id'. is neither text nor a number"),
        ({"prompt": [{"role": "user"}], "answer": "1"}, "question .'prompt'. is neither text"),
        ({"question": "!", "answer": 1, "id": "a"}, "the id 'a' is already used at .*line 1"),
        (GOOD | {"answer": "2"}, "the answer is '2', but .*line 1 answers .* with '1'"),
    ],
)
def test_errors_name_file_line_and_reason(write, row, message):
    path = write(GOOD | {"id": "a"}, "", row)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}, line 3: .*{message}"):
        jsonl(path)


def test_files_without_problems(write, tmp_path):
    with pytest.raises(ProblemsUnavailable, match="no file"):
        jsonl(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="holds no usable problem"):
        jsonl(write("", " "))
    with pytest.raises(ValueError, match="no column 'q' for the question"):
        jsonl(write(GOOD), question_key="q")
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"question": "\xe9", "answer": "1"}')
    with pytest.raises(ValueError, match="line 1: not UTF-8"):
        jsonl(path)


def test_a_repeated_question_with_the_same_answer_is_omitted_and_counted(write, caplog):
    rows = [GOOD, {"question": "!", "answer": 2}, GOOD | {"answer": 1.0}, GOOD | {"id": "other"}]
    source = jsonl(path := write(*rows))
    assert [p.id for p in source] == ["jsonl/mine/0", "jsonl/mine/1"]
    assert source.omitted == {"a repeated question": 2}
    repeated = "2 with a repeated question (line 3 as line 1; line 4 as line 1)"
    assert caplog.messages == [f"{path}: 2 problems; left out are {repeated}"]


def test_a_column_that_the_user_names_holds_the_answer_with_or_without_a_box(write):
    rows = [
        {"question": "a", "solution": "42"},
        {"question": "b", "solution": r"not \boxed{6} but \boxed{7}"},
        {"question": "c", "solution": 5},
    ]
    assert [p.answer for p in jsonl(write(*rows), answer_key="solution")] == ["42", "7", "5"]
    with pytest.raises(ValueError, match=r"line 1: the solution .* has no .boxed\{\}"):
        jsonl(write(*rows))


def test_an_empty_column_leaves_the_answer_to_the_next(write):
    rows = [
        {"question": "a", "answer": None, "solution": r"\boxed{1}"},
        {"question": None, "problem": "b", "answer": "", "output": 2},
        {"Question": "c", "Answer": 3, "ID": "third"},
    ]
    assert [(p.id, p.question, p.answer) for p in jsonl(write(*rows))] == [
        ("jsonl/mine/0", "a", "1"),
        ("jsonl/mine/1", "b", "2"),
        ("third", "c", "3"),
    ]


def test_the_metadata_do_not_reveal_the_answer(write):
    told = {
        "Solution": r"\boxed{42}",
        "ground_truth": "42",
        "expected_output": "42",
        "rationale": "six sevens",
        "generated_solution": "42",
        "notes": r"$\boxed{42}$",
        "working": "42",
        "hint": "42",
        "essay": "so it is 42. " * 20,
        "reward_model": {"ground_truth": "42"},
    }
    kept = {"level": 3, "subject": "Algebra", "url": "https://example.com", "even": True}
    (problem,) = jsonl(write({"problem": "6 * 7?", "answer": 42, **told, **kept}))
    assert problem.metadata == kept


def test_the_question_is_the_users_chat_message(write):
    system, user = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " 6 * 7?"},
    )
    rows = [{"prompt": [system, user], "answer": 42}]
    assert [p.question for p in jsonl(write(*rows))] == ["6 * 7?"]
    with pytest.raises(ValueError, match="is neither text nor a list of chat messages"):
        jsonl(write({"prompt": [user, {"role": "assistant", "content": "42"}], "answer": 42}))


ROWS = [
    {"id": "a", "question": "1, 2\nor 3?", "answer": 34.0, "level": 3},
    {"id": "b", "question": '"x"; y', "answer": "\\frac{1}{2}", "level": 4},
]


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.json", "m.jsonl", "m.parquet", "m.csv.gz"])
def test_every_form_gives_the_same_problems(tmp_path, name):
    pandas = pytest.importorskip("pandas")
    path, table = tmp_path / name, pandas.DataFrame(ROWS)
    if ".csv" in name or ".tsv" in name:
        table.to_csv(path, index=False, sep="\t" if "tsv" in name else ",")
    elif name.endswith(".parquet"):
        table.assign(answer=table["answer"].map(str)).to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=name.endswith("l"))
    first, second = jsonl(path)
    assert (first.id, first.question, first.metadata) == ("a", "1, 2\nor 3?", {"level": 3})
    assert first.answer == ("34.0" if name.endswith(".parquet") else "34")
    assert (second.question, second.answer) == ('"x"; y', r"\frac{1}{2}")


def test_ids_have_the_stem_of_the_file_in_every_form(tmp_path):
    path = tmp_path / "mine.csv.gz"
    path.write_bytes(gzip.compress(b"problem,answer\r\n?,1\r\n"))
    assert [p.id for p in jsonl(path)] == ["jsonl/mine/0"]


text = st.text(st.characters(codec="utf-8"), min_size=1).filter(
    lambda t: t.strip() and "####" not in t
)


answers = st.integers().map(str) | st.sampled_from(["Paris", r"\frac{1}{2}", "x^2 + 1", "1,000"])
rows_of_text = st.lists(
    st.tuples(text, answers), min_size=1, max_size=5, unique_by=lambda row: row[0].strip()
)


@given(rows=rows_of_text)
def test_any_text_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "mine.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    assert [(p.question, p.answer) for p in jsonl(path)] == [
        (q.strip(), a.strip()) for q, a in rows
    ]
