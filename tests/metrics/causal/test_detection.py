"""The rules of detection against labelled turns, and the figures on a world worked out by hand.

The labels of `detection_first.jsonl` are older than the rules. Each further set was written and
labelled before the rules were run on it, and served to improve the rules afterwards, except
`detection_held_out.jsonl`: its recall shows how much the rules miss.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.forks import world

from retool_env.metrics.causal.continuation import by_prefix, read_continuations
from retool_env.metrics.causal.detection import detection_figures, noticed


@pytest.mark.parametrize(
    ("name", "number", "precision", "recall"),
    [
        ("first", 100, 50 / 51, 1.0),
        ("second", 40, 1.0, 1.0),
        ("third", 84, 1.0, 41 / 42),
        ("fourth", 70, 1.0, 31 / 35),
        ("held_out", 60, 1.0, 18 / 30),
    ],
)
def test_precision_and_recall(name, number, precision, recall):
    path = Path(__file__).with_name(f"detection_{name}.jsonl")
    cases = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(cases) == number
    verdicts = [(noticed(case["text"]), case["noticed"]) for case in cases]
    hits = verdicts.count((True, True))
    measured = hits / sum(v for v, _ in verdicts), hits / sum(label for _, label in verdicts)
    print(f"{name}: precision {measured[0]:.2f}, recall {measured[1]:.2f}")
    assert measured[0] >= precision
    assert measured[1] >= recall


def test_programs_are_not_read():
    assert not noticed("Next.\n<code>print('that is odd, run it again')</code>")
    assert noticed("That is odd, run it again.\n<code>print(1)</code>")


def test_the_share_that_notices_and_the_share_net_of_the_control():
    cells = by_prefix(read_continuations(world()))
    found = {figure.key: figure for figure in detection_figures(cells)}
    assert found["detection/wrong_value"].mean == pytest.approx(1 / 3)  # all of problem c
    assert found["detection/wrong_value/net"].mean == pytest.approx(1 / 3)
    assert set(found) == {"detection/wrong_value", "detection/wrong_value/net"}
