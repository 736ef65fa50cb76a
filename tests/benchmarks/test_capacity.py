"""The simulation as a whole: workers, files and printed figures."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import capacity
from benchmarks.parts.chains import Turn
from benchmarks.parts.step import Load

PLAIN = Load(
    problems=2,
    rollouts=1,
    gpus=1,
    rows=2,
    in_flight=2,
    token_seconds=1.0,
    row_seconds=0.0,
    prefill_seconds=0.0,
)
"""One GPU that writes a token a second, whatever else it writes."""

CHAINS = [(Turn(2, 3.0), Turn(1, None)), (Turn(4, None),)]


def test_the_workers_needed_are_the_fewest_that_cost_little_time() -> None:
    # A long turn hides the programs: with one worker, they end at 1 + 3 * 3, and a token later.
    chains = [(Turn(1, 3.0), Turn(1, None))] * 3 + [(Turn(12, None),)]
    load = Load(**{**vars(PLAIN), "problems": 4, "rows": 4, "in_flight": 4})
    courses = capacity.compare(load, chains)
    needs = capacity.needed(load, chains, courses)
    assert courses["no barrier"].programs == 3 and courses["no barrier"].seconds == 12
    assert needs["no barrier"].workers == 1
    assert needs["no barrier"].programs_per_second == 1
    # At a barrier all wait for the programs: each worker fewer than all costs a whole program more.
    assert needs["barrier over all"].workers == 3 and needs["barrier a GPU"].workers == 3
    assert needs["barrier over all"].programs_per_second == 3


def test_the_whole_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--problems", "12", "--rollouts", "4", "--gpus", "3", "--rows", "8"]
    assert capacity.main([*small, "--in-flight", "12", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "a problem's rollouts stay on one" in printed and "episodes cut" in printed
    report = json.loads((tmp_path / "capacity.json").read_text())
    assert report["assumptions"]["gpus"] == 3 and report["simulated"]
    barrier, per_gpu, free, cut = report["courses"].values()
    assert barrier["seconds"] > per_gpu["seconds"] > free["seconds"] > cut["seconds"]
    assert (barrier["cut"], free["cut"], cut["cut"]) == (0, 0, 48 - math.ceil(0.95 * 48))
    assert 1 <= free["needed"]["workers"] <= free["programs"]
    assert (tmp_path / "capacity.png").read_bytes().startswith(b"\x89PNG")


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sandbox.json").write_text("{}")
    with pytest.raises(SystemExit):
        capacity.main(["--sandbox", str(tmp_path / "sandbox.json"), "--out", str(tmp_path)])
    assert "benchmarks.sandbox" in capsys.readouterr().err
