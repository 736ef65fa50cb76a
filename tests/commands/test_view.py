"""`retool view` serves a page, writes files, and names wrong options in one line."""

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import webbrowser
from urllib.parse import urlsplit

import pytest
from helpers.viewed_runs import a_page, a_recover, an_eval

from retool_env.cli import main
from retool_env.evaluation.view import server, static


@pytest.fixture(autouse=True)
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(static, "PAGE", a_page(tmp_path / "page"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def opened(monkeypatch):
    """The addresses that a browser was told to open; the server ends at once."""
    addresses = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)

    def stopped(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(server.ViewServer, "serve_forever", stopped)
    return addresses


def test_the_page_is_opened_in_a_browser_and_control_c_ends_it(
    tmp_path, opened, monkeypatch, capsys
):
    monkeypatch.setenv("DISPLAY", ":0")
    path = a_recover(tmp_path / "run")
    options = ["--query", "arm:control", "--episode", "dose/0/p/0"]
    assert main(["view", str(path), *options]) == 0
    [address] = opened
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/#.*", address)
    assert urlsplit(address).fragment == "run=0&episode=dose%2F0%2Fp%2F0&q=arm%3Acontrol"
    printed = capsys.readouterr().out
    assert f"5 episodes of {path}\nthe page: {address}\n" in printed
    assert printed.endswith("\nthe viewer has ended\n")


@pytest.mark.parametrize(("display", "options"), [(":0", ["--no-browser"]), ("", [])])
def test_no_browser_is_opened_without_a_display_or_by_option(
    tmp_path, opened, monkeypatch, display, options
):
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert main(["view", str(an_eval(tmp_path / "run")), *options]) == 0
    assert opened == []


def test_the_command_serves_until_it_is_interrupted(tmp_path):
    code = (
        "import sys; from pathlib import Path; from retool_env.evaluation.view import static; "
        "static.PAGE = Path(sys.argv.pop(1)); from retool_env.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, tmp_path / "page", "view", an_eval(tmp_path / "run")]
    with subprocess.Popen(
        [*command, "--no-browser"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            lines = [process.stdout.readline() for _ in range(2)]
            address = urlsplit(lines[1].removeprefix("the page: ").strip())
            with contextlib.closing(
                http.client.HTTPConnection(address.netloc, timeout=60)
            ) as asked:
                asked.request("GET", f"{address.path}api/rows?run=0&since=0")
                rows = json.loads(asked.getresponse().read())["rows"]
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert [row["address"] for row in rows] == ["p/1/0", "p/1/1"]
    assert (process.returncode, error) == (0, "")
    assert out.endswith("\nthe viewer has ended\n")


def test_files_are_written_with_the_episodes_of_a_query(tmp_path, capsys):
    path = an_eval(tmp_path / "run", 4)
    file = tmp_path / "view.html"
    assert main(["view", str(path), "--html", str(file), "--query", "right:yes"]) == 0
    assert capsys.readouterr().out == f"{file}: 0.0 MB\n"
    assert '"p/1/1":{' in file.read_text() and '"p/1/0"' not in file.read_text()


def test_several_files_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(static, "MOST_PAGE", 16_000)
    file = tmp_path / "view.html"
    assert main(["view", str(an_eval(tmp_path / "run", 12)), "--html", str(file)]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'view-2.html'}: " in printed and "keep the " in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--query", "rihgt:yes"], "unknown filter 'rihgt'"),
        (["--query", "calls:>99", "--html", "x.html"], "keeps none of the episodes"),
        (["--episode", "p/9"], "no run has an --episode 'p/9': its addresses are such as p/1/0"),
        (["--episode", "1"], "--episode '1': its addresses with this part are p/1/0, p/1/1"),
        (["--html", "x.html", "--tui"], "choose one of them"),
        (["--port", "70000"], "name another port"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(tmp_path, capsys, options, words):
    assert main(["view", str(an_eval(tmp_path / "run")), *options]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_path_without_a_run_is_named(tmp_path, capsys):
    assert main(["view", str(tmp_path / "nothing")]) == 1
    assert "was not found" in capsys.readouterr().err


def test_lines_that_are_not_episodes_are_named(tmp_path, capsys):
    path = an_eval(tmp_path / "run")
    with open(path / "episodes.jsonl", "a") as file:
        file.write("nonsense\n" * 5)
    assert main(["view", str(path), "--html", str(tmp_path / "view.html")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("left out: ") and "line 3 is not an episode" in lines[0]
    assert lines[3] == "left out: 2 more lines"


def test_a_run_without_a_readable_episode_is_named_and_not_the_query(tmp_path, capsys):
    path = tmp_path / "episodes.jsonl"
    path.write_text("{}\n")
    assert main(["view", str(path), "--html", str(tmp_path / "v.html")]) == 1
    assert "no episode was found that can be read" in capsys.readouterr().err
