from __future__ import annotations

import json
import time

import pytest

from benchmarks import gpu_suite
from benchmarks.gpu_suite import curve, main, rollout, step32b, table


def test_parts_find_figures_on_small_models_too(tmp_path):
    far = time.monotonic() + 300
    found = {"rollout": rollout(True, tmp_path, far), "step32b": step32b(True, tmp_path, far)}
    assert found["rollout"]["episodes"] == 8 and 8 <= found["rollout"]["tokens"] <= 8 * 40
    assert found["step32b"]["planned_bytes_together"] > 2 * 2 * 512 * 64  # at least the words
    assert "tokens/s" in table(found)


def test_a_part_is_a_process_whose_figures_or_error_are_kept(tmp_path, capsys):
    out = tmp_path / "found.json"
    assert main(["--small", "--parts", "step32b", "--out", str(out)]) == 0
    part = json.loads(out.read_text())["parts"]["step32b"]
    assert part["tokens"] == 96 and part["wall_s"] > 0
    assert "tokens/s" in capsys.readouterr().out


def test_what_fails_is_said_and_the_next_part_runs(tmp_path, monkeypatch, capsys):
    found = iter([{"error": "status 1"}, {"tokens_per_s": 5.0}])
    monkeypatch.setattr(gpu_suite, "run_part", lambda *_: next(found))
    assert main(["--small", "--parts", "parity", "rollout", "--out", str(tmp_path / "f")]) == 1
    assert capsys.readouterr().out == "parity: status 1\nrollout: 5.0 tokens/s\n"


def test_unequal_gradients_are_a_failure(tmp_path, monkeypatch, capsys):
    found = {"gradient_difference": 0.5, "loss": [1.0, 2.0], "same": False}
    monkeypatch.setattr(gpu_suite, "run_part", lambda *_: {"float32": found, "wall_s": 1.0})
    assert main(["--small", "--parts", "parity", "--out", str(tmp_path / "f")]) == 1
    assert "differ by 5.0e-01" in capsys.readouterr().out


def test_a_curve_without_time_says_so(tmp_path):
    with pytest.raises((RuntimeError, OSError)):
        curve(True, tmp_path, time.monotonic())


@pytest.mark.skipif(gpu_suite.CUDA, reason="there is a GPU")
def test_without_a_gpu_it_says_what_can_be_done(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--small" in capsys.readouterr().err
