"""A preset, its sections and the command line give a run's settings; no key is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from agents import demo, grpo, ppo, rft, sft
from agents.base.presets import PRESETS, load_settings, read_preset
from agents.base.registry import algorithms, load_algorithm
from agents.base.settings import SettingsError, setting


@dataclass(frozen=True)
class Some:
    rate: float = setting(1.0, "a rate")
    steps: int = setting(5, "how many")
    data: str | None = setting(None, "a file")
    deep: bool = setting(False, "a switch")
    env: dict[str, Any] = setting({"id": "x"}, "a mapping")


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


def test_unknown_presets_name_the_nearest():
    with pytest.raises(SettingsError, match="did you mean 'tiny'"):
        load_settings(Some, "grpo", "tinny", [])


PROCESSES = {"qwen2.5-7b": 8, "qwen2.5-32b": 16}


@pytest.mark.some(10)
@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
@pytest.mark.parametrize("name", algorithms())
def test_every_algorithm_takes_every_preset_and_can_share_out_its_batches(name, preset, tmp_path):
    algorithm = load_algorithm(name)
    settings = load_settings(algorithm.Settings, name, preset, [])
    assert settings.env["id"].startswith("ReTool-")
    processes = PROCESSES.get(preset, 1)
    if isinstance(settings, grpo.Settings):
        grpo.check_batch(settings, processes)
    elif name == "ppo":
        ppo.check(settings, processes)
    elif name == "sft":
        sft.check_batch(settings, processes)
    elif name == "rft":
        sft.check_batch(rft.round_tuning(settings, tmp_path, 0), processes)
    elif name == "demo":
        demo.check_stages(settings)


@pytest.mark.some(15)
@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
@pytest.mark.parametrize("name", algorithms())
def test_every_key_of_a_preset_is_used(name, preset):
    cls = load_algorithm(name).Settings
    values, others = read_preset(preset), set(algorithms()) - {name}
    settings = load_settings(cls, name, preset, [])
    for key, value in values.items():
        if key not in others and not isinstance(value, dict):
            assert getattr(settings, key) == values.get(name, {}).get(key, value), key


def test_the_main_jobs_cold_start_is_of_the_presets_model_and_problems():
    settings = load_settings(demo.Settings, "demo", "smollm2", [])
    env = {**settings.env, "interpreter": False}
    cold = demo.stage_settings(sft, settings, "x", env, model=demo.first_model(settings))
    assert cold.model == "runs/models/smollm2" and cold.lora_rank == 16
    assert cold.env["id"] == "ReTool-Arithmetic-v0" and cold.env["max_tokens"] == 320
    assert cold.env["interpreter"] is False
    assert demo.stage_settings(grpo, settings, "x", env, model="m").env["id"] == "ReTool-GSM8K-v0"


def test_what_is_set_for_a_job_holds_for_its_stages(tmp_path):
    settings = load_settings(demo.Settings, "demo", "tiny", ["model=other"])
    assert demo.first_model(settings) == "other"  # the preset's section sft has another
    rounds = load_settings(rft.Settings, "rft", "smollm2", ["lora_rank=4"])
    assert rft.round_tuning(rounds, tmp_path, 0).lora_rank == 4
    both = load_settings(rft.Settings, "rft", "smollm2", ["lora_rank=4", "sft.lora_rank=2"])
    assert rft.round_tuning(both, tmp_path, 0).lora_rank == 2


@pytest.mark.parametrize(
    ("module", "override"),
    [(demo, "grpo.model=x"), (demo, "sft.name=x"), (rft, "sft.data=x"), (rft, "sft.env.id=x")],
)
def test_what_a_job_sets_itself_is_refused_for_its_stages(module, override):
    name = module.__name__.rpartition(".")[2]
    with pytest.raises(SettingsError, match=rf"{override[:7]}.* follows from"):
        load_settings(module.Settings, name, "tiny", [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\n", "unknown setting 'model'"),  # a module of agents/base, not an algorithm
        ("engine: vllm\n", "unknown setting 'engine'"),
        ("losses: {a: 1}\n", "unknown setting 'losses'"),
        ("grpo: [1]\n", "section grpo must be a mapping"),
        ("steps: 1\nrate: 2\nsteps: 3\n", "the key 'steps' occurs twice"),
        ("grpo: {steps: 1}\nsft: {}\ngrpo: {rate: 2.0}\n", "'grpo' occurs twice"),
    ],
)
def test_no_key_of_a_preset_is_lost(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings(Some, "grpo", str(path), [])


@pytest.mark.parametrize("module", ["fields", "actor_critic", "builtins", "''"])
def test_what_settings_are_made_from_has_a_section_only_if_it_is_an_algorithm(tmp_path, module):
    path = tmp_path / "own.yaml"
    path.write_text(f"{module}: {{steps: 3}}\n")
    with pytest.raises(SettingsError, match="unknown setting"):
        load_settings(ppo.Settings, "ppo", str(path), [])


def test_what_is_no_yaml_and_no_seed_is_said(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [1")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("bad.yaml", "bytes.yaml"):
        with pytest.raises(SettingsError, match="is not YAML"):
            load_settings(sft.Settings, "sft", str(tmp_path / name), [])
    for value in ("abc", "-1"):
        with pytest.raises(SettingsError, match="seed must"):
            load_settings(sft.Settings, "sft", "tiny", [f"seed={value}"])


def test_sections_of_the_algorithms_that_one_is_made_from_come_first(tmp_path):
    preset = tmp_path / "own.yaml"
    preset.write_text("grpo: {steps: 7, prompts: 3, clip_high: 0.5}\ndr_grpo: {steps: 9}\n")
    settings = load_settings(load_algorithm("dr_grpo").Settings, "dr_grpo", str(preset), [])
    assert (settings.steps, settings.prompts) == (9, 3)
    assert settings.clip_high == 0.2  # its class has another default
