"""The commands of the Makefile that the README names, in a copy of the project."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture
def copy(tmp_path) -> Path:
    subprocess.run(["git", "clone", "--quiet", ROOT, tmp_path / "copy"], check=True)
    return tmp_path / "copy"


def make(folder: Path, *arguments: str) -> str:
    """The output of `make`, with this environment in place of a new one."""
    installed = f"{sys.prefix}/.installed"
    command = ["make", "--old-file", installed, f"VENV={sys.prefix}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def accuracy_of(row: str, text: str) -> float:
    return float(re.search(rf"\| {row} +\| (\d+\.\d) %", text)[1])


def test_the_demo_learns_to_use_its_tool_and_its_checkpoint_is_evaluated_alike(copy):
    shown = make(copy, "demo")
    before = accuracy_of("interpreter, cold start", shown)
    after = accuracy_of("interpreter, after RL", shown)
    alone = accuracy_of("text only, after RL", shown)
    assert after > 85 and after > before + 10 and after > alone + 10
    command = [f"{sys.prefix}/bin/retool", "eval", "--model", "runs/tiny/checkpoint"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=True)
    assert accuracy_of("tiny/checkpoint, interpreter", done.stdout) == after


def test_a_wheel_works_in_an_empty_environment(copy):
    shown = make(copy, "dist", f"PYTHON={sys.executable}")
    assert "the sandbox works here" in shown and "the wheel works" in shown
