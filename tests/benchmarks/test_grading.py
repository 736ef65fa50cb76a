"""The benchmark of the grader: rewritings, answers that must be rejected, and MATH."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import grading
from benchmarks.grading import growing_brackets, main, plus_one, spaced


class Fixed:
    """A grader that always gives one verdict."""

    def __init__(self, verdict):
        self.verdict = verdict

    def grade(self, answer, gold):
        return self.verdict, 0.001


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- rewritings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "rewritten"),
    [
        ("x+1", "x + 1"),
        ("(1,-2)", "(1 ,  - 2)"),
        ("1,000,000", "1,000,000"),
        (r"14,\!641", r"14,\!641"),
        ("1{,}000", "1{,}000"),
        (r"\text{e-mail, or not}", r"\text{e-mail, or not}"),
        (r"\frac{a-b}{2}", r"\frac{a - b}{2}"),
    ],
)
def test_spaces_do_not_change_numbers_and_words(gold, rewritten):
    assert spaced(gold) == rewritten


@pytest.mark.parametrize(
    ("gold", "rewritten"),
    [
        ("(1,2)", r"\left(1,2\right)"),
        ("[1,2)", r"\left[1,2\right)"),
        (r"\frac{(x)}{[y]}", r"\frac{\left(x\right)}{\left[y\right]}"),
        (r"\left(1,2\right)", r"\left(1,2\right)"),
        ("{(}x)", "{(}x)"),
        ("(x", "(x"),
        ("x)", "x)"),
        (r"\text{(A)}", r"\text{(A)}"),
        (r"\sqrt[3]{x}", r"\sqrt[3]{x}"),
        (r"\{(1)\}", r"\{\left(1\right)\}"),
    ],
)
def test_brackets_grow_where_they_are_balanced(gold, rewritten):
    assert growing_brackets(gold) == rewritten


latex = st.lists(st.sampled_from([*"()[]{}xy12+-=,. ", r"\frac", r"\{", r"\}", r"\\", "\\"])).map(
    "".join
)


@given(latex)
def test_a_rewriting_only_adds(gold):
    assert spaced(gold).replace(" ", "") == gold.replace(" ", "")
    grown = growing_brackets(gold)
    assert grown.replace(r"\left", "").replace(r"\right", "") == gold
    assert grown.count(r"\left") == grown.count(r"\right")


# --- answers that must be rejected --------------------------------------------------------------


def test_one_is_added_to_integers_and_to_expressions():
    assert [plus_one(gold) for gold in ("-1", "041", "1.5", r"\sqrt{2}")] == [
        "0",
        "42",
        "(1.5)+1",
        r"(\sqrt{2})+1",
    ]


def test_wrongly_accepted_answers_are_listed(capsys):
    golds = ["1", "2", "x"]
    found = grading.others_part(golds, Fixed(True), Fixed(None))
    assert found["the next gold"] == {
        "answers": 3,
        "ours": [("2", "1"), ("x", "2"), ("1", "x")],
        "math-verify": [],
    }
    assert found["the gold + 1"]["ours"] == [("2", "1"), ("3", "2"), ("(x)+1", "x")]
    assert "of 3 answers are accepted 3 by ours, 0 by math-verify" in capsys.readouterr().out


def test_templates_that_earn_are_counted(monkeypatch, capsys):
    monkeypatch.setattr(grading, "reward_templates", lambda: ("1 or 2", "x"))
    monkeypatch.setattr(grading, "single_golds", lambda: ["1", "2", "3"])

    class EarnsByAList(Fixed):
        def grade(self, answer, gold):
            return gold in answer, 0.001

    found = grading.templates_part(EarnsByAList(None), Fixed(False))
    assert found["ours"] == {"earning_templates": 1, "earned": [("1 or 2", "1"), ("1 or 2", "2")]}
    assert found["math-verify"] == {"earning_templates": 0, "earned": []}
    assert "of 2 templates, 1 earn with ours, at 2 of 6 pairs" in capsys.readouterr().out


# --- the other parts ----------------------------------------------------------------------------


def test_speed_is_of_right_verdicts(monkeypatch):
    monkeypatch.setattr(grading, "INTEGER_PAIRS", 10)
    monkeypatch.setattr(grading, "PEER_INTEGER_PAIRS", 10)
    with pytest.raises(RuntimeError, match="ours graded 5 of 10 pairs of integers wrongly"):
        grading.speed_part(Fixed(True), Fixed(True))


def test_parts_that_need_math_read_it_from_the_folder_of_data(tmp_path, monkeypatch, capsys):
    problem = {"level": 3, "subject": "Algebra"}
    golds = ["12", r"\frac{3}{4}", "(1,2)", "x+1", "12"]
    rows = [{**problem, "problem": f"{i}?", "answer": gold} for i, gold in enumerate(golds)]
    write(tmp_path / "math_levels_3_to_5_train.jsonl", *rows)
    monkeypatch.setenv("RETOOL_DATA", str(tmp_path))
    out = tmp_path / "out.json"
    assert main(["--parts", "rewritings", "others", "--out", str(out)]) == 0
    parts = json.loads(out.read_text())["parts"]
    accepted = {
        name: (row["answers"], row["ours"]["accepted"], row["math-verify"]["accepted"])
        for name, row in parts["rewritings"]["by_rewriting"].items()
    }
    assert accepted == {
        r"\displaystyle": (3, 3, 3),
        r"\dfrac": (1, 1, 1),
        "spaces": (2, 2, 2),
        r"\left, \right": (1, 1, 1),
    }
    assert parts["rewritings"]["refused"] == []
    assert parts["others"]["the next gold"] == {"answers": 4, "ours": [], "math-verify": []}
    assert grading.math_golds(None) == golds[:4]
    sample = grading.math_golds(2)
    assert len(sample) == 2 and sample == [gold for gold in golds[:4] if gold in sample]


def test_without_math_its_parts_are_left_out_with_a_message(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RETOOL_DATA", raising=False)
    out = tmp_path / "out.json"
    assert main(["--parts", "others", "--out", str(out)]) == 0
    assert "left out: RETOOL_DATA is not set" in capsys.readouterr().out
    assert json.loads(out.read_text())["parts"] == {}
