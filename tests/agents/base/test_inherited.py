"""Further training takes over the task of the model; older runs without `retool.json` work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.small_runs import given, make_small, records

from agents.__main__ import main
from retool_env import REVISION
from retool_env.checkpoint_task import FILE, CheckpointTask, read_task
from retool_env.cli import main as retool
from retool_env.evaluation.records import read_episodes
from retool_env.key_values import load_yaml
from retool_env.transcript import read_transcripts

ARITHMETIC = "ReTool-Arithmetic-v0"
TASK = {
    "id": ARITHMETIC,
    "difficulty": 2,
    "prompt_template": "Q {query}\n",
    "interpreter": False,
    "max_calls": 2,
    "max_tokens": 11,
    "errors": "traceback",
}
OLD = Path(__file__).parent / "old_run"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A small model that carries its task, in the working directory."""
    monkeypatch.chdir(tmp_path)
    make_small("model")
    CheckpointTask.of(TASK).save("model")
    return "./model"


def command(algorithm, model, *more, **settings):
    values = {"model": model, "steps": 1, **settings}
    pairs = [
        pair
        for pair in given(algorithm, **values)
        if not pair.startswith(("env.interpreter", "env.max_tokens"))
    ]
    return [algorithm, *pairs, *more]


def env_of(name):
    return json.loads(Path("runs", name, "config.json").read_text())["settings"]["env"]


@pytest.mark.parametrize(("algorithm", "more"), [("grpo", {}), ("ppo", {"critic_warmup": 0})])
def test_a_run_takes_over_the_models_task_and_hands_it_on(algorithm, more, model, capsys):
    assert main(command(algorithm, model, **more)) == 0
    out = capsys.readouterr().out
    assert f"retool.json: task {ARITHMETIC}, protocol tags, a prompt of its own, " in out
    assert "(from ./model)" in out and "the command line overrides" not in out
    [replaced] = [line for line in out.splitlines() if "replace the preset's" in line]
    assert "max_tokens=11 (the preset: 160)" in replaced
    env = env_of(algorithm)
    assert {name: env[name] for name in TASK} == TASK
    [first, *_] = read_transcripts(f"runs/{algorithm}/transcripts.jsonl")
    assert first.spans[0].text.startswith("Q Compute ") and "/train-" in first.problem.id
    assert first.problem.metadata["difficulty"] == 2 and not first.interpreter
    assert read_task(f"runs/{algorithm}/checkpoint") == CheckpointTask.of(TASK)


def test_the_command_line_wins_and_what_differs_is_said(model, capsys):
    assert main(command("grpo", model, "env.max_calls=5", "env.max_tokens=11")) == 0
    out = capsys.readouterr().out
    assert "the command line overrides the task: max_calls=5 (the task: 2)\n" in out
    assert env_of("grpo")["max_calls"] == 5
    assert read_task("runs/grpo/checkpoint").rules["max_calls"] == 5


PRESET = """\
env: {{id: {id}, max_calls: 7, max_tokens: 9, interpreter: false, {more}}}
grpo: {{prompts: 2, rollouts: 4, micro_batch: 8, entropy: 0.05}}
"""


def test_a_preset_that_is_named_says_which_environment(model, capsys):
    problems = "".join(f'{{"question": "{i}?", "answer": "{i}"}}\n' for i in range(9))
    Path("own.jsonl").write_text(problems)
    Path("own.yaml").write_text(PRESET.format(id="ReTool-JSONL-v0", more="path: own.jsonl"))
    assert main(command("grpo", model, "--preset", "own.yaml")) == 0
    assert "other settings are ReTool-JSONL-v0's\n" in capsys.readouterr().out
    env = env_of("grpo")
    assert (env["id"], env["max_calls"], env["max_tokens"]) == ("ReTool-JSONL-v0", 7, 9)
    assert env["prompt_template"] == "Q {query}\n" and "difficulty" not in env
    # With the model's own environment, the model's settings override the preset's.
    Path("own.yaml").write_text(PRESET.format(id=ARITHMETIC, more="difficulty: 5"))
    assert main(command("grpo", model, "name=same", "--preset", "own.yaml")) == 0
    assert {name: env_of("same")[name] for name in TASK} == TASK
    # The default preset's environment gives way to the model's.
    CheckpointTask.of({**env, "max_calls": 2}).save("model")
    assert main(command("grpo", model, "name=unnamed", "env.path=own.jsonl")) == 0
    env = env_of("unnamed")
    assert (env["id"], env["max_calls"], env["path"]) == ("ReTool-JSONL-v0", 2, "own.jsonl")
    assert "difficulty" not in env


def test_another_environment_on_the_command_line_drops_the_presets_problems(model, capsys):
    problems = "".join(f'{{"question": "{i}?", "answer": "{i}"}}\n' for i in range(9))
    Path("own.jsonl").write_text(problems)
    other = ("env.id=ReTool-JSONL-v0", "env.path=own.jsonl", "--dry-run")
    for more in ((), ("--ignore-retool-json",)):
        assert main(command("grpo", model, *other, *more)) == 0
        env = load_yaml(capsys.readouterr().out)["env"]
        assert env["max_calls"] == 3 and "difficulty" not in env  # a rule stays


def test_a_run_that_goes_on_keeps_what_it_was_started_with(model, capsys):
    assert main(command("grpo", model, save_steps=1)) == 0
    started = env_of("grpo")
    CheckpointTask.of({**TASK, "max_tokens": 30, "max_calls": 1}).save("model")
    capsys.readouterr()
    assert main(command("grpo", model, "--resume", save_steps=1, steps=2)) == 0
    assert "runs/grpo keeps the environment with which it started" in capsys.readouterr().out
    assert env_of("grpo") == started and len(records(Path("runs/grpo"))) == 2
    other = command("grpo", model, "--resume", "env.max_calls=1", save_steps=1, steps=3)
    assert main(other) == 2
    said = "can't be resumed with other settings (env.max_calls)"
    assert said in capsys.readouterr().err


