"""The presets of the paper's size: their values, and the division among their machines."""

from __future__ import annotations

import importlib

import pytest

from agents import grpo, ppo, sft
from agents.base.presets import load_settings
from retool_env.rules import Rules

SHARED = {
    "dtype": "float32",
    "gradient_checkpointing": True,
    "env": {"id": "ReTool-DAPO-v0", "max_tokens": 16_384},
}
GRPO = {
    "rollouts": 16,
    "learning_rate": 1e-6,
    "loss": "dapo",
    "clip_low": 0.2,
    "clip_high": 0.28,
    "ratio_cap": 10.0,
    "kl": 0.0,
    "temperature": 1.0,
}
PPO = {
    "steps": 400,
    "prompts": 1024,
    "rollouts": 1,
    "mini_batch": 512,
    "learning_rate": 1e-6,
    "critic_learning_rate": 2e-6,
    "critic_warmup": 20,
    "gamma": 1.0,
    "lam": 1.0,
    "clip_low": 0.2,
    "clip_high": 0.28,
    "dual_clip": 10.0,
    "kl": 0.0,
    "temperature": 1.0,
}
BATCHES = {  # optimizer steps, problems of one, and episodes of a batch
    "qwen2.5-7b": {"steps": 200 * 64 // 16, "prompts": 16, "batch": 64 * 16},
    "qwen2.5-32b": {"steps": 150 * 512 // 64, "prompts": 64, "batch": 512 * 16},
}
CALLS = {"qwen2.5-7b": 15, "qwen2.5-32b": 7}  # of 16 and 8 turns, the last one answers
PROCESSES = {"qwen2.5-7b": 8, "qwen2.5-32b": 16}


def load(preset, algorithm, *overrides):
    module = importlib.import_module(f"agents.{algorithm}")
    return load_settings(module.Settings, algorithm, preset, overrides)


def assert_has(settings, values):
    for name, value in values.items():
        found = getattr(settings, name)
        if isinstance(value, dict):
            found = {key: found[key] for key in value}
        assert found == value, name


@pytest.mark.parametrize("preset", sorted(PROCESSES))
@pytest.mark.parametrize("algorithm", ["sft", "grpo", "dapo", "ppo"])
def test_the_values_are_the_papers_or_the_recipes(preset, algorithm):
    settings = load(preset, algorithm)
    assert_has(settings, SHARED)
    rules = {key: value for key, value in settings.env.items() if key != "id"}
    assert Rules(**rules).max_calls == CALLS[preset]
    processes = PROCESSES[preset]
    if algorithm == "sft":
        assert settings.epochs == 2 and settings.model.startswith("Qwen/Qwen2.5-")
        assert settings.model.endswith(f"{preset.removeprefix('qwen2.5-').upper()}-Instruct")
        micro, passes = sft.check_batch(settings, processes)
        assert (micro * processes, passes) == (settings.batch_size, 1)
        return
    assert settings.engine["name"].startswith("http") and settings.engine["weights_folder"]
    assert settings.export_dtype == "bfloat16"
    if algorithm == "ppo":
        assert settings.save_steps == 1  # a step is a batch
        assert_has(settings, PPO)
        ppo.check(settings, processes)
        return
    assert_has(settings, GRPO)
    batches = BATCHES[preset]
    assert (settings.steps, settings.prompts) == (batches["steps"], batches["prompts"])
    assert grpo.check_batch(settings, processes) == (settings.prompts * 16 // processes, 1)
    batch = settings.trl["generation_batch_size"]
    assert settings.save_steps * settings.prompts * 16 == batch
    assert batch == batches["batch"] and batch % (settings.prompts * 16) == 0
    assert batch // 16 % processes == 0  # whole groups a process
    if algorithm == "dapo":
        assert settings.overlong == 0.2 and settings.resample > 0


@pytest.mark.parametrize("preset", sorted(PROCESSES))
def test_each_process_samples_whole_groups_as_trl_counts_them(preset, monkeypatch, tmp_path):
    from trl import GRPOConfig

    settings = load(preset, "grpo")
    processes = PROCESSES[preset]
    micro_batch, passes = grpo.check_batch(settings, processes)
    monkeypatch.setattr(GRPOConfig, "world_size", property(lambda _: processes))
    config = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=passes,
        num_generations=settings.rollouts,
        bf16=False,
        use_cpu=True,
        report_to="none",
        **settings.trl,
    )
    # Of so many optimizer steps, each batch is one.
    assert config.steps_per_generation % config.gradient_accumulation_steps == 0
    steps = config.steps_per_generation // config.gradient_accumulation_steps
    assert steps == {"qwen2.5-7b": 4, "qwen2.5-32b": 8}[preset]
    assert config.steps_per_generation * micro_batch % settings.rollouts == 0


def test_the_sft_batch_is_of_all_processes():
    settings = load("qwen2.5-7b", "sft")
    with pytest.raises(sft.SettingsError, match="batch_size=32 traces a step are not divided by 5"):
        sft.check_batch(settings, 5)
    with pytest.raises(sft.SettingsError, match=r"8 processes \* micro_batch=3"):
        sft.check_batch(load("qwen2.5-7b", "sft", "tokens=0", "micro_batch=3"), 8)
    assert sft.check_batch(load("qwen2.5-7b", "sft"), 8) == (4, 1)
