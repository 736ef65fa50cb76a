"""The table of a replication, from figures that are written by hand."""

from __future__ import annotations

import pytest

from benchmarks.parts.replication_figures import PANELS, table


def figures(valid: bool, best: float | None) -> dict:
    curves = {"interpreter": [0.2, 0.9, 0.8], "text only": [0.1, 0.3, 0.4]}
    return {
        "arms": {arm: {"curve": {"accuracy": accuracy}} for arm, accuracy in curves.items()},
        "area": {"interpreter": 0.7, "text only": 0.25},
        "calibration": {"start": 0.1, "gain": 0.25, "late_gain": -0.01, "valid": valid},
        "step_ratios": {"25%": 0.0, "50%": 0.125, "75%": 0.2, "best": best},
        "tokens_ratio": 0.5,
        "seconds_ratio": None,
    }


def test_a_row_holds_validity_curves_and_ratios() -> None:
    head, rule, first, second = table(
        {"grpo": {"0": figures(True, 0.25), "1": figures(False, None)}}
    ).splitlines()
    assert [line.count("|") for line in (head, rule, first, second)] == [13] * 4
    assert first == (
        "| grpo, seed 0 | 10.0% | +25.0% | -1.0% | yes | 20.0%, 90.0% | 40.0% | "
        "0.00 / 0.12 / 0.20 | **0.25** | 0.50 | – | 0.700 vs 0.250 |"
    )
    assert "| **no** |" in second and "| **–** |" in second


@pytest.mark.parametrize("title", [title for title in PANELS if title.startswith("last program")])
def test_a_share_without_episodes_is_unknown(title: str) -> None:
    key = "last_call_ok_right" if "right" in title else "last_call_ok_wrong"
    assert PANELS[title]({key: {"interval": None}}) is None
    assert PANELS[title]({key: {"interval": {"mean": 0.5}}}) == 0.5