def test_a_wrong_file_ends_a_run_before_it_begins_and_can_be_passed_over(model, capsys):
    record = {**CheckpointTask.of(TASK).to_json(), "faults": {}}
    Path("model", FILE).write_text(json.dumps(record))
    small = ("env.interpreter=false", "env.max_tokens=11")
    assert main(command("grpo", model, *small)) == 2
    err = capsys.readouterr().err
    assert f"model/{FILE}: 'faults': unknown key" in err and "--ignore-retool-json" in err
    assert not Path("runs").exists()
    assert main(command("grpo", model, *small, "--ignore-retool-json")) == 0
    assert env_of("grpo")["prompt_template"] == "{query}\n"  # the preset's


def test_another_revision_is_warned_of(model, capsys):
    record = {**CheckpointTask.of(TASK).to_json(), "revision": REVISION + 5}
    Path("model", FILE).write_text(json.dumps(record))
    assert main(command("grpo", model)) == 0
    assert f"episodes of revision {REVISION + 5}" in capsys.readouterr().out
    assert read_task("runs/grpo/checkpoint").revision == REVISION


def test_a_rewriters_task_is_not_the_cold_starts(model, capsys):
    assert main(["coldstart", f"model={model}", "data=none.jsonl"]) == 2
    captured = capsys.readouterr()
    assert "none.jsonl" in captured.err and "retool.json" not in captured.out + captured.err


# --- every trainer and export writes retool.json --------------------------------------------------


def task_in(folder):
    task = read_task(folder)
    assert task is not None, folder
    return task.id, task.rules["max_tokens"]


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("grpo", {"save_steps": 1, "export_steps": 1}),
        ("dapo", {"save_steps": 1, "lora_rank": 2}),
        ("ppo", {"save_steps": 1, "export_steps": 1, "critic_warmup": 0, "lora_rank": 2}),
    ],
)
def test_reinforcement_learning_writes_it_beside_every_model(algorithm, settings, model):
    Path("model", FILE).unlink()
    more = ("env.interpreter=false", "env.max_tokens=12")
    assert main(command(algorithm, model, *more, **settings)) == 0
    run = Path("runs", algorithm)
    folders = [run / "checkpoint", run / "trainer" / "checkpoint-1"]
    folders += [run / "checkpoints" / "1"] if "export_steps" in settings else []
    folders += [run / "adapter"] if "lora_rank" in settings else []
    assert [task_in(folder) for folder in folders] == [(ARITHMETIC, 12)] * len(folders)
    # The seal of a checkpoint for resuming includes the file.
    assert FILE in json.loads((run / "trainer" / "checkpoint-1" / "files.json").read_text())


def test_fine_tuning_writes_it_beside_every_model(model):
    Path("model", FILE).unlink()
    more = ("env.interpreter=false", "env.max_tokens=60", "save_steps=1")
    assert main(["sft", f"model={model}", "traces=4", "epochs=1", "batch_size=4", *more]) == 0
    assert task_in("runs/sft/checkpoint") == (ARITHMETIC, 60)
    assert task_in("runs/sft/trainer/checkpoint-1") == (ARITHMETIC, 60)
    data = ["data=runs/sft/traces.jsonl", "lora_rank=2", "name=lora"]
    assert main(["sft", f"model={model}", "epochs=1", "batch_size=4", *data, *more]) == 0
    assert task_in("runs/lora/adapter") == task_in("runs/lora/checkpoint") == (ARITHMETIC, 60)


# --- runs older than retool.json ------------------------------------------------------------------


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A run older than `retool.json`, with its initial model, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD, "old")
    monkeypatch.chdir("old")
    assert not list(Path().rglob(FILE))
    return ["grpo", "--preset", "preset.yaml", "name=old"]


def test_an_old_run_is_finished_and_goes_on(old, capsys):
    # A run of another revision is only resumed with --force.
    assert main([*old, "steps=2", "--resume", "--force"]) == 0
    assert not list(Path().rglob(FILE))  # a finished run stays as it is
    before = env_of("old")
    assert main([*old, "steps=3", "--resume", "--force"]) == 0
    assert [record["step"] for record in records(Path("runs/old"))] == [1, 2, 3]
    assert env_of("old") == before
    assert read_task("runs/old/checkpoint") == CheckpointTask.of(before)


def test_an_old_checkpoint_is_evaluated_and_trained_further(old, capsys):
    model = "runs/old/checkpoint"
    small = ("--problems", "2", "--k", "1", "--max-tokens", "8", "--text-only")
    assert retool(["eval", "--env", ARITHMETIC, "--model", model, *small, "--out", "o"]) == 0
    out = capsys.readouterr().out
    assert f"{model} has no retool.json" in out and f"{ARITHMETIC}, avg@1, 2 problems" in out
    assert main([*old, "name=further", f"model={model}", "steps=1"]) == 0
    assert env_of("further") == env_of("old")


def test_the_page_says_how_an_old_checkpoint_gets_its_file(old):
    env = json.loads(Path("runs/old/config.json").read_text())["settings"]["env"]
    CheckpointTask.of(env).save("runs/old/checkpoint")
    small = ("--problems", "2", "--k", "1", "--out", "o")
    assert retool(["eval", "--model", "runs/old/checkpoint", *small]) == 0
    [first, *_] = (record.transcript for record in read_episodes("o"))
    assert first.spans[0].text.startswith("Q Compute ")
