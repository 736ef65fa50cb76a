"""Settings that name files and folders: unusable files are refused at once, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.small_runs import given, make_small
from test_files import KINDS, Make, huge

from agents import __main__ as cli
from agents.base.presets import load_settings
from agents.base.settings import SettingsError, build_settings
from agents.sft import Settings

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return make_small(tmp_path_factory.mktemp("model"))


PLACES = {
    "curriculum": ("grpo", {"curriculum": "{}"}),
    "curriculum of ppo": ("ppo", {"curriculum": "{}"}),
    "curriculum of dapo": ("dapo", {"curriculum": "{}"}),
    "traces": ("sft", {"data": "{}"}),
    "solutions": ("coldstart", {"data": "{}"}),
    "problems": ("grpo", {"env.id": "ReTool-JSONL-v0", "env.path": "{}"}),
    "prompt": ("grpo", {"env.prompt_template": "{}"}),
    "model": ("grpo", {"model": "{}"}),
    "model of sft": ("sft", {"model": "{}"}),
}


def refused(command: list[str], capsys) -> str:
    """The error text of a command that is refused."""
    assert cli.main(command) == 2
    return capsys.readouterr().err


@pytest.mark.some(12)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("make", "text"), [*KINDS, (huge, "longer than 64 MiB")])
def test_a_setting_that_names_no_regular_file(
    place: str, make: Make, text: str, model: str, tmp_path: Path, capsys
) -> None:
    path = make(tmp_path / "x.jsonl")
    if make is huge and ("prompt" in place or "model" in place):
        pytest.skip("these are read as a whole, or by others")
    name, own = PLACES[place]
    values = {"model": model, **{key: value.format(path) for key, value in own.items()}}
    preset = tmp_path / "preset.yaml"
    preset.write_text("env: {id: ReTool-Arithmetic-v0, max_tokens: 12}\n")
    pairs = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    if name not in ("sft", "coldstart", "dapo"):
        pairs = given(name, **values)
    command = [name, "--preset", str(preset), "--runs", str(tmp_path / "runs"), *pairs]
    message = refused(command, capsys)
    assert str(path) in message
    assert text in message or ("model" in place and "holds no model" in message)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("make", "text"), [*KINDS, (huge, "preset.yaml is larger than 16 MiB")])
def test_a_preset_that_is_no_file(make: Make, text: str, tmp_path: Path, capsys) -> None:
    path = make(tmp_path / "preset.yaml")
    message = refused(["sft", "--preset", str(path)], capsys)
    assert str(path) in message and text in message


@pytest.mark.parametrize(("make", "text"), KINDS)
def test_an_algorithm_that_is_no_file(make: Make, text: str, tmp_path: Path, capsys) -> None:
    path = make(tmp_path / "own.py")
    message = refused([str(path)], capsys)
    assert str(path) in message and text in message


def test_a_model_whose_tokenizer_is_a_pipe(tmp_path: Path, capsys) -> None:
    folder = Path(make_small(tmp_path / "model"))
    (folder / "tokenizer.json").unlink()
    KINDS[0][0](folder / "tokenizer.json")
    message = refused(["sft", "--runs", str(tmp_path / "runs"), f"model={folder}"], capsys)
    assert "tokenizer.json is a pipe, not a regular file" in message


# --- the name of a run ----------------------------------------------------------------------------


@pytest.mark.some(6)
@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "..",
        ".",
        "",
        "/tmp/evil",
        "a/",
        "a//b",
        "a/./b",
        f"a/{'x' * 201}",
        "a/../../b",
        "a\0b",
        "a\nb",
        "\x1b[31m",
        "x" * 201,
        "π" * 101,
        "\ud800",
    ],
    ids=repr,
)
def test_a_name_that_is_no_folders_is_refused(name: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SettingsError, match="can't be the name of a run"):
        build_settings(Settings, {"name": name})
    runs = tmp_path / "runs"
    message = refused(["sft", "--runs", str(runs), f"name={json.dumps(name)}"], capsys)
    assert "can't be the name of a run" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["x", "a.b", "..a", "a-b_c d", "π", "x" * 200, "π" * 100, "study/seed-1"]
)
def test_other_names_are_a_folders(name: str, tmp_path: Path) -> None:
    assert load_settings(Settings, "sft", "tiny", [f"name={json.dumps(name)}"]).name == name
    (tmp_path / name).mkdir(parents=True)


def test_the_names_of_an_algorithm_of_ones_own_are_checked(tmp_path: Path, capsys) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass Settings:\n    name: str = 'x'\n"
        "def train(settings, folder, resume=False):\n    folder.mkdir(parents=True)\n"
    )
    preset = tmp_path / "preset.yaml"
    preset.write_text("{}\n")
    command = [str(own), "--preset", str(preset), "--runs", str(tmp_path / "runs")]
    assert "can't be the name of a run" in refused([*command, "name=../evil"], capsys)
    assert not (tmp_path / "evil").exists()
    assert cli.main(command) == 0 and (tmp_path / "runs" / "x").is_dir()
