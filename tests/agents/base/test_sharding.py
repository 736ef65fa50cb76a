"""FSDP2: the launch files and accelerate agree, and unsupported options are refused."""

from __future__ import annotations

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from helpers import ROOT

from agents.base import sharding
from agents.base.settings import SettingsError

LAUNCH = ROOT / "agents" / "launch"


@pytest.mark.parametrize("name", sorted(path.name for path in LAUNCH.iterdir()))
def test_the_launchers_files_say_what_accelerate_understands(name, monkeypatch):
    parser = launch_command_parser()
    more = ["--machine_rank", "1", "--main_process_ip", "trainer-0"] if name[0] == "2" else []
    arguments = parser.parse_args(["--config_file", str(LAUNCH / name), *more, "-m", "agents"])
    config = yaml.safe_load((LAUNCH / name).read_text())
    assert config["fsdp_config"].keys() <= vars(arguments).keys()
    arguments, *_ = _validate_launch_command(arguments)
    monkeypatch.setattr(arguments, "num_processes", config["num_processes"])
    environment = prepare_multi_gpu_env(arguments)
    for key, value in config["fsdp_config"].items():
        found = environment[key.upper()]
        assert found == (value if isinstance(value, str) else str(value).lower())
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["ACCELERATE_MIXED_PRECISION"] == config["mixed_precision"]
    assert int(arguments.nproc_per_node) * config["num_machines"] == config["num_processes"]


def test_what_fsdp_can_not_do_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(SettingsError, match="fsdp_version: 2"):
        sharding.prepare_sharding()
    monkeypatch.setenv("FSDP_VERSION", "2")
    sharding.prepare_sharding()
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")
    with pytest.raises(SettingsError, match="set gradient_checkpointing=true"):
        sharding.prepare_sharding()
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    sharding.prepare_sharding()
