"""Episodes of one problem and number, by their verdicts in both runs."""

from __future__ import annotations

from retool_env.evaluation.compare.flips import Flip, Table, flips_of, table_of
from retool_env.evaluation.compare.outcomes import Outcome
from retool_env.evaluation.compare.paired import PairedProblem


def some(name, *verdicts):
    return tuple(Outcome(f"{name}/{n}", n, r, "none", 0, 0) for n, r in enumerate(verdicts))


def test_flips_are_the_episodes_whose_verdicts_differ():
    problems = {
        ("p", "?", "1"): PairedProblem(
            some("a", True, False, True, False, None, True),
            some("b", True, True, False, False, True),
        ),
        ("q", "?", "1"): PairedProblem(some("c", False), some("d", True)),
    }
    assert flips_of(problems) == [
        Flip("p", 1, "a/1", "b/1", gained=True),
        Flip("p", 2, "a/2", "b/2", gained=False),
        Flip("q", 0, "c/0", "d/0", gained=True),
    ]
    # The failed episode, and the episode without a partner, are not in the table.
    assert table_of(problems) == Table(both=1, first=1, second=2, neither=1)
