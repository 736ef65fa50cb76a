"""The checkpoint that a command line names."""

import argparse

import pytest

from retool_env.commands.checkpoints import checkpoint_task, with_test_split
from retool_env.errors import MissingFile


@pytest.mark.parametrize(
    "model", ["./none", "/none", "~none", "runs/none", "runs/tiny/checkpoint", "a/b/c"]
)
def test_a_mistyped_folder_is_not_looked_for_on_the_hub(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("retool_env.checkpoint_task.read_task", lambda *_: pytest.fail("asked"))
    arguments = argparse.Namespace(model=model, ignore_retool_json=False)
    message = f"the checkpoint folder '{model}' does not exist; .*runs/NAME/checkpoint"
    with pytest.raises(MissingFile, match=message):
        checkpoint_task(arguments)


@pytest.mark.parametrize("model", ["org/model", "model"])
def test_a_hub_id_is_looked_for(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr("retool_env.checkpoint_task.read_task", lambda name, _: asked.append(name))
    checkpoint_task(argparse.Namespace(model=model, ignore_retool_json=False))
    assert asked == [model]


def test_held_out_problems_are_taken_unless_a_split_is_named():
    arithmetic = "ReTool-Arithmetic-v0"
    assert with_test_split(arithmetic, {"difficulty": 1}) == {"difficulty": 1, "split": "test"}
    assert with_test_split(arithmetic, {"split": "train"}) == {"split": "train"}
    assert with_test_split("ReTool-JSONL-v0", {"path": "x"}) == {"path": "x"}
