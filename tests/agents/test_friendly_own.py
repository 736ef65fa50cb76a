"""Users' own algorithms: their names, and the README's example, run from end to end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers.small_runs import make_small, records
from transformers import AutoModelForCausalLM

from agents import __main__ as cli
from agents.base import session
from agents.base.presets import load_settings
from agents.base.registry import load_algorithm, section_of
from agents.base.settings import SettingsError
from agents.models.tiny import make_checkpoint, make_tokenizer
from retool_env.problems import Problem, ProblemList
from retool_env.rules import Rules
from retool_env.transcript import check_transcript, read_transcripts

EXAMPLE = Path(__file__).parents[2] / "docs" / "reinforce.py"

OWN = """
from dataclasses import dataclass
from agents.base.settings import setting

@dataclass(frozen=True)
class Options:
    name: str = setting("own", "the run's folder")
    taste: float = setting(0.5, "of one's own")

class Own:
    Settings = Options

    def train(self, settings, folder, resume):
        print(settings.taste, folder, resume)
        return folder

made = Own()
number = 7

class Wanting(Own):
    def __init__(self, more): ...

class Lacking: ...
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "own_module.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "own_package" / "own_module.py"
    for name in ("own_package", "own_package.own_module"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["Own", "made"])
@pytest.mark.parametrize("place", ["own_package.own_module", "a file"])
def test_a_class_or_an_object_is_an_algorithm(place, name, package, tmp_path, capsys):
    place = str(package) if place == "a file" else place
    preset = tmp_path / "own.yaml"
    preset.write_text(f"{name}: {{taste: 0.7}}\nown_module: {{taste: 0.6}}\n")
    named = f"{place}:{name}"
    algorithm = load_algorithm(named)
    assert section_of(named, algorithm) == name
    command = [named, "--preset", str(preset), "--runs", str(tmp_path / "runs"), "--resume"]
    assert cli.main(command) == 0
    assert f"0.7 {tmp_path / 'runs' / 'own'} True" in capsys.readouterr().out
    assert cli.main([*command, "taste=0.9"]) == 0
    assert "0.9 " in capsys.readouterr().out
    assert cli.main([named, "--help"]) == 0
    assert "taste (float, 0.5): of one's own" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_package.own_module:Owm", "no 'Owm' in own_package.own_module .did you mean 'Own'"),
        ("own_package.own_module:Wanting", "can't be made without arguments"),
        ("own_package.own_module:Lacking", "a dataclass `Settings`, nor a function `train"),
        ("own_package.own_module:number", "is no algorithm"),
        ("own_package.own_module", "is no algorithm"),
        ("own_package.other:Own", "no algorithm 'own_package.other'.*path/to/file.py"),
        ("no_package:Own", "no algorithm 'no_package'"),
        ("no/file.py:Own", "there is no file"),
    ],
)
def test_what_is_no_algorithm_is_said(name, message, package, capsys):
    with pytest.raises(SettingsError, match=message):
        load_algorithm(name)
    assert cli.main([name]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_what_a_module_itself_lacks_is_not_mistaken_for_the_module(package):
    package.write_text("import something_else_that_is_missing")
    with pytest.raises(ModuleNotFoundError, match="something_else"):
        load_algorithm("own_package.own_module:Own")


def test_the_readmes_algorithm_runs_as_it_is_written(tmp_path):
    """From the command line, with programs in the real jail."""
    model = make_checkpoint(tmp_path / "model", seed=1)
    values = {"model": model, "steps": 2, "prompts": 2, "rollouts": 2, "env.max_tokens": 40}
    given = [f"{key}={value}" for key, value in values.items()]
    assert cli.main([str(EXAMPLE), "--runs", str(tmp_path / "runs"), *given]) == 0
    folder = tmp_path / "runs" / "reinforce"
    assert [record["step"] for record in records(folder)] == [1, 2]
    transcripts = list(read_transcripts(folder / "transcripts.jsonl"))
    assert len(transcripts) == 2 * 4
    for transcript in transcripts:
        check_transcript(transcript)
    assert AutoModelForCausalLM.from_pretrained(folder / "checkpoint").num_parameters() > 1000
    assert cli.main([str(EXAMPLE), "--runs", str(tmp_path / "runs"), *given]) == 2  # taken


def test_the_readmes_algorithm_learns(tmp_path, monkeypatch):
    """One token a turn: an even one is right. Within 20 steps nearly all are."""
    algorithm = load_algorithm(str(EXAMPLE))
    rules = Rules(
        interpreter=False,
        max_tokens=1,
        prompt_template="{query}",
        reward=lambda transcript: 1.0 if transcript.completion_ids[0] % 2 == 0 else -1.0,
    )
    problems = ProblemList(Problem(str(i), f"Compute {i}", "1") for i in range(4))
    monkeypatch.setattr(session, "find_task", lambda env: (rules, problems))
    model = make_small(tmp_path / "model")
    given = [f"model={model}", "steps=30", "prompts=4", "learning_rate=0.01"]
    settings = load_settings(algorithm.Settings, "reinforce", "tiny", given)

    def share_of_even(folder):
        trained, tokenizer = AutoModelForCausalLM.from_pretrained(folder), make_tokenizer()
        with torch.no_grad():
            rows = [trained(torch.tensor([tokenizer.encode(p.question)])).logits for p in problems]
        return torch.softmax(torch.cat(rows)[:, -1], -1)[:, ::2].sum(-1).min().item()

    assert share_of_even(model) < 0.8
    assert share_of_even(algorithm.train(settings, tmp_path / "run")) > 0.95
