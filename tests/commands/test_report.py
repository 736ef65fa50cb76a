"""`retool report` prints the main table and the path of its page, and names wrong runs."""

import pytest
from helpers.episodes import ALL, RAN
from helpers.run_folders import an_eval

from retool_env.cli import main

pytest.importorskip("matplotlib")


def test_the_page_lies_in_the_folder_of_the_first_run_by_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    an_eval(tmp_path / "run", ALL)
    assert main(["report", "run"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("report: run/report/report.html\n") and "| right" in out
    assert (tmp_path / "run/report/funnel.png").exists()


def test_a_file_and_a_folder_go_side_by_side(tmp_path, capsys):
    path = an_eval(tmp_path / "run", [RAN])
    out = str(tmp_path / "out")
    assert main(["report", str(path), str(path / "episodes.jsonl"), "--out", out]) == 0
    assert "2. episodes.jsonl: 1 episode " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "is not the folder of a run"), ("{}\n", "line 1 is not an episode")],
)
def test_a_folder_that_can_not_be_reported_is_named_in_one_line(tmp_path, capsys, content, words):
    folder = tmp_path / "run"
    if content is None:
        folder.mkdir()
    else:
        (an_eval(folder, [RAN]) / "episodes.jsonl").write_text(content)
    assert main(["report", str(folder)]) == 1
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not (folder / "report").exists()


def test_a_report_of_the_users_is_not_overwritten_before_anything_is_read(tmp_path, capsys):
    path = an_eval(tmp_path / "run", [RAN])
    (tmp_path / "report.html").write_text("mine")
    assert main(["report", str(path), "--out", str(tmp_path)]) == 1
    assert "report.html exists already" in capsys.readouterr().err
    (tmp_path / "report.html").unlink()
    (tmp_path / "funnel.png").write_text("mine")
    assert main(["report", str(path), "--out", str(tmp_path)]) == 1
    assert (tmp_path / "funnel.png").read_text() == "mine"
