"""The GPU suite on small models: its parts, their failures and their time."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_suite
from benchmarks.gpu_suite import (
    Task,
    curve,
    main,
    parity,
    rollout,
    step32b,
    table,
)


def test_parts_find_figures_on_small_models_too(tmp_path):
    task = Task(True, tmp_path, time.monotonic() + 300)
    found = {"rollout": rollout(task), "step32b": step32b(task)}
    assert found["rollout"]["episodes"] == 8 and 8 <= found["rollout"]["tokens"] <= 8 * 40
    assert found["step32b"]["planned_bytes_together"] > 2 * 2 * 512 * 64  # at least the words
    assert "tokens/s" in table(found)


@pytest.mark.parametrize("part", ["attention", "loading"])
def test_other_numbers_are_a_failure(part, tmp_path, monkeypatch):
    figures = {"tokens_per_s": 1.0, "difference": {"mean": 1.0, "max": 1.0}, "same": False}
    found = {"sdpa": figures} if part == "attention" else {"same": False, **SIZES}
    monkeypatch.setattr(gpu_suite, "run_part", lambda *_: found)
    assert main(["--small", "--parts", part, "--out", str(tmp_path / "f")]) == 1


SIZES = {"model_bytes": 1, "host_growth_bytes": 1}


@pytest.mark.slow
def test_a_part_is_a_process_whose_figures_or_error_are_kept(tmp_path, capsys):
    out = tmp_path / "found.json"
    assert main(["--small", "--parts", "step32b", "--out", str(out)]) == 0
    part = json.loads(out.read_text())["parts"]["step32b"]
    assert part["tokens"] == 96 and part["wall_s"] > 0
    assert "tokens/s" in capsys.readouterr().out


def test_a_failure_is_printed_and_the_next_part_runs(tmp_path, monkeypatch, capsys):
    found = iter([{"error": "status 1"}, {"tokens_per_s": 5.0}])
    monkeypatch.setattr(gpu_suite, "run_part", lambda *_: next(found))
    assert main(["--small", "--parts", "parity", "rollout", "--out", str(tmp_path / "f")]) == 1
    assert capsys.readouterr().out == "parity: status 1\nrollout: 5.0 tokens/s\n"


def test_unequal_gradients_are_a_failure(tmp_path, monkeypatch, capsys):
    found = {"gradient_difference": 0.5, "loss": [1.0, 2.0], "same": False}
    monkeypatch.setattr(gpu_suite, "run_part", lambda *_: {"float32": found, "wall_s": 1.0})
    assert main(["--small", "--parts", "parity", "--out", str(tmp_path / "f")]) == 1
    assert "differ by 5.0e-01" in capsys.readouterr().out


def test_devices_are_compared_by_gradients_of_the_same_batch(tmp_path, monkeypatch):
    class HereOnly:
        """Runs the command in this process."""

        SubprocessError = ValueError

        @staticmethod
        def run(command, env, **_):
            exec(command[-1], {})

    monkeypatch.setattr(gpu_suite, "subprocess", HereOnly)
    found = parity(Task(True, tmp_path, time.monotonic() + 300))
    for name in ("float32", "bfloat16"):
        assert found[name]["gradient_difference"] == 0 and found[name]["gradient_norm"] > 1e-3
    assert found["float32"]["loss"] != found["bfloat16"]["loss"]


def test_a_precision_that_fails_leaves_the_other(tmp_path, monkeypatch):
    def on(device, task, model, bf16):
        if bf16:
            raise gpu_suite.subprocess.TimeoutExpired("python", 1)
        return {"gradient": torch.ones(2), "loss": 0.5, "device": device}

    monkeypatch.setattr(gpu_suite, "gradients_on", on)
    found = parity(Task(True, tmp_path, time.monotonic()))
    assert found["float32"]["same"] and "timed out" in found["bfloat16"]["error"]
    assert "timed out" in table({"parity": found})


def test_a_run_is_told_to_stop_when_its_time_is_up(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite, "sys", SimpleNamespace(executable="/bin/sleep"))
    popen = gpu_suite.subprocess.Popen
    monkeypatch.setattr(gpu_suite.subprocess, "Popen", lambda command: popen(["/bin/sleep", "60"]))
    began = time.monotonic()
    gpu_suite.train(["grpo"], Task(True, tmp_path, began))
    assert time.monotonic() - began < 30
    with pytest.raises(RuntimeError, match="the time was up before the first step"):
        curve(Task(True, tmp_path, began))


@pytest.mark.skipif(gpu_suite.CUDA, reason="there is a GPU")
def test_without_a_gpu_the_message_names_the_option_small(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--small" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--minutes", "nan"], ["--minutes", "0"], ["--out", "."]])
def test_wrong_arguments_are_refused_before_a_part_runs(wrong, capsys, monkeypatch):
    monkeypatch.setattr(gpu_suite, "run_part", lambda *_: pytest.fail("a part was run"))
    with pytest.raises(SystemExit):
        main(["--small", *wrong])
    assert wrong[0] in capsys.readouterr().err
