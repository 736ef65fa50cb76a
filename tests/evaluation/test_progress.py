"""Lines of progress on long work."""

import pytest

from retool_env.evaluation import progress


@pytest.mark.parametrize(
    ("total", "line"), [(0, "2 letters are read"), (1500, "2 of 1,500 letters are read")]
)
def test_items_come_unchanged_and_a_line_counts_them_from_time_to_time(monkeypatch, total, line):
    times = iter([0.0, 1.0, 6.0, 7.0, 8.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times, 9.0))
    lines = []
    some = progress.counted("abc", "letters are read", lines.append, total)
    assert (list(some), lines) == (["a", "b", "c"], [line])


def test_without_a_receiver_nothing_is_said(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    assert list(progress.counted("abc", "letters are read", None)) == ["a", "b", "c"]


def test_lines_stand_on_standard_error(capsys):
    progress.on_stderr("3 letters are read")
    assert tuple(capsys.readouterr()) == ("", "3 letters are read\n")
