"""Algorithms are found by their files; a user's own are named by a path, a module or an object."""

from __future__ import annotations

import sys

import pytest

from agents import __main__ as cli
from agents.base.registry import algorithms, load_algorithm, section_of
from agents.base.settings import SettingsError

DATACLASS = "from dataclasses import dataclass\n@dataclass\n"

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
@pytest.mark.parametrize("source", ["own_package.own_module", "a file"])
def test_a_class_or_an_object_is_an_algorithm(source, name, package, tmp_path, capsys):
    source = str(package) if source == "a file" else source
    preset = tmp_path / "own.yaml"
    preset.write_text(f"{name}: {{taste: 0.7}}\nown_module: {{taste: 0.6}}\n")
    named = f"{source}:{name}"
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
        ("own_package.own_module:Owm", "does not define 'Owm' .did you mean 'Own'"),
        ("own_package.own_module:Wanting", "can't be made without arguments"),
        ("own_package.own_module:Lacking", "a dataclass `Settings` and a function `train"),
        ("own_package.own_module:number", "is not an algorithm"),
        ("own_package.own_module", "is not an algorithm"),
        ("own_package.other:Own", "no algorithm 'own_package.other'.*path/to/file.py"),
        ("no_package:Own", "no algorithm 'no_package'"),
        ("no/file.py:Own", "no/file.py"),
    ],
)
def test_an_object_that_is_not_an_algorithm_is_refused(name, message, package, capsys):
    with pytest.raises(SettingsError, match=message):
        load_algorithm(name)
    assert cli.main([name]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_missing_import_of_a_module_is_not_mistaken_for_the_module(package):
    package.write_text("import something_else_that_is_missing")
    with pytest.raises(ModuleNotFoundError, match="something_else"):
        load_algorithm("own_package.own_module:Own")


def test_the_folders_algorithms_are_found_and_its_helpers_are_not():
    names = {"grpo", "dapo", "dr_grpo", "gspo", "rloo", "ppo", "sft", "rft", "demo"}
    assert names <= set(algorithms())
    assert not {"advantages", "losses", "base", "tiny", "__main__"} & set(algorithms())


@pytest.mark.parametrize(
    ("text", "lacking"),
    [
        ("", "lacks a dataclass `Settings` and a function `train"),
        ("class Settings: name = 1\ndef train(): ...", "lacks a dataclass `Settings`"),
        (f"{DATACLASS}class Settings: name: str = 'x'", "lacks a function `train"),
        (f"{DATACLASS}class Settings: x: int = 1\ndef train(): ...", "lacks a field `name`"),
    ],
)
def test_an_error_names_the_parts_that_an_algorithm_lacks(text, lacking, tmp_path):
    (tmp_path / "lacking.py").write_text(text)
    with pytest.raises(SettingsError, match=lacking):
        load_algorithm(str(tmp_path / "lacking.py"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dap", "did you mean 'dapo'"),
        ("engine", "no algorithm"),
        ("a/b.py", "a/b.py"),
        ("a.b", "imported"),
    ],
)
def test_an_unknown_name_is_an_error_of_the_command(name, message, capsys):
    assert cli.main([name]) == 2
    assert message in capsys.readouterr().err
