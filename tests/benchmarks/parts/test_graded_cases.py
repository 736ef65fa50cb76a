"""Published cases: they are read, checked, counted and set aside."""

import json
from pathlib import Path

import pytest

from benchmarks.grading import main
from benchmarks.parts import graded_cases


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def case(answer, gold, expected, kind="single"):
    return {"answer": answer, "gold": gold, "expected": expected, "kind": kind, "where": "here"}


def test_cases_are_counted_by_project_and_kind_and_wrong_ones_are_listed(tmp_path, capsys):
    folder = tmp_path / "cases"
    folder.mkdir()
    half, other = case("0.5", r"\frac{1}{2}", True), case("3", "4", False)
    prose = case("The answer is 4", "4", True, "prose")
    write(folder / "one.jsonl", half, other, case("3", "4", True), prose)
    write(folder / "two.jsonl", half, case(r"So \boxed{7}.", "7", True, "boxed"))
    write(folder / "two.jsonl.txt", {"no": "case"})  # another suffix: not read
    wrong, out = tmp_path / "wrong.jsonl", tmp_path / "out" / "grading.json"
    arguments = [str(folder), "--parts", "cases", "--wrong", str(wrong), "--out", str(out)]
    assert main(arguments) == 0
    report = json.loads(out.read_text())
    counts = report["parts"]["cases"]["counts"]
    assert counts == {
        "single": {
            "one": {"cases": 3, "ours": 2, "math-verify": 2},
            "two": {"cases": 1, "ours": 1, "math-verify": 1},
            "all": {"cases": 4, "ours": 3, "math-verify": 3},
            "each once": {"cases": 3, "ours": 2, "math-verify": 2},
        },
        "boxed": {
            "two": {"cases": 1, "ours": 1, "math-verify": 1},
            "all": {"cases": 1, "ours": 1, "math-verify": 1},
            "each once": {"cases": 1, "ours": 1, "math-verify": 1},
        },
        "prose": {
            "one": {"cases": 1, "ours": 0, "math-verify": 1},
            "all": {"cases": 1, "ours": 0, "math-verify": 1},
            "each once": {"cases": 1, "ours": 0, "math-verify": 1},
        },
    }
    assert list(counts["single"]) == ["one", "two", "all", "each once"]
    assert "math-verify" in report["versions"]
    mistakes = [json.loads(line) for line in wrong.read_text().splitlines()]
    assert [(m["answer"], m["gold"], m["expected"], m["ours"]) for m in mistakes] == [
        ("3", "4", True, False),
        ("The answer is 4", "4", True, False),
    ]
    assert [m["math-verify"] for m in mistakes] == [False, True]
    assert "2 wrong" in capsys.readouterr().out


def test_cases_that_are_set_aside_are_left_out_and_shown_with_their_reason(tmp_path, capsys):
    folder = tmp_path / "cases"
    folder.mkdir()
    write(folder / "one.jsonl", case("3", "4", True), case("4", "4", True))
    aside = write(tmp_path / "aside", {"answer": "3", "gold": "4", "reason": "3 is not 4"})
    arguments = [str(folder), "--parts", "cases", "--set-aside", str(aside)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "set aside  one: '3' for '4': 3 is not 4" in printed
    assert "0 wrong" in printed
    assert "all                     1           1                  1" in printed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": 3}, "one.jsonl, line 2: 'answer' must be a text, not 3"),
        ({"gold": None}, "one.jsonl, line 2: 'gold' must be a text, not None"),
        ({"expected": 1}, "one.jsonl, line 2: 'expected' must be true or false, not 1"),
        ({"kind": "words"}, "one.jsonl, line 2: 'kind' must be one of single, boxed, prose, not"),
    ],
)
def test_a_malformed_case_is_named(tmp_path, capsys, change, says):
    write(tmp_path / "one.jsonl", case("3", "4", True), case("3", "4", True) | change)
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--parts", "cases"])
    assert says in capsys.readouterr().err


def test_a_missing_key_and_a_broken_line_are_named(tmp_path):
    file = write(tmp_path / "one.jsonl", {"answer": "3", "expected": True, "kind": "single"})
    with pytest.raises(ValueError, match=r"one\.jsonl, line 1: the key 'gold' is missing"):
        graded_cases.read_cases(tmp_path)
    file.write_text("\n{")
    with pytest.raises(ValueError, match=r"one\.jsonl, line 2: not JSON"):
        graded_cases.read_cases(tmp_path)
    aside = write(tmp_path / "aside", {"answer": "3", "gold": "4"})
    with pytest.raises(ValueError, match=r"aside, line 1: the key 'reason' is missing"):
        graded_cases.read_set_aside(aside)


def test_cases_that_are_set_aside_must_exist(tmp_path, capsys):
    write(tmp_path / "one.jsonl", case("3", "4", True))
    aside = write(tmp_path / "aside", {"answer": "3", "gold": "5", "reason": "a slip"})
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--parts", "cases", "--set-aside", str(aside)])
    assert "1 of its cases are not in" in capsys.readouterr().err


def test_a_folder_without_cases_is_an_error(tmp_path, capsys):
    for arguments, says in (
        ([str(tmp_path / "nowhere")], "is not a folder"),
        ([str(tmp_path), "--parts", "cases"], "lacks *.jsonl files"),
        (["--parts", "cases"], "the part cases needs FOLDER"),
        (["--parts", "others", "--golds", "1"], "--golds must be at least 2"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert says in capsys.readouterr().err
