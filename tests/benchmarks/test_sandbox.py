"""The benchmark of the sandbox: its figures, and the checks that keep them honest."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks import sandbox as benchmark
from retool_env.execution import Execution, Outcome


class Instant:
    """A sandbox without processes, whose programs have one outcome."""

    def __init__(self, outcome: Outcome = Outcome.OK) -> None:
        self.execution = Execution(outcome, "1\n")
        self.running = self.most = 0

    def run(self, code, limits=None) -> Execution:
        return self.execution

    async def run_async(self, code, limits=None) -> Execution:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        return self.execution


def test_quantiles_are_of_the_nearest_rank() -> None:
    seconds = [i / 1000 for i in range(100, 0, -1)]
    assert benchmark.quantiles(seconds) == {"p50_ms": 50, "p99_ms": 99, "n": 100}
    assert benchmark.quantiles([0.003, 0.001, 0.002])["p50_ms"] == 2
    assert benchmark.quantiles([0.002]) == {"p50_ms": 2, "p99_ms": 2, "n": 1}


def test_throughput_keeps_as_many_programs_in_flight() -> None:
    instant = Instant()
    assert asyncio.run(benchmark.throughput(instant, "print(1)", 40, 8)) > 0
    assert instant.most == 8


def test_a_program_that_fails_is_not_counted() -> None:
    with pytest.raises(RuntimeError, match="a program failed"):
        asyncio.run(benchmark.throughput(Instant(Outcome.TIMEOUT), "print(1)", 4, 2))
    with pytest.raises(RuntimeError, match="burns did not end with a timeout"):
        benchmark.bombs(Instant())


def test_bombs_are_timed() -> None:
    assert list(benchmark.bombs(Instant(Outcome.TIMEOUT))) == list(benchmark.BOMBS)


def test_candidates_print_what_programs_print(sandbox) -> None:
    assert benchmark.bare_python(benchmark.PRINT) == "1\n"
    with benchmark.one_shot_jail(sandbox.binary) as run:
        assert run(benchmark.PRINT) == "1\n"
        with pytest.raises(RuntimeError, match="one-shot nsjail"):
            run("1 / 0")


def test_the_table_has_a_cell_for_each_candidate() -> None:
    cell = {"p50_ms": 1.5, "p99_ms": 12.25, "n": 9}
    head, row = benchmark.table({"print(1), back to back": {"the pool": cell}}).splitlines()
    assert head.split("  ")[-1].strip() == "the pool" and row.endswith("1.50 / 12.25")
    assert len(head) == len(row)


def test_wrong_numbers_are_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--rounds", "0"])
    assert "--rounds and --programs must be at least 1" in capsys.readouterr().err
