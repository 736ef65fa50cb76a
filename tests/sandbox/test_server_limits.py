"""A server's bound on open files, its refusals of bodies, and the secrets that it keeps."""

import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from helpers.clients import BEARER, OK, SECRET, ask, connect, head, received
from helpers.services import command, says, serving

from retool_env import grading
from retool_env.cli import main
from retool_env.sandbox import make_sandbox, processes
from retool_env.sandbox.server import create_app, serve


@pytest.mark.parametrize(
    "token", ["", " ", "\t", "tök", " qz", "qz ", "qz\n", "q\nz", "q\x7f", "q" * 5000]
)
def test_a_token_that_no_client_can_send_is_refused(token: str, monkeypatch, capsys) -> None:
    with pytest.raises(ValueError, match="the token"):
        create_app(says(OK), token)
    with pytest.raises(ValueError, match="the token"):
        serve(lambda: says(OK), port=0, token=token)
    monkeypatch.setattr("retool_env.sandbox.make_sandbox", None)
    monkeypatch.setenv("RETOOL_SANDBOX_TOKEN", token)
    assert main(["serve", "--port", "0"]) == 1
    err = capsys.readouterr().err
    assert "the token" in err and "q" not in err.partition("retool serve:")[2].replace(
        "request", ""
    )


def test_a_body_that_says_that_it_is_too_large_is_refused_unread() -> None:
    with serving(create_app(says(OK), SECRET)) as url:
        assert b" 413 " in received(connect(url, head(length=33 << 20)))


def test_a_body_that_a_stop_cuts_off_is_answered() -> None:
    with serving(create_app(says(OK), SECRET)) as url:
        connection = connect(url, head() + b"{")
        assert httpx.get(f"{url}/health").status_code == 200
    answer = received(connection)
    assert b" 503 " in answer and b"the server stops" in answer


# --- open files -----------------------------------------------------------------------------------


def limited(files: int, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "retool_env.cli", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )


@pytest.mark.parametrize("files", [40, 64, 128, 256])
@pytest.mark.parametrize("arguments", [(), ("--max-in-flight", "32")])
def test_too_few_open_files_are_refused_at_the_start(files: int, arguments: tuple) -> None:
    process = limited(files, *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == ""
    assert f"may open {files} files" in err and "ulimit -n " in err


def test_as_many_open_files_as_it_asks_for_are_enough() -> None:
    _, err = limited(40, "--max-in-flight", "32").communicate(timeout=60)
    needed = int(err.partition("ulimit -n ")[2].partition("`")[0])
    assert limited(needed - 1, "--max-in-flight", "32").communicate(timeout=60)[0] == ""
    process = limited(needed, "--max-in-flight", "32")
    try:
        url = process.stdout.readline().strip()
        idle = [connect(url) for _ in range(needed)]
        with ThreadPoolExecutor(32) as pool:
            codes = ["import time\ntime.sleep(1)\nprint(7)"] * 32
            answers = list(pool.map(lambda code: ask(url, code).json(), codes))
        assert [each["run_result"]["stdout"] for each in answers] == ["7\n"] * 32
        for connection in idle:
            connection.close()
    finally:
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert err == ""


# --- where the token comes from -------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o644, True)])
def test_a_token_comes_from_a_file(mode: int, warned: bool, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-the-file\n")
    file.chmod(mode)
    with command("--token-file", str(file), RETOOL_SANDBOX_TOKEN="other") as (process, url):
        assert httpx.get(f"{url}/metrics", headers=BEARER).status_code == 401
        shown = {"Authorization": "Bearer from-the-file"}
        assert httpx.get(f"{url}/metrics", headers=shown).status_code == 200
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert ("chmod 600" in err) == warned and "from-the-file" not in err


def test_nsjail_inherits_no_secret(monkeypatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter2")
    monkeypatch.setenv("RETOOL_SANDBOX_TOKEN", SECRET)
    with make_sandbox("nsjail", guests=1) as box:
        for guest in box.pool.guests:
            below = [guest.process.pid, *processes.below(guest.process.pid)]
            for pid in below:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
                assert b"hunter2" not in environment and SECRET.encode() not in environment
            assert b"PATH=" in Path(f"/proc/{guest.process.pid}/environ").read_bytes()


def test_the_grading_process_inherits_no_secret(monkeypatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter2")
    worker = grading.grader._Worker(5.0, 1024)
    try:
        assert b"hunter2" not in Path(f"/proc/{worker.process.pid}/environ").read_bytes()
        assert worker.ask([["1/2"], ["0.5"]]) == b"1"
    finally:
        worker.kill()
