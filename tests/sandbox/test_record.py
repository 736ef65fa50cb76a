"""Reading a process's record; `test_job.py` tests how a `Job` uses it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.execution import Files, Limits, Outcome
from retool_env.sandbox.guest import wire
from retool_env.sandbox.record import pack_files, read_record, read_reports, unpack_files


def test_a_record_is_read_on_one_line_and_no_further_than_is_believed() -> None:
    text = json.dumps(["runtime_error", "a\nb" + "c" * 9000, "d" * 9000]).encode()
    told = read_record(text, Limits())
    assert told is not None
    assert told[0] is Outcome.RUNTIME_ERROR
    assert told[1] == "a b" + "c" * 3997 and told[2] == "d" * 8000


def test_limits_are_named() -> None:
    assert read_record(b'["memory_limit", "", ""]', Limits(memory_mb=7)) == (
        Outcome.MEMORY_LIMIT,
        "MemoryError: the program needed more than 7 MiB",
        "",
    )
    assert read_record(b'["blocked", "no", ""]', Limits()) == (
        Outcome.BLOCKED,
        "no (the sandbox does not allow it)",
        "",
    )


def test_a_program_cannot_pass_for_a_failure_of_the_sandbox() -> None:
    assert read_record(b'["infrastructure_failure", "", ""]', Limits()) is None


@given(
    st.binary() | st.recursive(st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)
)
def test_nonsense_tells_nothing_and_brings_no_file(data: bytes) -> None:
    told = read_record(data, Limits())
    assert told is None or told[0] in Outcome
    assert unpack_files(data, {"a"}) == {}


def test_files_go_and_those_that_are_wanted_come_back() -> None:
    packed = json.loads(pack_files(Files({"a": b"x", "b/c": b"\0"}, ["d"])))
    parts = {"a": "eA==", "b/c": "AA=="}, ["d"], ""
    assert packed == dict(zip(wire.FILES, parts, strict=True))
    sent = json.dumps(packed[wire.FILES[0]] | {"d": 5, "e": "eA=="}).encode()
    assert unpack_files(sent, {"a", "b/c", "d"}) == {"a": b"x", "b/c": b"\0"}


@pytest.mark.parametrize(
    ("text", "reports"),
    [
        (b'["ok", "", ""]', ()),
        (b'["ok", "", "", "a", "b"]', ("a", "b")),
        (b'["memory_limit", "", "", "a"]', None),  # this text is made in advance
        (b"", None),
        (b'["ok"]', None),
        (b'["ok", "", "", 1]', None),
        (b"[" * 100_000, None),
    ],
)
def test_the_reports_of_a_prelude_follow_the_outcome(text, reports):
    assert read_reports(text) == reports
