"""The plan of an evaluation: its problems, the episodes that are left, and its record."""

import dataclasses
from pathlib import Path

import pytest
from helpers.eval_commands import ARITHMETIC, eval_arguments

from retool_env import REVISION
from retool_env.cli import main
from retool_env.commands.eval_plan import again, estimate, make_plan, make_record
from retool_env.evaluation.cost import Price

BEHIND = ("--api", "http://h/v1")


def plan(*given, env=ARITHMETIC):
    return make_plan(eval_arguments(*BEHIND, *given), "m", env)


@pytest.mark.parametrize(
    ("env", "given", "count"),
    [
        (ARITHMETIC, (), 200),
        ("ReTool-Staged-v0", (), 200),
        (ARITHMETIC, ("--problems", "700"), 700),
        (ARITHMETIC, ("size=500",), 500),
        ("ReTool-JSONL-v0", ("path=own.jsonl",), 300),
        ("ReTool-JSONL-v0", ("path=own.jsonl", "--problems", "900"), 300),
    ],
)
def test_the_number_of_problems(env, given, count, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = (f'{{"question": "{i}?", "answer": "{i}"}}\n' for i in range(300))
    (tmp_path / "own.jsonl").write_text("".join(lines))
    made = plan(*given, env=env)
    assert len(made.problems) == count == len({problem.id for problem in made.problems})


@pytest.mark.parametrize("command", ["eval", "recover"])
@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("recover.json eval.json", "already"),
        ("transcripts.jsonl", "an evaluation of an earlier version"),
        ("figures.json README.md", "would be overwritten"),
    ],
)
def test_a_dry_run_refuses_a_folder_that_is_not_free(
    command, file, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "found").mkdir()
    for name in file.split():
        (tmp_path / "found" / name).touch()
    line = [command, *BEHIND, "--model", "m", "--env", ARITHMETIC, "--out", "found", "--dry-run"]
    assert main([*line, "--problems", "1"]) == 1
    said = capsys.readouterr().err
    assert words in said or "holds a record of `retool recover`" in said


@pytest.mark.parametrize("command", ["eval", "recover"])
def test_nothing_to_continue_is_said(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = [command, *BEHIND, "--model", "m", "--env", ARITHMETIC, "--problems", "1", "--dry-run"]
    assert main([*line, "--resume", "--out", "typo"]) == 0
    assert "typo holds no record to continue: all episodes are left" in capsys.readouterr().out
    assert main(line) == 0
    assert "no record" not in capsys.readouterr().out


def test_the_options_that_continue_a_record():
    assert again(eval_arguments("--name", "x"), Path("runs/eval/x")) == "--resume"
    assert again(eval_arguments(), Path("runs/e l")) == "--resume --out 'runs/e l'"


@pytest.mark.parametrize("speed", ["0", "nan", "-5", "inf"])
def test_a_speed_is_above_zero(speed, capsys):
    line = ["recover", *BEHIND, "--model", "m", "--env", ARITHMETIC, "--dry-run"]
    assert main([*line, f"--tokens-per-second={speed}"]) == 1
    assert "--tokens-per-second must be above 0, not" in capsys.readouterr().err


def test_the_episodes_that_are_left():
    made = plan("--problems", "2", "--k", "2")
    first, second = (problem.id for problem in made.problems)
    ended = {(first, 0): False, (second, 1): True}
    left = [(job.problem.id, job.sample) for job in made.jobs(ended)]
    assert left == [(first, 1), (second, 0)]
    made.arguments.retry_failed = True
    again = [(job.problem.id, job.index, job.sample) for job in made.jobs(ended)]
    assert again == [(first, 0, 1), (second, 1, 0), (second, 1, 1)]


def test_the_title_says_whether_there_is_an_interpreter():
    assert plan("--problems", "1").title == "m, interpreter"
    assert plan("--problems", "1", "--text-only").title == "m, text-only"


def test_the_record_holds_the_settings_and_identifies_the_problems():
    made, price = plan("--problems", "3", "--k", "2", "--seed", "5", "max_calls=1"), Price(1.0, 2.0)
    record = make_record(made, "first", price)
    assert (record.name, record.env, record.problems) == ("first", ARITHMETIC, 3)
    assert (record.k, record.seed, record.rules["max_calls"]) == (2, 5, 1)
    assert record.sampling == {
        **{"temperature": 1.0, "top_p": 0.7},
        **{"max_tokens": 1024, "way": "chat"},
    }
    assert record.price == dataclasses.asdict(price) and record.revision == REVISION
    assert make_record(plan("--problems", "3"), "a", None).fingerprint == record.fingerprint
    assert make_record(plan("--problems", "2"), "a", None).fingerprint != record.fingerprint
    assert make_record(plan("--native-tools"), "a", None).sampling["way"] == "tools"


def test_an_estimate_names_the_episodes_and_the_dollars():
    made = plan("--problems", "3", "--k", "2")
    assert estimate(made, None).startswith("6 episodes") and "$" not in estimate(made, None)
    assert "$" in estimate(made, Price(1.0, 2.0))


@pytest.mark.parametrize(
    ("command", "setting", "words"),
    [
        ("eval", "session=true", "a sandbox server has no sessions"),
        ("recover", "session=true", "a sandbox server has no sessions"),
        ("eval", 'faults={"kinds": ["wrong_function"]}', "server can make wrong_function"),
    ],
)
def test_what_a_sandbox_server_lacks_is_refused_before_a_model_is_touched(
    command, setting, words, tmp_path, monkeypatch, capsys
):
    touched = []
    for place in ("evaluation.identity.ModelIdentity.of", "rollout.named.make_policy"):
        monkeypatch.setattr(f"retool_env.{place}", lambda *some, **more: touched.append(some))
    given = ["--env", "ReTool-Arithmetic-v0", "--model", "m", "--api", "http://127.0.0.1:9"]
    given += ["--sandbox", "http://127.0.0.1:9", "--out", str(tmp_path / "found"), setting]
    assert main([command, *given]) == 1
    assert words in capsys.readouterr().err
    assert not touched and not (tmp_path / "found").exists()
