"""A file of transcripts is closed and compressed in parts, and read as one stream."""

from __future__ import annotations

import errno
import gzip

import pytest
from helpers.kills import killed_before
from hypothesis import given
from hypothesis import strategies as st

from retool_env import files, rotation
from retool_env.files import read_lines
from retool_env.rotation import (
    Stream,
    close_part,
    closed_parts,
    complete,
    compress,
    delete,
    length,
    open_names,
    parts,
    reopen,
    state,
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


LINES = st.lists(
    st.lists(st.binary(max_size=9).map(lambda some: some.replace(b"\n", b"") + b"\n")),
    min_size=1,
    max_size=4,
)


def content(path):
    return b"".join(read_lines(path)) if parts(path) else b""


@given(groups=LINES, number=st.integers(0, 20))
def test_a_kill_at_any_moment_of_closing_loses_and_doubles_nothing(
    tmp_path_factory, groups, number
):
    path = tmp_path_factory.mktemp("killed") / "transcripts.jsonl"
    other = path.with_name("transcripts-1.jsonl.gz.unfinished")
    other.touch()  # of another process
    path.with_name("transcripts.90-91.jsonl.gz.unfinished").touch()  # its part was deleted
    whole, left = b"", [*enumerate(groups)]
    while left:
        with killed_before(number):
            while left:
                step, group = left.pop(0)
                with open(path, "ab") as file:
                    file.writelines(group)
                whole += b"".join(group)
                close_part(path, step, step)
        assert content(path) == whole
        with Stream(path) as stream:
            assert stream.read(0, len(whole) + 1) == whole and stream.size == len(whole)
        complete(path)
        assert content(path) == whole
        names = {file.name for file in path.parent.iterdir()} - {path.name, other.name}
        assert names == {part.path.name for part in closed_parts(path)}
        assert all(name.endswith(".jsonl.gz") for name in names)


@pytest.mark.parametrize("number", range(9))
def test_a_kill_while_a_part_becomes_the_open_file_again_keeps_its_lines_once(tmp_path, number):
    path, kept = tmp_path / "transcripts.jsonl", tmp_path / "kept"
    written(path, [b"a\n"], [b"b\n", b"c\n"], [b"d\n"])
    kept.write_bytes(b"b\n")
    with killed_before(number) as made:
        reopen(path, closed_parts(path)[-1].path, kept)
    assert content(path) in (b"a\nb\nc\nd\n", b"a\nb\nc\n", b"a\nb\n")
    if len(made) < number:
        assert [part.last for part in closed_parts(path)] == [1] and path.read_bytes() == b"b\n"
    complete(path)
    assert content(path)[:4] == b"a\nb\n"


def test_a_part_counts_until_it_is_deleted_as_a_whole(tmp_path):
    path = tmp_path / "transcripts.jsonl"
    path.write_bytes(b"a\n")
    part = close_part(path, 0, 3).path
    part.with_suffix("").write_bytes(b"a\n")  # a kill left the plain file
    with killed_before(1):
        delete(part)
    assert content(path) == b"a\n"
    delete(closed_parts(path)[0].path)
    assert content(path) == b"" and closed_parts(path) == []


@pytest.mark.parametrize("place", range(1, 13))
@pytest.mark.parametrize("read", ["lines", "stream"])
def test_a_reader_of_a_live_run_misses_and_doubles_nothing(tmp_path, monkeypatch, read, place):
    """The run closes its open file, and writes on, between two steps of the reader."""
    path = tmp_path / "transcripts.jsonl"
    whole, calls = written(path, [b"a\n"], [b"b\n", b"c\n"]), []
    plain = path.with_name("transcripts.2-3.jsonl")
    path.rename(plain)  # this part is still being compressed
    path.write_bytes(b"d\n")
    whole += b"d\n"

    def meanwhile(function):
        def call(*given, **named):
            calls.append(function)
            if len(calls) == place:
                compress(plain)
                close_part(path, 4, 5)
                with open(path, "ab") as file:
                    file.write(b"e\n")
            return function(*given, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(rotation.os, "listdir", meanwhile(rotation.os.listdir))
        patch.setattr(rotation, "open_part", meanwhile(rotation.open_part))
        patch.setattr(files, "open_part", rotation.open_part)
        if read == "lines":
            found = b"".join(read_lines(path))
        else:
            with Stream(path) as stream:
                found = b"".join(stream.lines(0, 100))
    assert found in (whole, whole + b"e\n")
    assert content(path) == whole + (b"e\n" if len(calls) >= place else b"")


def test_the_state_of_a_file_changes_with_its_parts(tmp_path):
    path = tmp_path / "transcripts.jsonl"
    seen = [state(path)]
    assert seen == [()]
    path.write_bytes(b"a\n")
    seen.append(state(path))
    close_part(path, 0, 1)
    seen.append(state(path))
    assert len({*seen}) == 3 and state(path) == seen[-1]


def test_a_part_that_is_too_long_for_gzips_length_stays_plain(tmp_path, monkeypatch):
    path = tmp_path / "transcripts.jsonl"
    monkeypatch.setattr(rotation, "COMPRESSED_BYTES", 3)
    whole = written(path, [b"abc\n"], [b"d\n"], [b"e\n"])
    complete(path)
    assert [part.path.suffix for part in closed_parts(path)] == [".jsonl", ".gz"]
    assert content(path) == whole
    with Stream(path) as stream:
        assert stream.size == len(whole) and stream.line(4, 9) == b"d\n"
    assert rotation.COMPRESSED_BYTES < 2**32


def test_a_full_disk_leaves_a_part_plain(tmp_path, monkeypatch, caplog):
    path = tmp_path / "transcripts.jsonl"
    path.write_bytes(b"a\n")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rotation.os, "fsync", full)
        close_part(path, 0, 1)
    assert "stays uncompressed" in caplog.text
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "transcripts.0-1.jsonl"}
    complete(path)
    assert [part.path.suffix for part in closed_parts(path)] == [".gz"] and content(path) == b"a\n"


def test_a_compressed_file_of_several_members_has_its_whole_length(tmp_path):
    path = tmp_path / "episodes.jsonl.gz"
    path.write_bytes(gzip.compress(b"a\nb\n") + gzip.compress(b"c\n"))
    with Stream(path) as stream:
        assert stream.size == length(path) == 6 and stream.read(0, 9) == b"a\nb\nc\n"


@given(
    groups=LINES,
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
