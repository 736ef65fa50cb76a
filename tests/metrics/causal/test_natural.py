"""The arms of a natural error, worked out by hand."""

from __future__ import annotations

from helpers.forks import fork

from retool_env.metrics.causal.continuation import by_prefix, read_continuations
from retool_env.metrics.causal.natural import natural_figures


def test_message_error_and_mend():
    rights = {  # right answers of two samples, by problem
        "a": {"keep": 1, "drop": 2, "bare": 0, "mended": 2},
        "b": {"keep": 1, "drop": 1, "bare": 1},
    }
    forks = [
        fork(problem, arm, "right" if sample < number else "7")
        for problem, arms in rights.items()
        for arm, number in arms.items()
        for sample in range(2)
    ]
    found = {f.key: f for f in natural_figures(by_prefix(read_continuations(forks)))}
    assert found["natural/keep"].mean == 0.5
    assert found["natural/message"].mean == 0.25  # (1/2 - 0) and (1/2 - 1/2)
    assert found["natural/memory"].mean == 0.25  # (1 - 1/2) and 0
    assert found["natural/error"].mean == 0.5  # problem a alone
    assert found["natural/mend"].mean == 0.0
    assert [found[f"natural/{name}"].left_out for name in ("message", "error", "mended")] == [
        *(0, 1, 1)
    ]
    assert "upper bound" in found["natural/error"].definition


def test_forks_of_faults_are_not_natural_errors():
    cells = by_prefix(read_continuations([fork("a", "timeout", "7"), fork("a", "keep", "right")]))
    found = {f.key: f for f in natural_figures({("b", 0, 1): {"timeout": []}, **cells})}
    assert (found["natural/keep"].prefixes, found["natural/bare"].left_out) == (1, 1)
    assert not found["natural/message"].shown
