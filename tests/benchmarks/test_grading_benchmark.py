"""The benchmark of the grader: what it counts, what it refuses, and that a comparison that hangs ends."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import grading
from benchmarks.grading import growing_brackets, main, plus_one, spaced
from benchmarks.parts import graded_cases, graders
from benchmarks.parts.graders import MathVerify
from benchmarks.parts.reward_templates import reward_templates, single_golds


class Fixed:
    """A grader that always gives one verdict."""

    def __init__(self, verdict):
        self.verdict = verdict

    def grade(self, answer, gold):
        return self.verdict, 0.001


@pytest.fixture(scope="module")
def peer():
    with MathVerify(patience=2.0) as peer:
        yield peer


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def case(answer, gold, expected, kind="single"):
    return {"answer": answer, "gold": gold, "expected": expected, "kind": kind, "where": "here"}


# --- published cases ----------------------------------------------------------------------------


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
def test_a_line_that_is_no_case_is_named(tmp_path, capsys, change, says):
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


def test_what_is_set_aside_must_be_among_the_cases(tmp_path, capsys):
    write(tmp_path / "one.jsonl", case("3", "4", True))
    aside = write(tmp_path / "aside", {"answer": "3", "gold": "5", "reason": "a slip"})
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--parts", "cases", "--set-aside", str(aside)])
    assert "1 of its cases are not in" in capsys.readouterr().err


def test_a_folder_without_cases_is_an_error(tmp_path, capsys):
    for arguments, says in (
        ([str(tmp_path / "nowhere")], "there is no folder"),
        ([str(tmp_path), "--parts", "cases"], "holds no file *.jsonl"),
        (["--parts", "cases"], "the part cases needs FOLDER"),
        (["--parts", "others", "--golds", "1"], "--golds must be at least 2"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert says in capsys.readouterr().err


# --- the process of math-verify -----------------------------------------------------------------


def test_math_verify_hangs_without_holding_up_the_next_comparison(peer):
    assert peer.grade("0.5", r"\frac{1}{2}")[0] is True
    assert peer.grade("9^{9^{9^9}}", "42")[0] is None
    assert peer.grade("4", "42")[0] is False


def test_math_verify_dies_without_holding_up_the_next_comparison(peer):
    peer.process.kill()
    peer.process.join()
    assert peer.grade("1", "1")[0] is None
    assert peer.grade("1", "1")[0] is True


def test_math_verify_gets_the_delimiters_that_it_asks_for(peer):
    assert graders.delimited(r"\frac{1}{2}") == r"$\frac{1}{2}$"
    for text in (r"\(x\)", r"\[x\]", "cost: $5", r"\boxed{x}"):
        assert graders.delimited(text) == text
    assert peer.grade("x^2+2x+1", "(x+1)^2")[0] is True


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


# --- what must not be accepted ------------------------------------------------------------------


def test_one_is_added_to_integers_and_to_expressions():
    assert [plus_one(gold) for gold in ("-1", "041", "1.5", r"\sqrt{2}")] == [
        "0",
        "42",
        "(1.5)+1",
        r"(\sqrt{2})+1",
    ]


def test_what_is_accepted_wrongly_is_listed(capsys):
    golds = ["1", "2", "x"]
    found = grading.others_part(golds, Fixed(True), Fixed(None))
    assert found["the next gold"] == {
        "answers": 3,
        "ours": [("2", "1"), ("x", "2"), ("1", "x")],
        "math-verify": [],
    }
    assert found["the gold + 1"]["ours"] == [("2", "1"), ("3", "2"), ("(x)+1", "x")]
    assert "of 3 answers are accepted 3 by ours, 0 by math-verify" in capsys.readouterr().out


def test_templates_are_some_two_hundred_and_no_gold_is_among_them():
    templates, golds = reward_templates(), single_golds()
    assert 200 <= len(templates) == len(set(templates)) <= 220
    assert len(golds) == len(set(golds)) == 100
    assert not set(templates) & set(golds)
    combined = {"1, 2", r"\{1 or 2\}", "x = 1; 2", r"(1 \quad 2)", r"\boxed{1} \boxed{2}"}
    assert combined | {"nan", r"\mathbb{R}"} <= set(templates)


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
    with pytest.raises(RuntimeError, match="ours has 5 of 10 pairs of integers wrong"):
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
        name: (each["answers"], each["ours"]["accepted"], each["math-verify"]["accepted"])
        for name, each in parts["rewritings"]["by_rewriting"].items()
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


def test_without_math_its_parts_are_left_out_and_say_so(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RETOOL_DATA", raising=False)
    out = tmp_path / "out.json"
    assert main(["--parts", "others", "--out", str(out)]) == 0
    assert "left out: RETOOL_DATA is not set" in capsys.readouterr().out
    assert json.loads(out.read_text())["parts"] == {}
