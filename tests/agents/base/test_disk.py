"""The room for checkpoints and models, before a run starts."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers.small_runs import make_small, settings
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from agents import grpo, ppo
from agents.base.disk import (
    GIB,
    SHUTDOWN_TIME,
    DiskNeed,
    check_disk,
    check_time,
    disk_need,
    naming,
)
from agents.base.settings import SettingsError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        pytest.param(grpo, {"lora_rank": 64}, marks=pytest.mark.slow),
        (ppo, {"export_dtype": "bfloat16"}),
    ],
)
def test_the_need_is_what_a_run_writes(module, kind, folder, tmp_path):
    """The files also hold the names of tensors."""
    name = module.__name__.rpartition(".")[2]
    chosen = settings(name, model=folder, steps=2, save_steps=1, export_steps=1, **kind)
    need = disk_need(chosen, AutoModelForCausalLM.from_pretrained(folder))
    module.train(chosen, tmp_path / "run")
    [checkpoint] = (tmp_path / "run" / "trainer").glob("checkpoint-*")
    weights = [p for p in checkpoint.rglob("*") if p.suffix in (".safetensors", ".bin", ".pt")]
    assert need.checkpoint == pytest.approx(sum(p.stat().st_size for p in weights), rel=0.15)
    models = [tmp_path / "run" / "checkpoint", *(tmp_path / "run" / "checkpoints").glob("[0-9]*")]
    assert (need.checkpoints, need.models) == (2, len(models))
    saved = [tmp_path / "run" / "checkpoint", tmp_path / "run" / "adapter"]
    sizes = [path.stat().st_size for part in saved for path in part.glob("*.safetensors")]
    assert need.model == pytest.approx(sum(sizes), rel=0.25)


def test_a_run_of_the_papers_size_is_known_before_it_starts():
    with torch.device("meta"):
        model = torch.nn.Linear(32_000, 1_024_000, bias=False)  # 32.8 billion weights
    chosen = settings("ppo", steps=400, save_steps=1, export_steps=100, export_dtype="bfloat16")
    need = disk_need(chosen, model)
    assert need.checkpoint / GIB == pytest.approx(732, abs=1) and need.checkpoints == 2
    assert need.model / GIB == pytest.approx(61, abs=1) and need.models == 5


def test_a_small_disk_is_refused_a_narrow_one_is_said(tmp_path, monkeypatch, capsys):
    need = DiskNeed(checkpoint=3 * GIB, checkpoints=2, model=GIB, models=3)
    run = tmp_path / "runs" / "new"

    def free(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size * GIB))
        check_disk(need, run)
        return capsys.readouterr().err

    told = free(20)
    assert told.startswith("the run needs 9.00 GiB on the disk: 2 checkpoints of 3.00 GiB, 3 ")
    assert f"20.00 GiB are free in {tmp_path}" in told
    assert "warning: " in free(7)
    with pytest.raises(SettingsError, match=r"two checkpoints and the last model do not fit"):
        free(5)
    need = dataclasses.replace(need, checkpoints=1)  # a run that saves once
    assert "warning: " in free(4)
    with pytest.raises(SettingsError, match=r"one checkpoint and the last model do not fit"):
        free(3)
    (run / "trainer").mkdir(parents=True)
    with open(run / "trainer" / "weights", "wb") as file:
        file.truncate(3 * GIB)  # a resumed run replaces its own checkpoint
    assert "warning: " in free(2)


def test_a_run_that_saves_once_has_one_checkpoint():
    model = torch.nn.Linear(2, 2)
    assert disk_need(settings("ppo", steps=5, save_steps=5), model).checkpoints == 1
    assert disk_need(settings("ppo", steps=6, save_steps=5), model).checkpoints == 2
    kept = {"steps": 7, "save_steps": 2}
    assert disk_need(settings("grpo", **kept, trl={"save_total_limit": 0}), model).checkpoints == 4
    assert disk_need(settings("grpo", **kept, trl={"save_total_limit": 2}), model).checkpoints == 3


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
)
def test_an_error_of_a_full_disk_names_the_path(error, tmp_path):
    with pytest.raises(OSError, match=f"{tmp_path}"), naming(tmp_path):
        raise error


def test_other_errors_stay_as_they_are(tmp_path):
    for error in (RuntimeError("gloo"), OSError("text"), FileNotFoundError(2, "no", "file")):
        with pytest.raises(type(error)) as caught, naming(tmp_path):
            raise error
        assert caught.value is error


def test_a_small_need_is_only_said_when_asked(tmp_path, capsys):
    need = DiskNeed(checkpoint=3, checkpoints=2, model=1, models=1)
    check_disk(need, tmp_path)
    assert capsys.readouterr().err == ""
    check_disk(need, tmp_path, show=True)
    assert "the run needs 0.00 GiB" in capsys.readouterr().err


def test_a_launcher_that_kills_before_a_checkpoint_is_written_is_said(monkeypatch, capsys):
    def told(size, seconds=None):
        monkeypatch.delenv(SHUTDOWN_TIME, raising=False)
        if seconds is not None:
            monkeypatch.setenv(SHUTDOWN_TIME, str(seconds))
        check_time(DiskNeed(size * GIB, 2, GIB, 1))
        return capsys.readouterr().err

    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert told(366) == ""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert told(1) == "" and told(366, 600) == ""
    assert "30 s after a signal, and a checkpoint has 366 GiB: start it with" in told(366)
    assert f"{SHUTDOWN_TIME}=600" in told(366)
