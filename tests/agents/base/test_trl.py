"""The setting `trl` takes the fields of TRL that have an effect, and refuses all others."""

from __future__ import annotations

import warnings
from dataclasses import fields
from types import SimpleNamespace

import pytest
from trl import GRPOConfig, SFTConfig

from agents import grpo, sft
from agents.base.presets import load_settings
from agents.base.settings import SettingsError
from agents.base.trl import check_trl, trl_config
from agents.models.tiny import make_checkpoint

REFUSED = {
    "vllm_importance_sampling_cap": "correction_cap",
    "vllm_importance_sampling_mode": "correction",
    "top_p": "temperature",
    "generation_kwargs": "engine",
    "use_vllm": "engine",
    "vllm_gpu_memory_utilization": "engine",
    "use_transformers_paged": "engine",
    "chat_template_kwargs": "env.protocol",
    "max_tool_calling_iterations": "env.max_calls",
    "num_train_epochs": "steps",
    "data_seed": "seed",
    "eval_strategy": "export_steps",
    "resume_from_checkpoint": "--resume",
    "ddp_timeout": "12 hours",
    "ddp_backend": "gloo on the CPU",
    "trust_remote_code": "model",
    "vespo_k_pos": "loss=vespo",
    "entropy_target": "trl.use_adaptive_entropy=true",
    "ref_model_sync_steps": "trl.sync_ref_model=true",
}


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("tiny"), seed=0))


@pytest.mark.parametrize("field", REFUSED)
def test_fields_of_trls_without_effect_are_refused_with_the_setting_that_has_one(
    field, tiny_checkpoint, tmp_path
):
    pairs = [f"model={tiny_checkpoint}", f"trl.{field}=1", "steps=1", "prompts=1", "micro_batch=8"]
    settings = load_settings(grpo.Settings, "grpo", "tiny", pairs)
    with pytest.raises(SettingsError, match=rf"trl\.{field} has no effect .*{REFUSED[field]}"):
        grpo.train(settings, tmp_path / "run")


@pytest.mark.parametrize(
    ("field", "cure"),
    [("assistant_only_loss", "data"), ("truncation_mode", "packing"), ("do_eval", "retool eval")],
)
def test_fields_of_trls_without_effect_on_a_cold_start_are_refused(field, cure, tmp_path):
    settings = load_settings(sft.Settings, "sft", "tiny", [f"trl.{field}=true"])
    with pytest.raises(SettingsError, match=rf"trl\.{field} has no effect here: .*{cure}"):
        sft.train(settings, tmp_path / "run")


def test_fields_of_trls_with_an_effect_are_taken():
    taken = {"generation_batch_size": 8, "steps_per_generation": 1, "num_iterations": 2}
    taken |= {"log_completions": True, "num_completions_to_print": 1, "adam_beta2": 0.9}
    check_trl(GRPOConfig, grpo.FIXED_FIELDS, taken, grpo.WITHOUT_EFFECT)


def test_the_fields_of_trls_that_are_refused_exist():
    for config, names in ((GRPOConfig, grpo.WITHOUT_EFFECT), (SFTConfig, sft.WITHOUT_EFFECT)):
        assert set(names) <= {field.name for field in fields(config)}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_reaches_trls_configuration_without_a_warning(checkpointing, tmp_path):
    """transformers renamed the field, and warns of the name that is deprecated."""
    pairs = [f"gradient_checkpointing={checkpointing}".lower()]
    run = SimpleNamespace(
        settings=load_settings(sft.Settings, "sft", "tiny", pairs), trainer=tmp_path
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        config = trl_config(SFTConfig, run, {}, {}, {})
    assert config.gradient_checkpointing is checkpointing
    for name in ("gradient_checkpointing", "seed", "trl_seed"):
        with pytest.raises(SettingsError, match=f"trl.{name}"):
            settings = load_settings(sft.Settings, "sft", "tiny", [f"trl.{name}=true"])
            trl_config(SFTConfig, SimpleNamespace(settings=settings, trainer=tmp_path), {}, {}, {})
