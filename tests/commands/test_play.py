"""`retool play`: turns that a person types, their results, and the task of a checkpoint."""

import io
from pathlib import Path

import pytest

from retool_env.checkpoint_task import CheckpointTask
from retool_env.cli import main
from retool_env.commands.play import read_turn

ARITHMETIC = "ReTool-Arithmetic-v0"
OWN = {"id": ARITHMETIC, "prompt_template": "Q {query}\n", "max_calls": 3, "max_tokens": 16}


def play(monkeypatch, text: str, *arguments: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return main(["play", "--seed", "3", *arguments])


def test_play_runs_code_and_grades_the_answer(monkeypatch, capsys):
    script = "<code>\nx = 6\n\nprint(x * 7)\n</code>\n<answer>no\n</answer>\n"
    template = "prompt_template=Q: {query}\n"
    assert play(monkeypatch, script, "difficulty=3", template) == 0
    out = capsys.readouterr().out
    assert out.startswith("Q: Compute ") and "<interpreter>\n42\n</interpreter>" in out
    assert "[answered, reward -1.0]" in out
    answer = out.rpartition("the answer is ")[2].strip()
    assert play(monkeypatch, f"<answer>{answer}</answer>\n", "difficulty=3") == 0
    assert "[answered, reward 1.0]" in capsys.readouterr().out


def test_play_in_a_session(monkeypatch, capsys):
    script = "<code>x = 6</code>\n<code>x * 7</code>\n<answer>no</answer>\n"
    assert play(monkeypatch, script, "session=true", "display=true") == 0
    assert "<interpreter>\n42\n</interpreter>" in capsys.readouterr().out


def test_play_goes_on_after_a_void_turn_and_ends_with_the_input(monkeypatch, capsys):
    assert play(monkeypatch, "hm\n\n") == 0
    out = capsys.readouterr().out
    assert "Go on." in out and "[stopped, reward -1.0]" in out


def test_play_asks_again_after_an_empty_turn(monkeypatch, capsys):
    assert play(monkeypatch, "\n\n<answer>no</answer>\n") == 0
    out = capsys.readouterr().out
    assert out.count("the turn is empty: write a text") == 2 and "[answered, reward -1.0]" in out


def test_play_takes_the_task_of_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    CheckpointTask.of(OWN).save(Path("trained").absolute())
    assert play(monkeypatch, "<answer>no</answer>\n", "--model", "trained", "max_calls=1") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"retool.json: task {ARITHMETIC}, protocol tags, a prompt of its own")
    assert out[1] == "the command line differs from it: max_calls=1 (there: 3)"
    assert out[2] == "max_tokens is left out: what a person writes is text"
    assert out[3].startswith("Q Compute ")
    # The rules come from the checkpoint: a turn without a tag ends the episode.
    assert play(monkeypatch, "hm\n\n", "--model", "trained") == 0
    assert "[void_turn, reward -1.0]" in capsys.readouterr().out
    assert play(monkeypatch, "hm\n\n", "--model", "./nowhere") == 1
    assert "folder './nowhere' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "turn", "left"),
    [
        ("a\n\nb\n", "a", "b\n"),
        ("<code>\n1\n\n2\n</code>\nb\n", "<code>\n1\n\n2\n</code>", "b\n"),
        ("so <answer>4</answer>\n\n", "so <answer>4</answer>", "\n"),
        ("no end", "no end", ""),
        ("", "", ""),
        ("\n \na\n\nb\n", "a", "b\n"),
        ("\n\n", "", ""),
    ],
    ids=["line", "program", "answer", "end of input", "no input", "empty turns", "nothing else"],
)
def test_a_turn_ends_at_a_tag_or_at_an_empty_line_outside_of_a_program(
    typed, turn, left, monkeypatch
):
    typing = io.StringIO(typed)
    monkeypatch.setattr("sys.stdin", typing)
    assert read_turn() == turn and typing.read() == left
