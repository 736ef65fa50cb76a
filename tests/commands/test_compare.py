"""`retool compare` in this process."""

from __future__ import annotations

import pytest
from helpers.compared_runs import a_record, ended, problem_of, write_verdicts

from retool_env.cli import main
from retool_env.transcript import write_transcripts


def test_the_verdict_comes_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = [f"p{n}" for n in range(20)]
    write_verdicts(tmp_path / "a", {name: [False] for name in names})
    write_verdicts(tmp_path / "b", {name: [n < 15] for n, name in enumerate(names)})
    assert main(["compare", "a", "b"]) == 0
    text = capsys.readouterr().out
    table, verdict, *_ = text.split("\n\n")
    assert len(table.splitlines()) == 4
    assert verdict.startswith("B is better than A by 75.0 points [")
    assert "Different settings: model ('models/a' in A, 'models/b' in B)." in text


def test_two_steps_of_one_training_run_are_compared(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"settings": {}}')
    for step in (0, 9):
        made = [ended(problem_of(f"p{n}"), step == 9) for n in range(8)]
        write_transcripts(tmp_path / f"eval-{step}.jsonl", made)
    assert main(["compare", f"{tmp_path}@0", f"{tmp_path}@9"]) == 0
    text = capsys.readouterr().out
    assert "B is better than A by 100.0 points" in text
    assert "step-0/p0/0 and step-9/p0/0: right in B, wrong in A" in text
    assert f"retool view {tmp_path}@0 {tmp_path}@9" in text


def test_differing_settings_are_refused_until_they_are_allowed(tmp_path, capsys):
    first = write_verdicts(tmp_path / "a", {"p": [True]})
    record = a_record(rules={"max_calls": 2, "session": True})
    second = write_verdicts(tmp_path / "b", {"p": [True]}, record)
    command = ["compare", str(first), str(second)]
    assert main(command) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        "retool compare: the runs differ in rules.session (False in A, True in B); rules.max_calls "
        "(8 in A, 2 in B): if this is intended, add --allow session --allow max_calls, or --force"
    )
    assert main([*command, "--allow", "session", "--allow", "max_calls"]) == 0
    for wrong, hint in (("sesion", "did you mean session?"), ("foo", "; they are ")):
        assert main([*command, "--allow", wrong]) == 1
        said = capsys.readouterr().err
        assert f"--allow {wrong}: no setting of the runs has this name" in said and hint in said
    assert main([*command, "--force"]) == 0
    assert "rules.max_calls (8 in A, 2 in B)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (["a"], "name from 2 to 26 runs, not 1"),
        (["a", "nowhere"], "nowhere was not found"),
        (["a", "other"], "a and other share no problem"),
        (["a", "empty"], "empty has no episode: nothing can be compared"),
        (["a", "damaged"], "line 1 is not an episode"),
    ],
)
def test_bad_input_is_one_line(runs, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_verdicts(tmp_path / "a", {"p": [True]})
    write_verdicts(tmp_path / "other", {"q": [True]})
    write_verdicts(tmp_path / "empty", {})
    (write_verdicts(tmp_path / "damaged", {}) / "episodes.jsonl").write_text('{"problem": NaN}\n')
    assert main(["compare", *runs]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("retool compare: ") and words in line


def test_hostile_names_are_printed_on_one_line(tmp_path, capsys):
    name = "p\x1b[31m\n‮/é"
    first = write_verdicts(tmp_path / "a", {name: [True]})
    second = write_verdicts(tmp_path / "b", {name: [False]})
    assert main(["compare", str(first), str(second)]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and r"p\x1b[31m \u202e/é" in text
