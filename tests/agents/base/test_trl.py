"""The setting `trl` takes the fields of TRL that have an effect, and refuses all others."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import fields

import pytest
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from agents import demo, grpo, rft, sft
from agents.base.presets import load_settings
from agents.base.run import dry_run
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


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("bf16=no", "trl.bf16 must be bool or null, not 'no'"),
        ("fp16=1", "trl.fp16 must be true or false, not 1"),
        ("full_determinism=no", "trl.full_determinism must be true or false"),
        ("weight_decay=abc", "trl.weight_decay must be float, not 'abc'"),
        ("weight_decay=-1", "trl.weight_decay must be at least 0, not -1"),
        ("max_grad_norm=.nan", "trl must hold numbers"),
        ("max_grad_norm=.inf", "trl.max_grad_norm must be a finite number"),
        ("adam_beta2=5", "trl.adam_beta2 must be at least 0 and below 1, not 5"),
        ("adam_beta1=null", "trl.adam_beta1 must be float"),
        ("adam_epsilon=0", "trl.adam_epsilon must be above 0"),
        ("label_smoothing_factor=2", "trl.label_smoothing_factor must be from 0 to 1"),
        ("dataloader_num_workers=1.5", "trl.dataloader_num_workers must be int"),
        ("lr_scheduler_type=cosin", "trl: .*cosin"),
        ("lr_scheduler_kwargs.min_rate=0.1", "trl.lr_scheduler_kwargs: .*min_rate"),
        ("loss_type=foo", "trl.loss_type='foo': choose from nll, dft"),
        ("trackio_static_space_id=3", "trl.trackio_static_space_id must be str or null or bool"),
    ],
)
def test_values_of_trls_fields_are_checked_before_the_run_starts(pair, said, tmp_path):
    with pytest.raises(SettingsError, match=said):
        sft.train(load_settings(sft.Settings, "sft", "tiny", [f"trl.{pair}"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("loss=dapoo", "loss=dapoo: choose from grpo, .* .did you mean 'dapo'"),
        ("trl.importance_sampling_level=foo", "importance_sampling_level=foo: choose from token"),
        ("trl.num_iterations=0", "trl.num_iterations must be above 0"),
    ],
)
def test_values_that_trl_refuses_only_after_rollouts_are_refused_at_once(
    pair, said, tiny_checkpoint, tmp_path
):
    pairs = [f"model={tiny_checkpoint}", pair, "steps=1", "prompts=1", "micro_batch=8"]
    with pytest.raises(SettingsError, match=said), dry_run():
        grpo.train(load_settings(grpo.Settings, "grpo", "tiny", pairs), tmp_path / "run")


def test_stages_of_a_job_check_trls_fields_before_the_first_stage(tmp_path):
    for module, key, pair in (
        (demo, "demo", "sft.trl.bf16=no"),
        (demo, "demo", "grpo.trl.adam_beta1=1"),
        (rft, "rft", "sft.trl.bf16=no"),
    ):
        settings = load_settings(module.Settings, key, "tiny", [pair, "model=tiny"])
        with pytest.raises(SettingsError, match=r"trl\.(bf16|adam_beta1) must be"):
            module.train(settings, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_the_losses_are_trls(tiny_checkpoint):
    """A name in the list that TRL lacks would pass the check and fail after the rollouts."""
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert all(f'"{loss}"' in source for loss in grpo.LOSSES)
    assert all(f'"{loss}"' in inspect.getsource(SFTTrainer.__init__) for loss in sft.LOSSES)


def test_fields_of_trls_with_an_effect_are_taken():
    taken = {"generation_batch_size": 8, "steps_per_generation": 1, "num_iterations": 2}
    taken |= {"log_completions": True, "num_completions_to_print": 1, "adam_beta2": 0.9}
    taken |= {"bf16": None, "weight_decay": 0, "save_total_limit": None, "max_grad_norm": 0.5}
    check_trl(GRPOConfig, grpo.FIXED_FIELDS, taken, grpo.WITHOUT_EFFECT)


def test_the_fields_of_trls_that_are_refused_exist():
    for config, names in ((GRPOConfig, grpo.WITHOUT_EFFECT), (SFTConfig, sft.WITHOUT_EFFECT)):
        assert set(names) <= {field.name for field in fields(config)}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_reaches_trls_configuration_without_a_warning(checkpointing, tmp_path):
    """transformers renamed the field, and warns of the name that is deprecated."""
    pairs = [f"gradient_checkpointing={checkpointing}".lower()]
    settings = load_settings(sft.Settings, "sft", "tiny", pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        config = trl_config(SFTConfig, settings, tmp_path, {}, {}, {})
    assert config.gradient_checkpointing is checkpointing
    for name in ("gradient_checkpointing", "seed", "trl_seed"):
        with pytest.raises(SettingsError, match=f"trl.{name}"):
            settings = load_settings(sft.Settings, "sft", "tiny", [f"trl.{name}=true"])
            trl_config(SFTConfig, settings, tmp_path, {}, {}, {})
