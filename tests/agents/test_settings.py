from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from agents import demo, grpo, sft
from agents.settings import (
    PRESETS,
    SettingsError,
    describe,
    find_sandbox,
    load_settings,
    setting,
)
from retool_env.episode import Rules


@dataclass(frozen=True)
class Some:
    rate: float = setting(1.0, "a rate")
    steps: int = setting(5, "how many")
    data: str | None = setting(None, "a file")
    deep: bool = setting(False, "a switch")
    env: dict[str, Any] = setting({"id": "x"}, "a mapping")
    box: str | dict[str, Any] = setting("here", "a name or a mapping")


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("rate: 1e-6\nenv: {id: y, max_calls: 3}\ngrpo: {steps: 7}\nsft: {steps: 9}\n")
    return str(path)


def test_the_section_then_the_command_line_override_the_preset(preset):
    assert load_settings(Some, "grpo", preset, []) == Some(
        1e-6, 7, None, False, {"id": "y", "max_calls": 3}
    )
    assert load_settings(Some, "sft", preset, ["steps=2", "rate=3"]).steps == 2
    assert load_settings(Some, "sft", preset, ["env.max_calls=1"]).env == {
        "id": "y",
        "max_calls": 1,
    }
    assert load_settings(Some, "sft", preset, ["data=a.jsonl", "deep=true"]).data == "a.jsonl"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("step=3", "did you mean 'steps'"),
        ("stepz=3", "did you mean 'steps'"),
        ("steps", "no key=value"),
        ("steps=many", "steps must be int"),
        ("steps=1.5", "steps must be int"),
        ("steps=true", "steps must be int"),
        ("rate=fast", "rate must be float"),
        ("env=3", "env must be dict"),
        ("env={", "not YAML"),
        ("box=3", "box must be str or dict"),
    ],
)
def test_what_is_unknown_or_of_the_wrong_kind_is_refused(preset, override, said):
    with pytest.raises(SettingsError, match=said):
        load_settings(Some, "grpo", preset, [override])


def test_unknown_presets_name_the_nearest():
    with pytest.raises(SettingsError, match="did you mean 'tiny'"):
        load_settings(Some, "grpo", "tinny", [])


def test_a_name_or_a_mapping(preset):
    assert load_settings(Some, "grpo", preset, ["box=there"]).box == "there"
    for overrides in (['box={name: there, list: ["a"]}'], ["box.name=there", "box.list=[a]"]):
        box = load_settings(Some, "grpo", preset, overrides).box
        assert box == {"name": "there", "list": ["a"]}


def test_the_sandbox_of_a_setting():
    rules, setting = Rules(max_tokens=9), {"packages": ["numpy"], "guests": 1}
    with find_sandbox(setting, rules) as sandbox:
        assert sandbox.packages == ("numpy",)
        assert sandbox.run("import numpy; print(numpy.int64(7))").stdout == "7\n"
    assert find_sandbox("nothing at all", Rules(interpreter=False)) is None
    for wrong, said in (("nsjial", "'nsjial'"), ({"pakages": []}, "'pakages'")):
        with pytest.raises(SettingsError, match=f"sandbox: .*{said}"):
            find_sandbox(wrong, rules)


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("module", [sft, grpo], ids=["sft", "grpo"])
def test_every_preset_loads(path, module):
    name = module.__name__.rpartition(".")[2]
    settings = load_settings(module.Settings, name, path.stem, [])
    assert settings.env["id"].startswith("ReTool-")


@pytest.mark.parametrize("module", [sft, grpo, demo])
def test_every_setting_is_described(module):
    for line in describe(module.Settings).splitlines():
        assert not line.endswith(": "), line


def test_what_is_no_yaml_and_no_seed_is_said(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [1")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("bad.yaml", "bytes.yaml"):
        with pytest.raises(SettingsError, match="is not YAML"):
            load_settings(sft.Settings, "sft", str(tmp_path / name), [])
    for value in ("abc", "-1"):
        with pytest.raises(SettingsError, match="seed must"):
            load_settings(sft.Settings, "sft", "tiny", [f"seed={value}"])
