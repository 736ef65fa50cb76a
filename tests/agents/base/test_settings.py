from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from agents.base.presets import load_settings
from agents.base.settings import SettingsError, find_sandbox, setting
from retool_env.rules import Rules


@dataclass(frozen=True)
class Some:
    rate: float = setting(1.0, "a rate")
    steps: int = setting(5, "how many")
    data: str | None = setting(None, "a file")
    deep: bool = setting(False, "a switch")
    env: dict[str, Any] = setting({"id": "x"}, "a mapping")
    box: str | dict[str, Any] = setting("here", "a name or a mapping")
    way: Literal["there", "back"] = setting("there", "one of a few names")


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("rate: 1e-6\nenv: {id: y, max_calls: 3}\ngrpo: {steps: 7}\nsft: {steps: 9}\n")
    return str(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("step=3", "did you mean 'steps'"),
        ("stepz=3", "did you mean 'steps'"),
        ("steps", "write it as key=value"),
        ("steps=many", "steps must be int"),
        ("steps=1.5", "steps must be int"),
        ("steps=true", "steps must be int"),
        ("rate=fast", "rate must be float"),
        ("rate=nan", "rate must hold numbers, not nan"),
        ("env.width=.nan", "env must hold numbers"),
        ("env.widths=[1, .nan]", "env must hold numbers"),
        ("env=3", "env must be dict"),
        ("env={", "not YAML"),
        ("box=3", "box must be str or dict"),
        ("way=3", "way must be str"),
        ("way=bak", "choose from there, back .did you mean 'back'"),
    ],
)
def test_what_is_unknown_or_of_the_wrong_kind_is_refused(preset, override, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(Some, "grpo", preset, [override])


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
    for wrong, said in (
        ("nsjial", "'nsjial'"),
        ({"pakages": []}, "'pakages'"),
        ({"guests": 10**6}, "1 to 256"),
    ):
        with pytest.raises(SettingsError, match=f"sandbox: .*{said}"):
            find_sandbox(wrong, rules)
