"""Files that a user names: pipes, devices, folders and huge files are refused at once, by name."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from retool_env import files
from retool_env.errors import SettingsError
from retool_env.files import file_fault, folder_fault, read_lines, read_text
from retool_env.problems.rows import read_rows
from retool_env.rules import Rules
from retool_env.task import make_task
from retool_env.transcript import read_transcripts

pytestmark = pytest.mark.timeout(60)  # reading most of these would never end

Make = Callable[[Path], Path]


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link_to_a_pipe(path: Path) -> Path:
    path.symlink_to(pipe(path.with_name("pipe")))
    return path


def device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def listener(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    return path


def huge(path: Path) -> Path:
    """A sparse file of 1 TB, which takes no space on the disk."""
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    return path


KINDS = [
    (pipe, "is a pipe, not a regular file"),
    (link_to_a_pipe, "is a pipe, not a regular file"),
    (device, "is a device, not a regular file"),
    (folder, "is a folder, not a regular file"),
]
every_kind = pytest.mark.parametrize(("make", "fault"), [*KINDS, (huge, " than ")])


@pytest.mark.parametrize(("make", "fault"), [*KINDS, (listener, "is a socket")])
def test_what_is_no_regular_file_is_said(
    make: Make, fault: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = make(Path("x"))
    assert fault in file_fault(path) and file_fault(path).startswith("x ")
    assert file_fault("x").startswith("'x' ")
    for read in (read_text, lambda path: next(read_lines(path))):
        with pytest.raises(ValueError, match=fault):
            read(path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert file_fault(tmp_path / "none") == f"there is no file {tmp_path / 'none'}"
    assert "too long" in file_fault("x" * 5000) and len(file_fault("x" * 5000)) < 400
    assert "null" in file_fault("a\0b")
    (tmp_path / "file").write_text("")
    assert file_fault(tmp_path / "file") == ""
    assert "Not a directory" in file_fault(tmp_path / "file" / "x")
    for read in (read_text, lambda path: next(read_lines(path))):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none")


def test_files_are_read_up_to_a_bound(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, "MOST_TEXT", 1 << 20)
    monkeypatch.setattr(files, "MOST_LINE", 11)
    path = tmp_path / "x"
    path.write_bytes(b"x" * (1 << 20))
    assert len(read_text(path)) == 1 << 20
    path.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(ValueError, match="x is larger than 1 MiB"):
        read_text(path)
    path.write_bytes(b"123456789\n\nabc\r\n123456789x\nlast")
    assert list(read_lines(path)) == path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"123456789\n123456789x\n123456789xx\n")
    with pytest.raises(ValueError, match="line 3 is longer"):
        list(read_lines(path))
    path.write_bytes(b"")
    assert list(read_lines(path)) == [] and read_text(path) == ""


# --- each place that reads one --------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("source", ["JSONL", "GSM8K", "MATH", "DAPO", "AIME24"])
def test_problems(make: Make, fault: str, source: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=fault) as refused:
        make_task(f"ReTool-{source}-v0", path=str(make(tmp_path / "x.jsonl")))
    assert "x.jsonl" in str(refused.value)


@pytest.mark.parametrize("make", [make for make, _ in KINDS])
def test_a_parquet_file(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(FileNotFoundError, match=r"x.parquet' is a .*, not a regular file"):
        make_task("ReTool-DAPO-v0", path=str(make(tmp_path / "x.parquet")))


@every_kind
def test_a_prompt_template(make: Make, fault: str, tmp_path: Path) -> None:
    path = make(tmp_path / "x")
    with pytest.raises((ValueError, FileNotFoundError), match="x") as refused:
        Rules(prompt_template=str(path))
    assert fault in str(refused.value) or "must hold a JSON object" in str(refused.value)


@pytest.mark.parametrize("wrong", ["# A page\n\nof text\n" * 99, 5, ["{query}"]])
def test_a_prompt_template_of_another_kind(wrong: object) -> None:
    with pytest.raises(SettingsError, match=r"\{query\}") as refused:
        Rules(prompt_template=wrong)  # type: ignore[arg-type]  # the point
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("text", ["Solve it. " * 1000, "no query\0"])
def test_a_prompt_template_without_a_query(text: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no \{query\} and can.t be read") as refused:
        Rules(prompt_template=text)
    assert len(str(refused.value)) < 1000


@every_kind
def test_rows_and_transcripts(make: Make, fault: str, tmp_path: Path) -> None:
    path = make(tmp_path / "x.jsonl")
    for read in (read_rows, read_transcripts):
        with pytest.raises(ValueError, match=rf"x.jsonl.*{fault}"):
            next(read(path))


@pytest.mark.parametrize("make", [pipe, device])
def test_a_model_with_what_is_no_file(make: Make, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "more").mkdir()
    (tmp_path / "model" / "gone").symlink_to("nowhere")
    assert folder_fault(tmp_path / "model") == folder_fault(tmp_path / "none") == ""
    path = make(tmp_path / "model" / "tokenizer.json")
    assert folder_fault(tmp_path / "model") == file_fault(path) != ""
    assert folder_fault(path) == file_fault(path)
    pytest.importorskip("torch")
    from retool_env.rollout.transformers.policy import load_policy

    for model in (tmp_path / "model", path):
        with pytest.raises(
            ValueError, match=r"model: .*tokenizer.json'? is a .*, not a regular file"
        ):
            load_policy(str(model))
