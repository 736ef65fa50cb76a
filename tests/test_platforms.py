"""The parts that run no programs can be imported and work on systems other than Linux.

Processes simulate another system: modules and functions of Linux alone are missing, and
`sys.platform` names the other system. The grader's worker process simulates the same system.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.model_api import ModelAPI, Reply, serving

ELSEWHERE = """
# First, other packages: they detect the system in their own ways.
import asyncio, ctypes, faulthandler, gzip, multiprocessing, os, pathlib, selectors, select, signal
import socket, subprocess, sys, tempfile, threading
import gymnasium, httpx, math_verify, numpy, openai, sympy, yaml

missing = {
    "darwin": {os: ["memfd_create", "pidfd_open", "unshare", "sched_getaffinity"]},
    "win32": {
        os: [
            *["memfd_create", "pidfd_open", "unshare", "sched_getaffinity", "register_at_fork"],
            *["sysconf", "geteuid", "getuid", "O_NONBLOCK", "O_DIRECTORY", "fork", "setsid"],
        ],
        select: ["poll"],
        signal: ["SIGVTALRM", "SIGPROF", "SIGHUP", "SIGUSR1", "setitimer", "ITIMER_PROF"],
        socket: ["SCM_RIGHTS", "send_fds"],
    },
}
for module, names in missing[PLATFORM].items():
    for name in names:
        delattr(module, name)
if PLATFORM == "win32":
    for name in ("resource", "fcntl", "pwd", "grp", "termios"):
        sys.modules[name] = None
sys.modules["torch"] = None  # it would load libraries of the simulated system
sys.platform = PLATFORM
"""

LIBRARY = """
import pathlib, sys

import gymnasium as gym
import retool_env
import retool_env.cli, retool_env.evaluation, retool_env.rollout.openai
from retool_env import SandboxUnavailable, make_sandbox
from retool_env.doctor import Status, examine
from retool_env.grading import Grader, is_equivalent
from retool_env.metrics import summarise
from retool_env.sandbox import NsjailSandbox
from retool_env.transcript import read_transcripts, write_transcripts

assert sys.platform != "linux"
env = gym.make("ReTool-Arithmetic-v0", interpreter=False)
env.reset(seed=0)
*_, info = env.step("<answer>1/2</answer>")
write_transcripts("episodes.jsonl", [info["transcript"]])
assert summarise(list(read_transcripts("episodes.jsonl"))).episodes == 1
assert is_equivalent(r"\\sqrt{8}", r"2\\sqrt{2}") and not is_equivalent(r"\\sqrt{8}", "3")
with_bomb = Grader(seconds=1.0, workers=1)
assert not with_bomb.is_equivalent("9^{9^{9^9}}", "42")
assert with_bomb.is_equivalent(r"\\sqrt{4}", "2")
for make in (make_sandbox, NsjailSandbox, lambda: gym.make("ReTool-Arithmetic-v0")):
    try:
        make()
    except SandboxUnavailable as error:
        assert "retool serve" in str(error)
    else:
        raise AssertionError("it was made")
findings = {finding.subject: finding for finding in examine()}
assert findings["sandbox"].status is Status.MISSING and "retool serve" in str(findings["sandbox"])
assert findings["packages"].status is Status.OK
"""


@pytest.fixture(params=["darwin", "win32"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment variables of a process that simulates another system."""
    start = f"PLATFORM = {request.param!r}\n{ELSEWHERE}"
    Path(tmp_path, "sitecustomize.py").write_text(start)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}


@pytest.mark.some(1)
def test_the_library_works_elsewhere_and_its_sandbox_says_what_to_do(elsewhere, tmp_path):
    command = [sys.executable, "-c", LIBRARY]
    subprocess.run(command, env=elsewhere, cwd=tmp_path, check=True, timeout=90)


def test_a_model_behind_an_api_is_evaluated_elsewhere(elsewhere, tmp_path):
    with serving(ModelAPI(lambda _: Reply("<answer>7</answer>"))) as url:
        command = [
            *(sys.executable, "-m", "retool_env.cli", "eval", "--api", url, "--model", "m"),
            *("--env", "ReTool-Arithmetic-v0", "--text-only", "--problems", "2", "--k", "1"),
            *("--out", "found"),
        ]
        subprocess.run(command, env=elsewhere, cwd=tmp_path, check=True, timeout=90)
    assert Path(tmp_path, "found", "eval.json").exists()
