"""Lines of progress on long work."""

import io

from retool_env.commands import lines


def test_items_come_unchanged_and_a_line_counts_them_from_time_to_time(monkeypatch):
    times = iter([0.0, 1.0, 6.0, 7.0, 8.0])
    monkeypatch.setattr(lines.time, "monotonic", lambda: next(times, 9.0))
    stream = io.StringIO()
    assert list(lines.counted("abc", "letters are read", stream)) == ["a", "b", "c"]
    assert stream.getvalue() == "2 letters are read\n"
