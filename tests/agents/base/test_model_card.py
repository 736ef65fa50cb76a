"""The model card of a checkpoint: of the run's settings and records, with a header for a hub."""

import json
import re
from pathlib import Path

import pytest
import yaml
from helpers.small_runs import make_small, settings

from agents import grpo
from agents.base.model_card import Base, ModelCard, base_of
from retool_env.checkpoint_task import CheckpointTask
from retool_env.evaluation.identity import weights_hash

TASK = CheckpointTask.of({"id": "ReTool-Arithmetic-v0", "max_tokens": 99, "difficulty": 3})


def header_of(folder):
    text = (folder / "README.md").read_text()
    return yaml.safe_load(re.match(r"---\n(.*?)\n---", text, re.DOTALL)[1]), text


def card(folder, **settings):
    values = {"name": "mine", "model": "org/base", "seed": 7, "learning_rate": 1e-4, **settings}
    return ModelCard("grpo", values, TASK, folder)


def test_a_card_tells_base_task_training_and_how_to_evaluate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [{"step": step, "reward": step / 10, "env/accuracy": 0.5} for step in (1, 2, 3)]
    lines.insert(2, {"step": 2, "eval/accuracy": 0.75})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    Path("metrics.jsonl").write_text(text + '{"step": 4, "rew')
    Path("checkpoint").mkdir()
    card(tmp_path).save(tmp_path / "checkpoint", 2)
    header, text = header_of(Path("checkpoint"))
    assert header["library_name"] == "transformers" and header["base_model"] == "org/base"
    assert {"retool-env", "grpo"} <= set(header["tags"]) and "license" not in header
    for line in (
        *("| environment | ReTool-Arithmetic-v0 |", "| max_tokens | 99 |", "| difficulty | 3 |"),
        *("| protocol | tags |", "| steps | 2 |", "| seed | 7 |", "| reward | 0.2 |"),
        *("learning_rate: 0.0001", "retool eval --model checkpoint", "| transformers | "),
        *("of step 2, of held-out problems", "| eval/accuracy | 0.75 |"),
    ):
        assert line in text, line
    assert "None" not in text
    card(tmp_path).save(tmp_path / "checkpoint")  # anew, of the last whole step
    text = header_of(Path("checkpoint"))[1]
    assert "| steps | 3 |" in text and "held-out" not in text


def test_a_prompt_or_a_name_cannot_break_the_card(tmp_path):
    prompt = "```\n{query}\n````\n"
    task = CheckpointTask.of({"id": "ReTool-Arithmetic-v0", "prompt_template": prompt})
    text = ModelCard("x", {"name": "a|b"}, task, tmp_path).text(tmp_path)
    assert f"`````\n{prompt}`````" in text and "| run | a&#124;b |" in text


def test_the_base_and_its_licence_come_from_its_card(tmp_path):
    (tmp_path / "README.md").write_text("---\nbase_model: org/m\nlicense: mit\n---\nText.\n")
    assert base_of(str(tmp_path)) == Base("org/m", "mit")
    text = card(tmp_path, model=str(tmp_path)).text(tmp_path)
    header = yaml.safe_load(text.split("---")[1])
    assert (header["base_model"], header["license"]) == ("org/m", "mit")
    assert "which comes from `org/m`" in text
    # A folder is not an id, so a hub could not follow it.
    (tmp_path / "README.md").write_text("no header")
    assert base_of(str(tmp_path)) == Base()
    assert "base_model" not in card(tmp_path, model=str(tmp_path)).text(tmp_path).split("---")[1]


@pytest.mark.parametrize("text", ["---\n[\n---\n", "---\n- a\n---\n", "---\nlicense: [1]\n---\n"])
def test_a_damaged_card_of_the_base_is_passed_over(text, tmp_path):
    (tmp_path / "README.md").write_text(text)
    assert base_of(str(tmp_path)) == Base()


def test_evaluations_of_these_weights_are_shown_and_no_others(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    for name, weights in (("first", weights_hash(checkpoint)), ("second", "other")):
        (tmp_path / name).mkdir()
        record = {"env": f"Env-{name}", "problems": 3, "k": 4, "model": {"weights": weights}}
        (tmp_path / name / "eval.json").write_text(json.dumps(record))
        figure = {"key": "accuracy/avg@4", "mean": 0.5, "low": 0.25, "high": None}
        figures = {"figures": [figure, {**figure, "key": "use/other"}]}
        (tmp_path / name / "figures.json").write_text(json.dumps(figures))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "figures.json").write_text("{")
    text = card(tmp_path).text(checkpoint)
    assert "## Evaluation: Env-first, 3 problems, k = 4" in text
    assert "| accuracy/avg@4 | 0.500 |" in text and "Env-second" not in text


def test_every_checkpoint_of_a_run_has_our_card(tmp_path):
    model = make_small(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nbase_model: a/b\n---\n")
    often = {"steps": 2, "save_steps": 1, "export_steps": 1, "lora_rank": 2}
    given = settings("grpo", model=model, name="small", **often)
    run = tmp_path / "runs" / "small"
    grpo.train(given, run)
    folders = [run / "checkpoint", run / "adapter", run / "trainer", run / "checkpoints" / "1"]
    for folder in [*folders, *run.glob("trainer/checkpoint-*")]:
        header, text = header_of(folder)
        assert header["base_model"] == "a/b" and "retool-env" in header["tags"], folder
        assert "| algorithm | grpo |" in text and "None" not in text
        assert "TRL" not in text.partition("Settings:")[0]
    assert header_of(run / "adapter")[0]["library_name"] == "peft"
    assert "retool eval --model" in header_of(run / "adapter")[1]
