"""`retool replay` in this process."""

import dataclasses
import json
import os

import pytest
from helpers.recorded_runs import code, played, write_eval
from helpers.small_runs import make_small

from retool_env.cli import main
from retool_env.transcript import write_transcripts

CLOCK = "import time\nprint(time.time_ns())"


@pytest.fixture(scope="module")
def transcripts(sandbox):
    sound = played(sandbox, code("print(6 * 7)"), "<answer>42</answer>")
    random = played(sandbox, code(CLOCK), code("1/0"), "<answer>4</answer>", problem="q")
    return [sound, random]


@pytest.fixture
def folder(tmp_path, monkeypatch, transcripts):
    monkeypatch.chdir(tmp_path)
    write_eval(tmp_path / "run", transcripts)
    return tmp_path


def test_differences_are_shown_with_a_table_and_are_an_error_only_if_strict(folder, capsys):
    assert main(["replay", "run"]) == 0
    output = capsys.readouterr().out
    assert "q/0: call 1 differs\n    --- recorded\n    +++ now\n" in output
    assert "2 episodes, 0 with a violated invariant" in output
    assert "| recorded outcome | same | differs | not comparable |" in output
    assert "| ok               | 1    | 1       | 0              |" in output
    assert "| all              | 2    | 1       | 0              |" in output
    assert main(["replay", "run", "q/0", "--strict"]) == 1
    assert "1 episode, 0 with" in capsys.readouterr().out


def test_a_violated_invariant_is_an_error_and_no_program_needs_to_run(folder, transcripts, capsys):
    wrong = dataclasses.replace(transcripts[0], reward=0.5)
    write_eval(folder / "wrong", [wrong])
    assert main(["replay", "wrong", "--no-programs", "--limit", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "p/0: violated: reward: the record has 0.5, but the reward paper is 1.0",
        "1 episode, 1 with a violated invariant",
    ]


def test_a_run_without_programs_says_that_nothing_was_compared(folder, transcripts, capsys):
    without = dataclasses.replace(transcripts[0], spans=transcripts[0].spans[:1])
    write_eval(folder / "without", [without])
    main(["replay", "without"])
    assert "ran no program, so no result was compared" in capsys.readouterr().out


def test_a_file_without_rules_says_so(folder, transcripts, capsys):
    write_transcripts(folder / "t.jsonl", transcripts)
    assert main(["replay", "t.jsonl", "--no-programs"]) == 0
    assert "the record holds no rules of 2 episodes" in capsys.readouterr().out


def test_one_call_runs_with_more_time(folder, capsys):
    assert main(["replay", "run", "p/0", "--call", "1", "--seconds", "9"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "42\n" and captured.err.startswith("ok after ")
    assert main(["replay", "run", "q/0", "--call", "2"]) == 0
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_no_text_of_a_record_steers_the_terminal(folder, sandbox, capsys):
    program = f"{CLOCK}\nprint('\\x1b[31m\\u202e', time.time_ns())"
    made = played(sandbox, code(program), "\x1b[2J<answer>4</answer>", problem="\x1b[1m")
    write_eval(folder / "hostile", [made])
    for words in ([], ["--protocol", "hermes"], ["\x1b[1m/0", "--call", "1"]):
        assert main(["replay", "hostile", *words]) == 0
        shown = "".join(capsys.readouterr())
        assert "\x1b" not in shown and "\u202e" not in shown
        assert r"\x1b[31m\u202e" in shown


def test_episodes_are_printed_or_written_in_another_protocol(folder, capsys):
    assert main(["replay", "run", "p/0", "--protocol", "hermes"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("=== p/0\n") and "<tool_call>" in output
    assert main(["replay", "run", "--protocol", "hermes", "--out", "new/h.jsonl"]) == 0
    assert "2 episodes without token ids: new/h.jsonl" in capsys.readouterr().out
    first = json.loads((folder / "new/h.jsonl").read_text().splitlines()[0])
    assert (first["address"], first["correct"]) == ("p/0", True)
    assert first["spans"][-1] == {"author": "model", "text": "\\boxed{42}"}
    model = make_small(folder / "model")
    assert main(["replay", "run", "p/0", "--template", model]) == 0
    assert "Problem: 6 * 7?" in capsys.readouterr().out


def test_an_algorithm_is_forwarded_to_the_trainers_of_a_clone(folder, monkeypatch):
    (folder / "agents" / "presets").mkdir(parents=True)
    ran = []
    monkeypatch.setattr(os, "execv", lambda program, words: ran.append(words[1:]))
    main(["replay", "run", "--algorithm", "rloo", "clip_high=0.3"])
    assert ran == [["-m", "agents", "replay", "run", "--algorithm", "rloo", "clip_high=0.3"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "nothing was not found"),
        (["run", "x/0"], "run has no episode 'x/0'"),
        (["run", "sesion=true"], "unknown settings ['sesion']"),
        (["run", "--call", "1"], "name the address of one episode"),
        (["run", "p/0", "--call", "3"], "p/0 has no program of call 3; its calls are 1"),
        (["run", "p/0", "--call", "1", "--seconds", "nan"], "seconds must be a number of seconds"),
        (["run", "--out", "x"], "--out goes with --protocol or --template"),
        (["run", "--protocol", "mine"], "can't be written in the protocol 'mine'"),
        (["run", "--limit", "0"], "--limit must be at least 1, not 0"),
        (["run", "--sandbox", "none"], "no sandbox is called 'none'"),
        (["empty.jsonl"], "holds no episode yet"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, words, message):
    (folder / "empty.jsonl").touch()
    assert main(["replay", *words]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("retool replay: ") and message in line
