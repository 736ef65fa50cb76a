"""`retool export` in this process."""

import pytest
from evaluation.test_export import folder_of
from evaluation.test_records import transcript

from retool_env.cli import main
from retool_env.commands.export import FORMATS
from retool_env.evaluation import export


def test_the_command_offers_the_formats_that_there_are():
    assert FORMATS == export.FORMATS


def test_the_command_names_the_files(tmp_path, capsys):
    folder = folder_of(tmp_path / "e", transcript())
    assert main(["export", str(folder), "--to", "csv", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "calls.csv").exists()
    command = ["export", str(folder), "--to", "hub", "--dataset", "a/b", "--task", "t"]
    assert main(command) == 0
    assert "b_with_tools.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--to", "csv"], "nowhere was not found: name the folder of an evaluation"),
        (["e", "--to", "csv", "--dataset", "a/b"], "--dataset goes with --to hub"),
        (["e", "--to", "hub"], "name a benchmark with --dataset"),
    ],
)
def test_bad_input_is_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "e", transcript())
    assert main(["export", *arguments]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("retool export: ") and words in line


def test_an_unknown_format_ends_with_the_usage(capsys):
    with pytest.raises(SystemExit):
        main(["export", "e", "--to", "excel"])
    assert "invalid choice: 'excel'" in capsys.readouterr().err
