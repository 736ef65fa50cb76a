"""The reader of files: the same rows from every form, and a location for every fault."""

import gzip
import json
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.problems import rows
from retool_env.problems.rows import read_rows

ONE, TWO = {"problem": "a", "answer": 1}, {"problem": "b\nc", "answer": "x, y"}
JSON_FORMS = {
    "lines": f"{json.dumps(ONE)}\n\n{json.dumps(TWO)}\n",
    "array": json.dumps([ONE, TWO]),
    "array over lines": json.dumps([ONE, TWO], indent=2),
    "nested": json.dumps({"data": [ONE, TWO]}),
    "nested over lines": json.dumps({"version": 1, "data": [ONE, TWO]}, indent=1),
    "the Hub's viewer": json.dumps(
        {"features": [], "rows": [{"row_idx": i, "row": r} for i, r in enumerate([ONE, TWO])]}
    ),
    "objects over lines": json.dumps(ONE, indent=2) + "\n" + json.dumps(TWO, indent=2),
    "CSV": 'problem,answer\na,1\n"b\nc","x, y"\n',
    "CSV of a spreadsheet": 'problem;answer\r\na;1\r\n"b\nc";x, y\r\n',
    "tabs": 'problem\tanswer\na\t1\n"b\nc"\tx, y\n',
}


def read(path):
    return [row for _, row in read_rows(path)]


