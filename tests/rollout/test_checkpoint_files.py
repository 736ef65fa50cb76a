"""A broken file of a model is named, whichever library finds it."""

from __future__ import annotations

import pytest

from agents.base.model import load_model
from agents.models.tiny import make_checkpoint
from retool_env.errors import SettingsError
from retool_env.rollout.checkpoint_files import broken_file, check_dtype, reading
from retool_env.rollout.transformers.policy import load_policy


@pytest.fixture
def folder(tmp_path):
    return make_checkpoint(tmp_path / "model", seed=0)


@pytest.mark.parametrize("load", [load_policy, lambda name: load_model(name, "float32")])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", 3000),
        ("tokenizer.json", 100),
        ("tokenizer.json", b'{"a": 1}'),
        ("config.json", 40),
    ],
)
def test_a_damaged_file_of_a_model_is_named(folder, load, name, content):
    path = folder / name
    path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(SettingsError, match=rf"{path} is damaged \(.*\): copy or save the model"):
        load(str(folder))


def test_a_sound_model_has_no_broken_file_and_other_errors_keep_their_reason(folder):
    assert broken_file(str(folder)) == broken_file("some/hub-id") == ""
    with pytest.raises(SettingsError, match="can't be loaded: RuntimeError: x y"), reading("a/b"):
        raise RuntimeError("x\n  y")
    for kept in (OSError, ImportError, MemoryError):
        with pytest.raises(kept), reading(str(folder)):
            raise kept


def test_data_types_of_weights_are_checked_before_a_model_is_read(folder):
    check_dtype("--dtype", "auto")
    for wrong in ("foo", "float99", "int8", "float8_e4m3fn", "nn"):
        with pytest.raises(SettingsError, match=f"dtype '{wrong}' is unknown: choose float32"):
            load_policy("missing", dtype=wrong)
        with pytest.raises(SettingsError, match=f"dtype: '{wrong}' is unknown"):
            load_model(str(folder), wrong)
