"""`--model-date`: what is said of the problems that a model may have seen, and what is recorded."""

import json

import pytest
from helpers.model_api import ModelAPI, Reply, serving

from retool_env.cli import main
from retool_env.commands.contamination import contamination, dates_of
from retool_env.problems import Problem, arithmetic


def problems(*keys):
    """Two problems of each set."""
    return [Problem(f"{key}/{index}", f"{key} {index}?", "1") for key in keys for index in range(2)]


def test_nothing_is_said_without_a_date():
    assert contamination({"E-v0": problems("aime/2024")}, None) == []


@pytest.mark.parametrize(
    ("keys", "date", "expected"),
    [
        (
            ["aime/2025"],
            "2025-06",
            "2 of 2 problems were published by 2025-06 and may be contaminated: "
            "AIME 2025 (2025-02-12)",
        ),
        (
            ["hmmt/2025-11"],
            "2025-06",
            "2 of 2 problems are newer than 2025-06: HMMT November 2025 (2025-11)",
        ),
        (
            ["aime/2024", "aime/2025", "arithmetic"],
            "2024-12",
            "2 of 6 problems were published by 2024-12 and may be contaminated: "
            "AIME 2024 (2024-02); 2 of 6 problems are newer than 2024-12: AIME 2025 (2025-02-12); "
            "the date of 2 of 6 problems is unknown",
        ),
    ],
)
def test_a_line_names_the_sets_with_their_dates(keys, date, expected):
    assert contamination({"E-v0": problems(*keys)}, date) == [f"E-v0: {expected}"]


def test_problems_of_an_own_file_can_have_dates():
    own = [Problem("jsonl/mine/0", "?", "1", {"published": "2023-05"}), Problem("p", "!", "1")]
    assert contamination({"E-v0": own}, "2024") == [
        "E-v0: 1 of 2 problems were published by 2024 and may be contaminated: "
        "jsonl/mine (2023-05); the date of 1 of 2 problems is unknown"
    ]
    assert dates_of(own) == {"2023-05": 1}
    assert dates_of([arithmetic()[0]]) == {}


def test_the_date_is_printed_for_each_environment_and_recorded(tmp_path, monkeypatch, capsys):
    pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETOOL_DATA", str(tmp_path))
    rows = [{"problem": f"{number}?", "answer": number} for number in range(2)]
    for name in ("aime25", "hmmt_nov25"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["eval", "--env", "ReTool-AIME25-v0", "--model", "m", "--text-only", "--k", "1"]
    with serving(ModelAPI(lambda conversation: Reply("<answer>1</answer>"))) as url:
        both = [*command, "--api", url, "--out", "both", "--env", "ReTool-HMMT-Nov25-v0"]
        assert main([*both, "--model-date", "2025-06"]) == 0
        said = capsys.readouterr().out
        assert said.count("ReTool-AIME25-v0: 2 of 2 problems were published by 2025-06") == 1
        assert said.count("ReTool-HMMT-Nov25-v0: 2 of 2 problems are newer than 2025-06") == 1
        records = [
            json.loads(path.read_text()) for path in sorted(tmp_path.glob("both/*/eval.json"))
        ]
        assert [record["model_date"] for record in records] == ["2025-06", "2025-06"]
        assert [record["published"] for record in records] == [{"2025-02-12": 2}, {"2025-11": 2}]

        one = [*command, "--api", url, "--out", "one"]
        assert main([*one, "--problems", "1"]) == 0
        assert "published" not in capsys.readouterr().out
        assert json.loads((tmp_path / "one/eval.json").read_text())["model_date"] is None
        assert main([*one, "--resume", "--model-date", "2024"]) == 0
        assert main([*one, "--resume"]) == 0  # a date once given stays on record
    record = json.loads((tmp_path / "one/eval.json").read_text())
    assert (record["model_date"], record["published"]) == ("2024", {"2025-02-12": 2})


def test_a_text_that_is_not_a_date_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--model", "m", "--model-date", "June 2025"])
    assert "'June 2025' is not a date, such as 2025, 2025-06" in capsys.readouterr().err
