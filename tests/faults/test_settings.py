"""The setting `faults`: bad values are refused, and mappings are read."""

import pytest

from retool_env.errors import SettingsError
from retool_env.faults import KINDS, Faults
from retool_env.rules import Rules


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"rate": 1.5}, "faults.rate"),
        ({"rate": True}, "faults.rate"),
        ({"rate": float("nan")}, "faults.rate"),
        ({"suite": "v9"}, "faults.suite"),
        ({"kinds": "timeout"}, "faults.kinds"),
        ({"kinds": []}, "faults.kinds"),
        ({"kinds": ["time-out"]}, "time-out"),
        ({"kinds": [["timeout"]]}, "faults.kinds"),
        ({"kinds": ["timeout", "timeout"]}, "once"),
        ({"seed": -1}, "faults.seed"),
        ({"by_rollout": 1}, "faults.by_rollout"),
        ({"rates": 0.1}, "rates"),
        (0.25, "faults must be a mapping"),
    ],
)
def test_a_wrong_value_is_named(setting, words):
    with pytest.raises(SettingsError, match=words):
        Rules(faults=setting)


def test_a_mapping_becomes_faults():
    rules = Rules(faults={"rate": 1, "kinds": ["timeout", "cut"]})
    assert rules.faults == Faults(rate=1, kinds=("timeout", "cut"))
    assert Rules().faults is None


def test_half_of_each_sort_is_held_out():
    for sort in ("explicit", "silent", "placebo"):
        seen = [kind.seen for kind in KINDS.values() if kind.sort == sort]
        assert abs(2 * sum(seen) - len(seen)) <= 2
