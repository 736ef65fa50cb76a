"""Limits, files and results of programs: their checks, without a sandbox."""

import errno
import math

import numpy as np
import pytest

from retool_env.execution import (
    MOST_FILES,
    Execution,
    Files,
    Limits,
    Outcome,
    advised,
    check_program,
    check_seconds,
    check_whole_number,
)


@pytest.mark.parametrize("value", [1, 3, np.int64(2)])
def test_a_whole_number_within_its_bounds_becomes_an_int(value):
    assert check_whole_number("n", value, most=3) == value
    assert type(check_whole_number("n", value)) is int


@pytest.mark.parametrize("value", [0, 4, True, 1.0, "1", None])
def test_any_other_number_is_refused_by_name_and_bounds(value):
    with pytest.raises(ValueError, match=r"^n must be a whole number from 1 to 3, not "):
        check_whole_number("n", value, most=3)


@pytest.mark.parametrize("value", [0, -1, 11, math.nan, math.inf, True, "1", None])
def test_seconds_must_be_a_positive_number_up_to_a_bound(value):
    with pytest.raises(ValueError, match=r"^s must be .* above 0 and at most 10, not "):
        check_seconds("s", value, most=10)
    assert check_seconds("s", np.float32(0.5), most=10) == 0.5


def test_the_memory_of_standard_input_and_files_is_bounded_by_tmp():
    limits = Limits(tmp_mb=1)
    half = b"x" * (1 << 19)
    check_program("1", limits, "x" * (1 << 20))
    check_program("1", limits, "x" * (1 << 19), files=Files({"a": half}))
    with pytest.raises(ValueError, match=r"^stdin and files: .* MiB of /tmp"):
        check_program("1", limits, "x" * ((1 << 19) + 1), files=Files({"a": half}))
    with pytest.raises(ValueError, match=r"^stdin: "):
        check_program("1", limits, "é" * (1 << 20))


@pytest.mark.parametrize(
    ("given", "wanted", "error"),
    [
        ({"../a": b""}, (), ValueError),
        ({"": b""}, (), ValueError),
        ({}, ["a/../b"], ValueError),
        ({}, ["a\0b"], ValueError),
        ({}, ["a"] * (MOST_FILES + 1), ValueError),
        ({"a": "text"}, (), TypeError),
        ({1: b""}, (), TypeError),
    ],
)
def test_names_and_contents_of_files_are_checked(given, wanted, error):
    with pytest.raises(error):
        Files(given, wanted)
    Files({"a/b": b"x"}, ["..c"])


def test_results_compare_without_their_durations():
    assert Execution(Outcome.OK, "1", duration=1.0) == Execution(Outcome.OK, "1", duration=2.0)
    assert Execution(Outcome.OK, "1") != Execution(Outcome.TIMEOUT, "1")


def test_an_error_for_want_of_resources_brings_advice():
    assert advised(ValueError()) == "ValueError" and advised(OSError("gone")) == "gone"
    assert "ulimit -n" in advised(OSError(errno.EMFILE, "too many open files"))
    assert "ulimit -u" in advised(OSError(errno.EAGAIN, "no process"))


@pytest.mark.parametrize(
    ("error", "name"),
    [
        ("ValueError", "ValueError"),
        ("json.decoder.JSONDecodeError: Expecting value", "json.decoder.JSONDecodeError"),
        ("struct.error: unpack requires a buffer of 4 bytes", "struct.error"),
        ("time limit: the program ran for more than 5 s", None),
        ("exit status 3", None),
        ("", None),
    ],
)
def test_the_class_of_an_exception(error, name):
    assert Execution(Outcome.RUNTIME_ERROR, "", error).exception == name
