"""A file of transcripts is closed and compressed in parts, and read as one stream."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env import rotation
from retool_env.files import read_lines
from retool_env.rotation import (
    Stream,
    close_part,
    closed_parts,
    compress,
    length,
    open_names,
    parts,
)


def written(path, *groups):
    """Write groups of lines; each group but the last is closed. Returns all bytes."""
    for number, group in enumerate(groups):
        with open(path, "ab") as file:
            file.writelines(group)
        if number + 1 < len(groups):
            close_part(path, 2 * number, 2 * number + 1)
    return b"".join(line for group in groups for line in group)


def test_closed_parts_and_the_open_file_are_read_in_the_order_of_their_steps(tmp_path):
    path = tmp_path / "transcripts.jsonl"
    groups = [[b"line %d of %d\n" % (i, number) for i in range(3)] for number in range(12)]
    whole = written(path, *groups)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names[0] == "transcripts.0-1.jsonl.gz" and len(names) == 12
    assert [part.first for part in closed_parts(path)] == [2 * i for i in range(11)]
    assert b"".join(read_lines(path)) == whole
    first = closed_parts(path)[0].path
    assert list(read_lines(first)) == groups[0]
    assert length(first) == len(gzip.decompress(first.read_bytes()))


def test_only_the_file_of_the_same_process_is_meant(tmp_path):
    one, other = tmp_path / "transcripts.jsonl", tmp_path / "transcripts-1.jsonl"
    written(one, [b"a\n"], [b"b\n"])
    written(other, [b"c\n"], [b"d\n"])
    (tmp_path / "data.0-1.jsonl").write_bytes(b"x\n")
    assert b"".join(read_lines(one)) == b"a\nb\n"
    assert b"".join(read_lines(other)) == b"c\nd\n"
    assert parts(tmp_path / "data.jsonl") == [] == closed_parts(tmp_path / "gone" / one.name)
    other.unlink()
    assert open_names(tmp_path) == {one.name, other.name}
    assert b"".join(read_lines(other)) == b"c\n"


def test_a_kill_at_any_moment_of_closing_loses_and_doubles_nothing(tmp_path, monkeypatch):
    path = tmp_path / "transcripts.jsonl"
    path.write_bytes(b"a\nb\n")

    def killed(*given, **named):
        raise KeyboardInterrupt

    for target, name in ((rotation.shutil, "copyfileobj"), (rotation.Path, "unlink")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(target, name, killed)
            if closed_parts(path):
                compress(closed_parts(path)[0].path)
            else:
                close_part(path, 0, 3)
        assert b"".join(read_lines(path)) == b"a\nb\n"
    assert {file.name for file in tmp_path.iterdir()} == {
        *("transcripts.jsonl", "transcripts.0-3.jsonl", "transcripts.0-3.jsonl.gz"),
    }
    assert [part.path.suffix for part in closed_parts(path)] == [".gz"]


@given(
    groups=st.lists(
        st.lists(st.binary(max_size=9).map(lambda some: some.replace(b"\n", b"") + b"\n")),
        min_size=1,
        max_size=4,
    ),
    offset=st.integers(0, 60),
    count=st.integers(0, 60),
)
def test_the_stream_is_the_lines_one_behind_the_other(tmp_path_factory, groups, offset, count):
    path = tmp_path_factory.mktemp("stream") / "transcripts.jsonl"
    whole = written(path, *groups)
    with Stream(path) as stream:
        assert stream.size == len(whole)
        assert stream.read(offset, count) == whole[offset : offset + count]
        assert stream.read(0, count) == whole[:count]  # also backwards
        assert b"".join(stream.lines(offset, 100)) == whole[offset:]
        assert stream.line(offset, 3) == whole[offset:].partition(b"\n")[0][:3] or (
            stream.line(offset, 3) == whole[offset : offset + whole[offset:].find(b"\n") + 1]
        )


def test_a_stream_without_files_is_empty(tmp_path):
    with Stream(tmp_path / "transcripts.jsonl") as stream:
        assert (stream.size, stream.line(0, 9), stream.read(0, 9)) == (0, b"", b"")
