"""`retool serve`: the token in a file, and the limits that the command passes to the server."""

import os
from pathlib import Path

import pytest

from retool_env.cli import main
from retool_env.commands.serve import read_token
from retool_env.errors import SettingsError


@pytest.fixture
def served(monkeypatch):
    """The arguments of `serve`, which returns at once."""
    calls = []
    monkeypatch.setattr(
        "retool_env.sandbox.server.serve", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    return calls


@pytest.mark.parametrize(
    ("content", "token"),
    [
        (b"secret", "secret"),
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b" a\n\n", " a\n"),
    ],
)
def test_one_line_break_at_the_end_is_no_part_of_a_token(content, token, tmp_path):
    (tmp_path / "token").write_bytes(content)
    assert read_token(tmp_path / "token") == token


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_token_that_others_may_read_is_warned_of(mode, warned, tmp_path, capsys):
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(mode)
    assert read_token(tmp_path / "token") == "secret"
    err = capsys.readouterr().err
    assert ("chmod 600" in err) == warned and "secret" not in err


@pytest.mark.parametrize(
    ("content", "words"), [(b"q" * 8193, "larger than a token"), (b"q\xff", "ASCII")]
)
def test_a_file_without_a_token_is_refused(content, words, tmp_path):
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(SettingsError, match=words) as refused:
        read_token(tmp_path / "token")
    assert "qq" not in str(refused.value)


def test_the_file_wins_over_the_variable(served, tmp_path, monkeypatch):
    monkeypatch.setenv("RETOOL_SANDBOX_TOKEN", "variable")
    (tmp_path / "token").write_text("file\n")
    assert main(["serve", "--token-file", str(tmp_path / "token")]) == 0
    assert main(["serve"]) == 0
    assert [token for (*_, token), _ in served] == ["file", "variable"]


def test_the_options_reach_the_server(served):
    assert (
        main(["serve", "--host", "::1", "--port", "9", "--max-seconds", "7", "--grace", "3"]) == 0
    )
    [((_, host, port, _), limits)] = served
    assert (host, port, limits["grace_seconds"], limits["max_in_flight"]) == ("::1", 9, 3, None)
    assert limits["maximum"].wall_seconds == 7


def test_a_wrong_limit_is_named_by_its_option(served, capsys):
    assert main(["serve", "--max-seconds", "-1"]) == 1
    assert "--max-seconds: " in capsys.readouterr().err and not served


def test_a_token_file_that_is_none_is_refused(tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"q" * 10_000)
    (tmp_path / "binary").write_bytes(b"q\xff")
    (tmp_path / "empty").write_bytes(b"\n")
    for name in ("fifo", "large", "binary", "empty", "missing", "."):
        assert main(["serve", "--port", "0", "--token-file", str(tmp_path / name)]) == 1
        err = capsys.readouterr().err
        assert "token" in err and "qq" not in err
    assert main(["serve", "--port", "0", "--token-file", "/dev/zero"]) == 1