@pytest.mark.parametrize("form", JSON_FORMS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_form_is_recognised_by_its_content(tmp_path, form, mark):
    content = mark + JSON_FORMS[form].encode()
    for name, packed in (
        ("x", content),
        ("x.gz", gzip.compress(content, mtime=0)),
        ("y", gzip.compress(content, mtime=0)),
    ):
        path = tmp_path / name
        path.write_bytes(packed)
        assert read(path) == [ONE, TWO]


def test_parquet_is_recognised_by_its_content(tmp_path, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table(
        {
            "problem": ["a", "b", "c"],
            "answer": pyarrow.array([0.1, None, 3.0], pyarrow.float32()),
            "count": [1, 2, 3],
        }
    )
    path = tmp_path / "x"
    parquet.write_table(table, path)
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(rows, "BATCH_ROWS", 2)
    for file in (path, packed):
        locations = [location for location, _ in read_rows(file)]
        assert locations == [f"{file}, row {i}" for i in range(3)]
        assert [str(row["answer"]) for row in read(file)] == ["0.1", "None", "3.0"]
        assert [row["count"] for row in read(file)] == [1, 2, 3]


def test_locations_are_lines_or_rows(tmp_path):
    path = tmp_path / "x"
    locations = {
        "lines": ["line 1", "line 3"],
        "array over lines": ["row 0", "row 1"],
        "nested": ["line 1, data[0]", "line 1, data[1]"],
        "CSV": ["line 2", "line 3"],
    }
    for form, expected in locations.items():
        path.write_text(JSON_FORMS[form])
        assert [location for location, _ in read_rows(path)] == [f"{path}, {e}" for e in expected]


def test_numbers_are_exact(tmp_path):
    path = tmp_path / "x"
    long = "9" * 5000
    for text in (f'{{"problem": 0.10, "b": 1e20, "c": {long}}}', f"problem,b,c\n0.10,1e20,{long}"):
        path.write_text(text)
        (row,) = read(path)
        assert row == {"problem": Decimal("0.10"), "b": Decimal("1e20"), "c": Decimal(long)}
    path.write_text("problem,b,c\n007,-5,\n")
    assert read(path) == [{"problem": "007", "b": -5, "c": None}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', "x.jsonl, line 2: not JSON (Expecting value"),
        ("x.jsonl", b'{"a": 1, }', "x.jsonl, line 1: not JSON"),
        ("x.jsonl", b'{"a": 1', "x.jsonl, line 1: not JSON (Expecting ',' delimiter"),
        ("x.jsonl", b"hello", "x.jsonl, line 1: not JSON"),
        ("x.jsonl", b"3\n", "x.jsonl, line 1: expected an object with columns, found 3"),
        ("x.json", b'[{"a": 1},\n{"a" 1}]', "x.json, line 2: not JSON"),
        ("x.json", b'[{"a": 1}, [2]]', "x.json, row 1: expected an object with columns"),
        ("x.json", b'[{"a": 1}', "x.json, line 1: not JSON"),
        ("x.json", b"[" * 200_000, "x.json: nested too deeply"),
        ("x.json", b'[{"a": 1}, {"a": 1, "a": 2}]', "x.json: an object has 'a' twice"),
        ("x.json", b'{"train": [], "test": []}', "the file holds the rows of train and test"),
        ("x.json", b'{"data": [{"a": 1}, 2]}', "data[1]: expected an object"),
        ("x.json", b'[\n{"a": "\xe9"}]', "x.json, line 2: not UTF-8"),
        ("x.csv", b"a,b\n1,2\n3\n", "x.csv, line 3: 1 cells, but the header names 2 columns"),
        ("x.csv", b'a,b\n1,"2\n3,4\n', "x.csv, line 2: not CSV"),
        ("x.csv", b"a,a\n1,2\n", "x.csv, line 1: several columns have the name 'a'"),
        ("x.csv", b"a,b\n\xe9,2\n", "x.csv, line 2: not UTF-8"),
        ("x.txt", b"hello, world", "x.txt: the form is unknown; accepted are JSON lines"),
        ("x.parquet", b"PAR1" + b"\0" * 40 + b"PAR1", "x.parquet: damaged Parquet data"),
        ("x.gz", gzip.compress(b'{"a": 1}' * 9, mtime=0)[:-9], "x.gz: damaged gzip data"),
        (
            "x.gz",
            gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0),
            "x.gz is compressed with gzip twice",
        ),
        ("x.xlsx", b"PK\x03\x04...", "x.xlsx is a ZIP archive, as .zip, .xlsx"),
        ("x.csv", "problem,answer".encode("utf-16"), "x.csv is in UTF-16 (save it as UTF-8)"),
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("x.jsonl", b"<!DOCTYPE html>", "x.jsonl is HTML or XML"),
    ],
)
def test_an_error_names_the_fault_of_a_file(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        read(path)
    assert str(refused.value).startswith(str(path))


def test_a_row_that_looks_like_a_list_of_rows_stays_a_row(tmp_path):
    path = tmp_path / "x"
    row = {"prompt": [{"role": "user", "content": "?"}], "data": [{"problem": "a"}]}
    path.write_text(json.dumps(row))
    assert read(path) == [row]


def test_files_without_rows_have_none(tmp_path):
    for name, content in (
        ("x.jsonl", b""),
        ("x", b" \n\n"),
        ("x.json", b"[]"),
        ("x.csv", b"a,b\n"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert read(path) == []


def test_only_json_lines_may_be_larger_than_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MOST_DOCUMENT", 20)
    path = tmp_path / "x"
    path.write_text(json.dumps([ONE]))
    with pytest.raises(ValueError, match="x is larger than 0 MiB"):
        read(path)
    path.write_text(json.dumps(ONE) + "\n" + json.dumps(TWO))
    assert read(path) == [ONE, TWO]


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0")) | st.integers()
tables = st.lists(
    st.fixed_dictionaries({"problem": cells, "answer": cells}), min_size=1, max_size=5
)


@given(table=tables, indent=st.none() | st.integers(0, 2))
def test_any_table_comes_back_from_json(tmp_path_factory, table, indent):
    path = tmp_path_factory.mktemp("rows") / "x"
    for text in (
        json.dumps(table, indent=indent),
        "\n".join(map(json.dumps, table)),
        json.dumps({"data": table}, indent=indent),
    ):
        path.write_text(text)
        assert read(path) == table


@given(
    content=st.binary(max_size=60), head=st.sampled_from([b"", b"{", b"[", b"problem,x\n", b"PAR1"])
)
def test_any_bytes_give_rows_or_an_error_that_names_the_file(tmp_path_factory, content, head):
    path = tmp_path_factory.mktemp("rows") / "x.csv"
    path.write_bytes(head + content)
    try:
        assert all(isinstance(row, dict) for row in read(path))
    except ValueError as error:
        assert str(error).startswith(str(path))
