from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import pytest
from trl import GRPOConfig, SFTConfig

from agents import cispo, demo, dr_grpo, grpo, ppo, rft, sft
from agents.base.presets import PRESETS, load_settings, read_preset
from agents.base.registry import algorithms, load_algorithm
from agents.base.settings import SettingsError, describe, find_sandbox, help_of, setting
from agents.base.trl import check_trl
from agents.models.tiny import make_model
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
        ("steps", "write it as key=value"),
        ("steps=many", "steps must be int"),
        ("steps=1.5", "steps must be int"),
        ("steps=true", "steps must be int"),
        ("rate=fast", "rate must be float"),
        ("env=3", "env must be dict"),
        ("env={", "not YAML"),
        ("box=3", "box must be str or dict"),
        ("way=3", "way must be str"),
        ("way=bak", "there are there, back .did you mean 'back'"),
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


PROCESSES = {"qwen2.5-7b": 8, "qwen2.5-32b": 16}


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
    ("text", "said"),
    [
        ("model: m\n", "unknown setting 'model'"),  # the name of a file beside the algorithms
        ("engine: vllm\n", "unknown setting 'engine'"),
        ("losses: {a: 1}\n", "unknown setting 'losses'"),
        ("grpo: [1]\n", "section grpo must be a mapping"),
        ("steps: 1\nrate: 2\nsteps: 3\n", "the key 'steps' occurs twice"),
        ("grpo: {steps: 1}\nsft: {}\ngrpo: {rate: 2.0}\n", "'grpo' occurs twice"),
    ],
)
def test_no_key_of_a_preset_is_lost(tmp_path, text, said):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=said):
        load_settings(Some, "grpo", str(path), [])


@pytest.mark.parametrize("module", ["fields", "actor_critic", "builtins", "''"])
def test_what_settings_are_made_from_has_a_section_only_if_it_is_an_algorithm(tmp_path, module):
    path = tmp_path / "own.yaml"
    path.write_text(f"{module}: {{steps: 3}}\n")
    with pytest.raises(SettingsError, match="unknown setting"):
        load_settings(ppo.Settings, "ppo", str(path), [])


def test_a_default_of_its_own_leaves_a_setting_as_it_is_described():
    for name in ("clip_high", "correction", "name"):
        assert help_of(dr_grpo.Settings, name) == help_of(ppo.Settings, name) != ""
    assert help_of(grpo.Settings, "steps") != help_of(ppo.Settings, "steps")


def test_cispo_refuses_what_has_no_part_in_its_loss(tmp_path):
    settings = load_settings(cispo.Settings, "cispo", "tiny", ["ratio_cap=9"])
    with pytest.raises(SettingsError, match="ratio_cap has no effect with loss=cispo"):
        grpo.check_batch(settings, 1)
    settings = load_settings(cispo.Settings, "cispo", "tiny", ["clip_low=0.1"])
    with pytest.raises(SettingsError, match="does not use clip_low"):
        cispo.train(settings, tmp_path / "run")


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
    "trust_remote_code": "model",
    "vespo_k_pos": "loss=vespo",
    "entropy_target": "trl.use_adaptive_entropy=true",
    "ref_model_sync_steps": "trl.sync_ref_model=true",
}


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model, tokenizer = make_model(seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("field", REFUSED)
def test_fields_of_trls_without_effect_are_refused_with_the_setting_that_has_one(
    field, tiny_checkpoint, tmp_path
):
    pairs = [f"model={tiny_checkpoint}", f"trl.{field}=1", "steps=1", "prompts=1", "micro_batch=8"]
    settings = load_settings(grpo.Settings, "grpo", "tiny", pairs)
    with pytest.raises(SettingsError, match=rf"trl\.{field} has no effect .*{REFUSED[field]}"):
        grpo.train(settings, tmp_path / "run")


@pytest.mark.parametrize(
    ("field", "said"),
    [("assistant_only_loss", "data"), ("truncation_mode", "packing"), ("do_eval", "retool eval")],
)
def test_fields_of_trls_without_effect_on_a_cold_start_are_refused(field, said, tmp_path):
    settings = load_settings(sft.Settings, "sft", "tiny", [f"trl.{field}=true"])
    with pytest.raises(SettingsError, match=rf"trl\.{field} has no effect here: .*{said}"):
        sft.train(settings, tmp_path / "run")


def test_fields_of_trls_with_an_effect_are_taken():
    taken = {"generation_batch_size": 8, "steps_per_generation": 1, "num_iterations": 2}
    taken |= {"log_completions": True, "num_completions_to_print": 1, "adam_beta2": 0.9}
    check_trl(GRPOConfig, grpo.FIXED_FIELDS, taken, grpo.WITHOUT_EFFECT)


def test_the_fields_of_trls_that_are_refused_exist():
    for config, names in ((GRPOConfig, grpo.WITHOUT_EFFECT), (SFTConfig, sft.WITHOUT_EFFECT)):
        assert set(names) <= {field.name for field in fields(config)}
