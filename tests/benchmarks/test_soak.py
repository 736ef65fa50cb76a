"""The soak test: the faults that it notices, and a short run."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import soak
from retool_env.sandbox import Execution, Outcome

CALM = soak.Figures(programs=0, host_mb=50, guests_mb=150, descriptors=30, processes=10)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"host_mb": 70}, "host's memory"),
        ({"guests_mb": 250}, "guests' memory"),
        ({"descriptors": 60}, "descriptors"),
        ({"processes": 16}, "processes"),
    ],
)
def test_growth_is_noticed(changes: dict, says: str) -> None:
    assert soak.grown(CALM, CALM, CALM) == []
    (found,) = soak.grown(CALM, CALM, dataclasses.replace(CALM, **changes))
    assert says in found


def test_the_number_of_another_program_is_noticed() -> None:
    for kind in soak.KINDS:
        wrong = [Execution(Outcome.OK, "124\n"), Execution(Outcome.INFRASTRUCTURE, "123\n")]
        assert not any(kind.expected(execution, "123") for execution in wrong), kind.name


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "soak.json"
    assert soak.main(["--programs", "120", "--out", str(out)]) == 0, capsys.readouterr().out
    report = json.loads(out.read_text())
    assert (report["wrong"], report["problems"]) == (0, [])
    assert sum(report["outcomes"].values()) == 120
    assert [figures["programs"] for figures in report["figures"]] == [0, 60, 120, 120]
    assert "python" in report["versions"]
