"""The data sets, from real files if they are here, and from tables in the form of the Hub."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from retool_env.problems import (
    aime,
    dapo,
    gsm8k,
    load_problems,
    math,
)
from retool_env.problems.data_sets import bare_question

DATA = Path(os.environ.get("RETOOL_DATA", ""))
BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


@pytest.fixture
def real(monkeypatch):
    """A function that skips the test unless the named files are in the folder of `RETOOL_DATA`."""

    def need(*names):
        if missing := [name for name in names if not (DATA / name).is_file()]:
            pytest.skip(f"RETOOL_DATA has no {', '.join(missing)}")
        monkeypatch.setenv("RETOOL_DATA", str(DATA))

    return need


# --- files --------------------------------------------------------------------------------------


def test_aime_of_both_years(real):
    real("aime24.jsonl", "aime25.jsonl")
    both = aime()
    assert len(both) == 60 and len(aime(2024)) == len(aime(2025)) == 30
    assert both[0].id == "aime/2024/0" and both[59] == aime(2025)[29]
    assert both.get("aime/2025/7").metadata == {"year": 2025}
    assert all(0 <= int(problem.answer) <= 999 for problem in both)
    assert aime(2025, path=DATA / "aime25.jsonl")[3] == aime(2025)[3]
    assert load_problems("aime", year=2024)[5] == both[5]


@pytest.mark.parametrize(("split", "size"), [("train", 7473), ("test", 1319)])
def test_gsm8k(real, split, size):
    real(f"gsm8k_{split}.jsonl")
    source = gsm8k(split)
    assert len(source) == size and source[-1].id == f"gsm8k/{split}/{size - 1}"
    assert all(re.fullmatch(r"-?[0-9,.]+", problem.answer) for problem in source)
    assert not any("####" in problem.question for problem in source)


def test_math_omits_rows_without_answer(real):
    real("math_levels_3_to_5_train.jsonl")
    source = math("train")
    rows = [json.loads(line) for line in (DATA / "math_levels_3_to_5_train.jsonl").open()]
    assert len(source) + sum(source.omitted.values()) == len(rows) > len(source)
    assert source.omitted["no answer"] == sum(not row["answer"].strip() for row in rows)
    assert not {"", "None"} & {problem.answer for problem in source}
    for problem in (source[0], source[-1]):
        row = rows[int(problem.id.rpartition("/")[2])]  # ids keep the row's own position
        assert problem.question == row["problem"].strip() and problem.answer == row["answer"]
        assert problem.metadata == {"level": row["level"], "subject": row["subject"]}


# --- the Hub ------------------------------------------------------------------------------------


def test_aime_from_the_hub(hub):
    hub["HuggingFaceH4/aime_2024", None, "train"] = [
        {"id": 60, "problem": "a?", "solution": "...", "answer": "033", "url": "", "year": "2024"}
    ]
    hub["math-ai/aime25", None, "test"] = [{"problem": "b?", "answer": "70", "id": "0"}]
    assert [(p.id, p.question, p.answer) for p in aime()] == [
        ("aime/2024/0", "a?", "033"),
        ("aime/2025/0", "b?", "70"),
    ]


def test_gsm8k_from_the_hub(hub):
    hub["openai/gsm8k", "main", "test"] = [{"question": "a?", "answer": "1+1=<<1+1=2>>2\n#### 2"}]
    assert [(p.id, p.answer) for p in gsm8k("test")] == [("gsm8k/test/0", "2")]
    hub["openai/gsm8k", "main", "test"].append({"question": "b?", "answer": "two"})
    with pytest.raises(ValueError, match=r"openai/gsm8k, row 1.*'####'"):
        gsm8k("test")


def test_math_from_the_hub(hub):
    def row(level, solution):
        return {"problem": f"{solution}?", "level": level, "type": "Algebra", "solution": solution}

    hub["DigitalLearningGmbH/MATH-lighteval", None, "test"] = [
        row("Level 3", r"First \boxed{1}. So $\boxed{\frac{1}{2}}$."),
        row("Level 4", "no box"),
        row("Level ?", r"\boxed{2}"),
    ]
    source = math("test")
    assert [(p.id, p.answer) for p in source] == [
        ("math/test/0", r"\frac{1}{2}"),
        ("math/test/2", "2"),
    ]
    assert [p.metadata for p in source] == [
        {"level": 3, "subject": "Algebra"},
        {"subject": "Algebra"},
    ]


def dapo_row(question, gold="4", index="0"):
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": BEFORE + question + AFTER, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": gold, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


DAPO_ROWS = [
    dapo_row("b?", "2"),
    dapo_row("a?", "1"),
    dapo_row("b?", "2"),
    dapo_row("c?\n\nd", "-3"),
]


@pytest.mark.parametrize("batch_rows", [1, 3, 1000])
def test_dapo_is_deduplicated(hub, monkeypatch, batch_rows):
    monkeypatch.setattr("retool_env.problems.loading.BATCH_ROWS", batch_rows)
    hub["BytedTsinghua-SIA/DAPO-Math-17k", None, "train"] = DAPO_ROWS * 5
    assert [(p.id, p.question, p.answer) for p in dapo()] == [
        ("dapo/train/0", "b?", "2"),
        ("dapo/train/1", "a?", "1"),
        ("dapo/train/3", "c?\n\nd", "-3"),
    ]


def test_dapo_from_files(hub, tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    hub["BytedTsinghua-SIA/DAPO-Math-17k", None, "train"] = DAPO_ROWS
    expected = list(dapo())
    lines = tmp_path / "dapo_math_17k.jsonl"
    lines.write_text("\n".join(map(json.dumps, DAPO_ROWS)))
    parquet = tmp_path / "any.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(DAPO_ROWS), parquet)
    hub.clear()
    assert list(dapo(path=lines)) == list(dapo(path=parquet)) == expected
    monkeypatch.setenv("RETOOL_DATA", str(tmp_path))
    assert list(dapo()) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": []}, "list of chat messages"),
        ({"reward_model": {"ground_truth": None, "style": ""}}, "ground_truth'. is null"),
        ({"reward_model": {"style": ""}}, "no column for the answer: .*reward_model.ground_truth"),
    ],
)
def test_dapo_of_another_shape(hub, tmp_path, change, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(dapo_row("a?") | change))
    with pytest.raises(ValueError, match=f"rows.jsonl, line 1: .*{message}"):
        dapo(path=path)


def test_only_the_instructions_are_removed_from_a_prompt():
    assert bare_question(BEFORE + "How many?" + AFTER) == "How many?"
    assert bare_question("Solve the following: 1 + 1\n\nRemember to carry.") == (
        "Solve the following: 1 + 1\n\nRemember to carry."
    )
    assert bare_question(BEFORE + BEFORE.strip() + AFTER) == BEFORE.strip()


# --- other forms of the same sets ---------------------------------------------------------------


def test_aime_of_other_publishers(tmp_path):
    """The columns of each publisher, with made-up problems."""
    shapes = {
        "ReTool": {"input": "6 * 7?", "output": "42"},
        "HuggingFaceH4": {"id": 60, "problem": "6 * 7?", "solution": "...", "answer": "42"},
        "Maxwell-Jia": {"ID": "2024-I-1", "Problem": "6 * 7?", "Solution": "...", "Answer": 42},
        "math-ai, 2025": {"problem": "6 * 7?", "answer": "42", "id": "0"},
        "math-ai, 2024": {"id": 0, "problem": "6 * 7?", "solution": r"\boxed{42}", "url": ""},
        "OpenCompass": {"question": "6 * 7?", "answer": "42"},
        "MathArena": {"problem_idx": 1, "problem": "6 * 7?", "answer": 42, "problem_type": ["NT"]},
        "DAPO": dapo_row("6 * 7?", "42"),
    }
    for publisher, row in shapes.items():
        path = tmp_path / "aime.jsonl"
        path.write_text(json.dumps(row))
        assert [(p.question, p.answer) for p in aime(2024, path=path)] == [("6 * 7?", "42")], (
            publisher
        )


def test_dapo_in_its_processed_form(hub, tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [
        {
            "prompt": question,
            "solution": gold,
            "data_source": "math_dapo",
            "source_prompt": dapo_row(question)["prompt"],
            "ability": "MATH",
            "reward_model": {"ground_truth": gold, "style": ""},
            "extra_info": {"index": str(index)},
        }
        for index, (question, gold) in enumerate([("a?", "1"), ("b?", "-2")])
    ]
    expected = [("dapo/train/0", "a?", "1"), ("dapo/train/1", "b?", "-2")]
    hub["BytedTsinghua-SIA/DAPO-Math-17k", None, "train"] = rows
    assert [(p.id, p.question, p.answer) for p in dapo()] == expected
    table = pandas.DataFrame(rows)
    table.to_parquet(tmp_path / "x.parquet")
    table[["prompt", "solution"]].to_csv(tmp_path / "x.csv", index=False)
    for name in ("x.parquet", "x.csv"):
        read = dapo(path=tmp_path / name)
        assert [(p.id, p.question, p.answer) for p in read] == expected


@pytest.mark.parametrize(
    ("gold", "expected"), [(["34"], "34"), ("['34']", "34"), ('["34"]', "34"), ([34], "34")]
)
def test_a_list_of_one_gold_is_that_gold(tmp_path, gold, expected):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(dapo_row("a?", gold)))
    assert [p.answer for p in dapo(path=path)] == [expected]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_every_source_reads_every_form(tmp_path, monkeypatch, suffix, packed):
    pandas = pytest.importorskip("pandas")
    sources = {
        "aime24": (lambda: aime(2024), {"problem": "6 * 7?", "answer": 42}),
        "gsm8k_test": (lambda: gsm8k("test"), {"question": "6 * 7?", "answer": "so\n#### 42"}),
        "math_levels_3_to_5_test": (
            lambda: math("test"),
            {"problem": "6 * 7?", "solution": r"\boxed{42}", "level": "Level 3", "type": "Algebra"},
        ),
        "dapo-math-17k": (dapo, {"prompt": BEFORE + "6 * 7?" + AFTER, "solution": "42"}),
    }
    monkeypatch.setenv("RETOOL_DATA", str(tmp_path))
    for name, (source, row) in sources.items():
        path, table = tmp_path / (name + suffix), pandas.DataFrame([row])
        match suffix:
            case ".parquet":
                table.to_parquet(path)
            case ".csv":
                table.to_csv(path, index=False)
            case _:
                table.to_json(path, orient="records", lines=suffix == ".jsonl")
        if packed:
            path.with_name(path.name + packed).write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
        assert [(p.question, p.answer) for p in source()] == [("6 * 7?", "42")], name


# --- golds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("0", "0"), ("1e20", "100000000000000000000"), ("1e-05", "0.00001"), ("34.0", "34")],
)
def test_numbers_are_exact_in_every_source(tmp_path, answer, gold):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"problem": "?", "answer": {answer}}}')
    for source in (lambda: aime(2024, path=path), lambda: math(path=path), lambda: dapo(path=path)):
        assert [p.answer for p in source()] == [gold]
    assert [p.answer for p in gsm8k(path=path)] == [gold]


@pytest.mark.parametrize("source", [aime, dapo, gsm8k])
def test_null_is_not_an_answer(tmp_path, source):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problem": "!", "answer": 1}\n{"problem": "?", "answer": null}\n')
    year = {"year": 2024} if source is aime else {}
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: the answer \('answer'\) is null"):
        source(path=path, **year)


@pytest.mark.parametrize("times", [1, 3])
def test_dapo_leaves_out_all_copies_of_a_problem_with_two_answers(tmp_path, times):
    path = tmp_path / "rows.jsonl"
    rows = [dapo_row("a?", "1"), dapo_row("b?", "2"), dapo_row("a?", "3")] * times
    path.write_text("\n".join(map(json.dumps, rows)))
    source = dapo(path=path)
    assert [(p.question, p.answer) for p in source] == [("b?", "2")]
    assert source.omitted["different answers to the same question"] == 2 * times
    assert sum(source.omitted.values()) == len(rows) - 1


@pytest.mark.parametrize("solution", [r"so \boxed 2", r"so \fbox{2}", r"so \\boxed{2}"])
def test_boxes_of_other_forms_are_read(tmp_path, solution):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"problem": "?", "solution": solution}))
    assert [p.answer for p in math(path=path)] == ["2"]


# --- wrong input --------------------------------------------------------------------------------


def test_wrong_arguments():
    for wrong in (lambda: gsm8k("validation"), lambda: math("all")):
        with pytest.raises(ValueError, match="split must be"):
            wrong()
    with pytest.raises(ValueError, match="year must be 2024, 2025"):
        aime(2023)
    with pytest.raises(ValueError, match="file of one year"):
        aime(path="aime24.jsonl")


def test_a_row_of_another_shape_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "?", "answer": "#### 1"}\n\n{"question": "?", "reply": "2"}\n')
    with pytest.raises(
        ValueError, match=r"rows.jsonl, line 3: no column for the answer: .*'reply'"
    ):
        gsm8k(path=path)
    path.write_text('{"question": 7, "answer": "#### 1"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 1"):
        gsm8k(path=path)
