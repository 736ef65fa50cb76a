r"""The sets of 2025 and 2026, on made-up problems in the columns and types of each set."""

import json

import gymnasium as gym
import pytest
from helpers.competitions import AMO_INSTRUCTIONS, CASES, amo_row, arena, olym

from retool_env.problems import ProblemsUnavailable, amo, apex, beyond_aime, hmmt, olymmath


@pytest.mark.some(6)
@pytest.mark.parametrize(
    ("id", "settings", "file", "row", "right", "wrong", "key"),
    CASES,
    ids=[f"{case[0]}-{case[2]}-{number}" for number, case in enumerate(CASES)],
)
def test_a_right_answer_earns_the_reward_and_a_wrong_one_does_not(
    tmp_path, monkeypatch, id, settings, file, row, right, wrong, key
):
    monkeypatch.setenv("RETOOL_DATA", str(tmp_path))
    (tmp_path / f"{file}.jsonl").write_text(json.dumps(row))
    with gym.make(f"ReTool-{id}-v0", **settings) as env:
        for answer, reward in ((right, 1.0), (wrong, -1.0)):
            _, info = env.reset(options={"problem_id": f"{key}/0"})
            problem = info["transcript"].problem
            assert problem.question == "?" and problem.metadata["published"] >= "2021"
            _, earned, terminated, _, info = env.step(rf"<answer>\boxed{{{answer}}}</answer>")
            assert (earned, terminated) == (reward, True), answer
            assert info["correct"] is (reward > 0)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_the_sets_have_the_same_problems_in_every_form(tmp_path, monkeypatch, suffix):
    pandas = pytest.importorskip("pandas")
    monkeypatch.setenv("RETOOL_DATA", str(tmp_path))
    for name, row in (("hmmt_feb26", arena("(1,2)")), ("beyondaime", arena(9))):
        table = pandas.DataFrame([{**row, "problem_type": "Algebra"}])
        path = tmp_path / (name + suffix)
        table.to_parquet(path) if suffix == ".parquet" else table.to_csv(path, index=False)
    problem, other = hmmt()[0], beyond_aime()[0]
    assert (problem.id, problem.answer) == ("hmmt/2026-02/0", "(1,2)")
    assert dict(problem.metadata) == {"published": "2026-02-14", "subject": "Algebra"}
    assert (other.id, other.answer) == ("beyondaime/0", "9")


def test_the_hub_gives_the_sets_and_lists_become_text(hub):
    hub["MathArena/hmmt_nov_2025", None, "train"] = [arena(r"\pi", ("Algebra", "Geometry"))]
    hub["RUC-AIBOX/OlymMATH", "zh-easy", "test"] = [olym("7")]
    hub["MathArena/apex-shortlist", None, "train"] = [{**arena("7", ()), "source": "x"}]
    assert hmmt("2025-11")[0].metadata["subject"] == "Algebra, Geometry"
    assert olymmath("zh", "easy")[0].id == "olymmath/zh-easy/0"
    assert dict(apex(shortlist=True)[0].metadata) == {"published": "2025"}
    with pytest.raises(ProblemsUnavailable, match="RUC-AIBOX/OlymMATH"):
        olymmath("en", "hard")


def test_amo_leaves_out_answers_that_need_a_judge(tmp_path):
    path = tmp_path / "amo.jsonl"
    rows = [
        amo_row(r"\boxed{1}", "number", "a"),
        amo_row("all primes and their squares", "description", "b"),
        amo_row(r"\boxed{2}", "number", "c\nd" + AMO_INSTRUCTIONS),
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    source = amo(path=path)
    assert [(p.id, p.question, p.answer) for p in source] == [
        ("amo/0", "a", "1"),
        ("amo/2", "c\nd", "2"),
    ]
    assert source.omitted == {"an answer that needs a judge": 1}


@pytest.mark.parametrize("kind", [None, "proof"])
def test_an_unknown_type_of_answer_is_an_error(tmp_path, kind):
    path = tmp_path / "amo.jsonl"
    row = amo_row(r"\boxed{1}", kind)
    if kind is None:
        del row["answer_type"]
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match="line 1: the column 'answer_type' must be one of number"):
        amo(path=path)


def test_an_answer_that_the_grader_cannot_read_is_left_out_and_counted(tmp_path):
    path = tmp_path / "hmmt.jsonl"
    rows = [arena("7") | {"problem": "a"}, arena(r"\frac{1") | {"problem": "b"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    source = hmmt("2025-02", path=path)
    assert [problem.id for problem in source] == ["hmmt/2025-02/0"]
    assert source.omitted == {"an answer that can't be graded": 1}
    with pytest.raises(ValueError, match="line 2: the answer"):
        beyond_aime(path=path)


def test_unknown_settings_name_the_known_ones():
    with pytest.raises(ValueError, match="competition must be one of '2025-02', '2025-11'"):
        hmmt("2024-02")
    with pytest.raises(ValueError, match="language must be one of 'en', 'zh', not 'de'"):
        olymmath("de")
    with pytest.raises(ValueError, match="level must be one of 'easy', 'hard'"):
        olymmath("en", "medium")
