"""`retool score` in this process."""

import json

import pytest
from evaluation.test_score import RUN, own
from helpers.episodes import sample
from helpers.recorded_runs import write_eval, write_training

from retool_env.cli import main
from retool_env.transcript import write_transcripts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_eval(tmp_path / "run", RUN)
    return tmp_path


def test_the_command_shows_what_changed_and_writes_the_scores_beside_the_record(folder, capsys):
    before = {path.name: path.read_bytes() for path in (folder / "run").iterdir()}
    assert main(["score", "run", "--grader", "exact"]) == 0
    output = capsys.readouterr().out
    assert "2 of 5 verdicts changed" in output
    assert "| a/1     | 42.0   | 42        | right  | wrong |" in output
    assert "| all  | 5        | 2       | 75.0 % [" in output
    assert output.splitlines()[-1] == "scores: run/scores-exact.json"
    assert len(json.loads((folder / "run/scores-exact.json").read_text())["episodes"]) == 5
    assert {name: (folder / "run" / name).read_bytes() for name in before} == before


def test_parts_of_a_run_stand_in_a_row_each(folder, capsys):
    run = write_training(folder / "training", RUN[:2])
    write_transcripts(run / "eval-4.jsonl", [RUN[2]])
    assert main(["score", "training", "--out", "new/scores.json"]) == 0
    output = capsys.readouterr().out
    assert "| rollouts |" in output and "| step-4   |" in output
    assert (folder / "new/scores.json").exists()


def test_errors_of_a_grader_are_named_with_the_address_and_the_status_is_0(folder, capsys):
    grader = own(folder, "def grade(answer, gold): return int(answer) == int(gold)")
    assert main(["score", "run", "--grader", grader]) == 0
    captured = capsys.readouterr()
    assert "the grader failed on a/1: ValueError" in captured.err
    assert "the grader failed on 1 episodes, which have no new verdict" in captured.out


def test_a_grader_that_fails_on_every_answer_is_an_error_with_its_first_errors(folder, capsys):
    write_eval(folder / "many", [sample(f"p{n}", "x", correct=False) for n in range(7)])
    grader = own(folder, "def grade(answer, gold): return int(answer) == int(gold)")
    assert main(["score", "many", "--grader", grader]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("the grader failed on p") == 5
    assert "failed on 7 episodes, which have no new verdict; many/scores-grade.json" in captured.out
    assert "other figures that changed" not in captured.out


def test_a_grader_of_the_user_gets_the_content_of_the_box_and_answers_are_shown_as_written(
    folder, capsys
):
    write_eval(folder / "boxed", [sample("p", r"\boxed{41.9}", correct=False)])
    grader = own(folder, "def grade(answer, gold): return abs(float(answer) - float(gold)) < 1")
    assert main(["score", "boxed", "--grader", grader]) == 0
    assert r"| p/0     | \boxed{41.9} | 42        | wrong  | right |" in capsys.readouterr().out


def test_hostile_names_and_answers_stand_in_their_cells(folder, capsys):
    write_eval(folder / "hostile", [sample("\x1b[1m|", "4|2\n\u202e", correct=True)])
    assert main(["score", "hostile"]) == 0
    output = capsys.readouterr().out
    assert r"| \x1b[1m\|/0 | 4\|2 \u202e |" in output and "\x1b" not in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "nothing was not found"),
        (["run", "--grader", "maths"], "unknown grader 'maths'"),
        (["run", "--out", "there.json"], "there.json exists already"),
        (["empty.jsonl"], "holds no finished episode"),
        (["damaged.jsonl"], "damaged.jsonl, line 1 is not an episode"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, words, message):
    (folder / "there.json").touch()
    (folder / "empty.jsonl").touch()
    (folder / "damaged.jsonl").write_text("{}\n")
    assert main(["score", *words]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("retool score: ") and message in line


def test_the_scores_are_shown_even_if_they_can_not_be_written(folder, capsys):
    (folder / "file").touch()
    assert main(["score", "run", "--out", "file/scores.json"]) == 1
    captured = capsys.readouterr()
    assert "1 of 5 verdicts changed" in captured.out and "file" in captured.err


def test_an_address_can_neither_break_the_table_nor_steer_the_terminal(folder, capsys):
    write_eval(folder / "odd", [sample("a|b\n\x1b[31m", "41", correct=True)])
    assert main(["score", "odd"]) == 0
    assert "| a\\|b \\x1b[31m/0 | 41 " in capsys.readouterr().out
