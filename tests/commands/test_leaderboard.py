"""`retool leaderboard`: the tables, the files, and the exit status."""

import json

from helpers.leaderboards import small_suite

from retool_env.cli import main
from retool_env.commands import leaderboard
from retool_env.evaluation.leaderboard.measures import RANKED


def test_the_command_knows_the_figures_that_rank():
    assert leaderboard.BY == RANKED


def test_the_plain_command_prints_the_ranks_and_names_its_files(board, capsys):
    assert main(["leaderboard", str(board)]) == 0
    out = capsys.readouterr().out
    assert "ranked by “right”" in out and "unchecked" in out
    assert f"written: {board / 'leaderboard.html'}" in out
    rows = json.loads((board / "leaderboard.json").read_text())["tables"][0]["rows"]
    assert [(row["model"]["name"], row["rank"]) for row in rows] == [
        ("org/brittle", [1, 2]),
        ("org/strong", [1, 2]),
        ("org/weak", [3, 3]),
    ]
    assert (board / "leaderboard.md").read_text().startswith("# Leaderboard")


def test_checked_runs_pass_and_an_altered_run_loses_its_rank(board, sandbox, capsys):
    with small_suite(sandbox):
        assert main(["leaderboard", str(board), "--check"]) == 0
        assert capsys.readouterr().out.count("passed") == 3
        path = board / "strong/episodes.jsonl"
        path.write_text(path.read_text().replace('"correct": true', '"correct": false'))
        assert main(["leaderboard", str(board), "--check", "--by", "faults"]) == 1
    assert "FAILED: figures, verdicts" in capsys.readouterr().out


def test_a_damaged_run_is_named_and_the_status_is_1(board, capsys):
    (board / "strong/recover.json").write_text("{")
    assert main(["leaderboard", str(board), "--out", str(board / "new")]) == 1
    out = capsys.readouterr().out
    assert "left out: strong: " in out and "| weak    | 2 " in out
    assert (board / "new/leaderboard.md").exists() and not (board / "leaderboard.md").exists()


def test_only_damaged_runs_give_an_empty_board(board, capsys):
    for path in board.rglob("recover.json"):
        path.write_text("{")
    assert main(["leaderboard", str(board)]) == 1
    assert json.loads((board / "leaderboard.json").read_text())["tables"] == []


def test_a_folder_without_runs_is_named_in_one_line(tmp_path, capsys):
    assert main(["leaderboard", str(tmp_path)]) == 1
    assert main(["leaderboard", str(tmp_path / "none")]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "holds no run" in errors[0] and "not found" in errors[1]
