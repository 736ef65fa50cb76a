"""The examples run from the root of a clone, as the documentation shows."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SAYS = {
    "agent": "answered, reward 1.0\n",
    "policy": "16 episodes, accuracy 100.0 % [",
    "problems": "squares/17: reward 1.0\n",
    "protocol": "['code', 'answer'] [True] 1.0\n",
}
"""For each script, a part of its output."""


@pytest.mark.parametrize("name", SAYS)
def test_an_example_does_what_it_shows(name):
    command = [sys.executable, f"examples/{name}.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout
