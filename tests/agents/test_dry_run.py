"""`python -m agents ALGORITHM --dry-run` prints the settings, checks them, and starts nothing."""

import dataclasses
import json
from pathlib import Path

import pytest
from helpers.small_runs import given, make_small

from agents.__main__ import main
from agents.base.presets import load_settings
from agents.base.registry import algorithms, load_algorithm
from agents.base.run import Run, dry_run
from retool_env.checkpoint_task import CheckpointTask
from retool_env.key_values import load_yaml
from retool_env.problems.procedural import Arithmetic

TASK = {"id": "ReTool-Arithmetic-v0", "interpreter": False, "max_tokens": 30}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model():
    """A small model that carries its task."""
    make_small("model")
    CheckpointTask.of(TASK).save("model")
    return "./model"


def pairs_of(algorithm, model):
    """`key=value` of a run that could begin."""
    if algorithm == "demo":
        return []
    if algorithm == "coldstart":
        row = {"messages": [{"role": "user", "content": "1+1?"}]}
        row["messages"].append({"role": "assistant", "content": "<answer>\\boxed{2}</answer>"})
        Path("data.jsonl").write_text(json.dumps({**row, "answer": "2"}))
        return ["data=data.jsonl", "sandbox=unsafe"]
    return given(algorithm, model=model)


@pytest.mark.parametrize("name", algorithms())
def test_the_settings_are_printed_as_a_preset_and_nothing_is_made(name, model, capsys):
    pairs = pairs_of(name, model)
    command = [name, "--ignore-retool-json", *pairs]
    assert main([*command, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert not Path("runs").exists()
    wanted = load_settings(load_algorithm(name).Settings, name, "tiny", pairs)
    assert load_yaml(printed) == dataclasses.asdict(wanted)
    Path("merged.yaml").write_text(printed)
    assert load_settings(type(wanted), name, "merged.yaml", []) == wanted


def test_what_was_merged_from_a_models_task_and_the_command_line_comes_back(model, capsys):
    command = ["grpo", *given("grpo", model=model), "env.max_tokens=20", "--dry-run"]
    assert main(command) == 0
    first, said = capsys.readouterr()
    assert load_yaml(first)["env"]["max_tokens"] == 20
    assert "retool.json: task" in said  # on the other stream
    Path("merged.yaml").write_text(first)
    again = ["grpo", "--preset", "merged.yaml", "--ignore-retool-json", "--dry-run"]
    assert main(again) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("micro_batch=3", "micro_batch=3 does not divide"),
        ("learning_rate=9.0", "far too high"),
        ("trl.top_p=0.5", "trl.top_p has no effect"),
        ("engine=vllms", "engine: 'vllms' is unknown"),
        ("model=runs/none/checkpoint", "holds no model"),
        ("staleness=99999999999", "staleness must be at most 100"),
        ("env.size=100000000000000000000", "env: size must be a whole number from 1 to 100000000"),
        ("trl.bf16=no", "trl.bf16 must be bool or null"),
        ("loss=foo", "loss=foo: choose from grpo"),
        ("dtype=float99", "dtype: 'float99' is unknown"),
    ],
)
def test_a_mistake_is_said_as_the_run_would(mistake, message, model, capsys):
    assert main(["grpo", *given("grpo", model=model), mistake, "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert message in err and load_yaml(out)["name"] == "grpo"
    assert not Path("runs").exists()


def test_a_run_that_can_not_go_on_like_that_is_found_and_left_as_it_is(model, capsys):
    command = ["grpo", *given("grpo", model=model), "steps=1"]
    assert main(command) == 0
    files = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    for more, status in ((["--resume"], 0), (["--resume", "steps=2"], 0), ([], 2)):
        assert main([*command, *more, "--dry-run"]) == status
    assert main([*command, "--resume", "seed=7", "--dry-run"]) == 2
    assert "other settings (seed)" in capsys.readouterr().err
    assert main([*command, "--resume", "--force", "--dry-run"]) == 2
    assert "leave --force out" in capsys.readouterr().err
    assert files == {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}


def test_a_run_and_its_folder_are_not_taken_for_others(model, capsys):
    assert main(["grpo", *given("grpo", model=model), "steps=1", "name=r"]) == 0
    assert main(["sft", "name=r", "--resume", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "runs/r is a run of grpo, which sft can't continue: choose another name=" in said
    assert main(["grpo", *given("grpo", model="runs/r"), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "runs/r is the folder of a training run: name its model, runs/r/checkpoint" in said


def test_a_long_run_is_checked_in_seconds(model, monkeypatch):
    """The problem of an id is drawn once, however often the run trains on it."""
    draws = []
    original = Arithmetic.__getitem__

    def counting(self, index):
        draws.append(index)
        return original(self, index)

    monkeypatch.setattr(Arithmetic, "__getitem__", counting)
    assert (
        main(["grpo", *given("grpo", model=model), "env.size=50", "steps=5000", "--dry-run"]) == 0
    )
    assert len(draws) <= 150


def test_a_run_starts_again_after_a_dry_one():
    settings = load_settings(load_algorithm("sft").Settings, "sft", "tiny", [])
    with dry_run():
        Run(Path("runs/a"), settings, False).start()
        pytest.fail("it started")
    assert not Path("runs").exists()
    Run(Path("runs/a"), settings, False).start()
    assert Path("runs/a/config.json").exists()
