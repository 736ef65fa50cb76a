"""Recovery, studied: does reinforcement learning make a tiny model use its tool better?

    python -m benchmarks.recovery --list
    python -m benchmarks.recovery
    python -m benchmarks.recovery --part grpo-0

The study has parts, of at most an hour each on two cores. Without `--part`, the next parts run, as
many as fit into `--hours`. A part that was stopped continues, and a part that is done is not run
again: its figures are in `benchmarks/results/recovery/`, with the seconds of all its starts. The
runs are in `runs/recovery/`.

`--page` writes the tables of all parts that are done into a page, and the pictures beside it. It
says which parts have not been run, and needs no run. Seeds, budgets and questions are in
`benchmarks/parts/study_plan.py`; they were fixed before any curve was looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.base.records import write_atomically
from benchmarks.parts.results import RESULTS, write_results
from benchmarks.parts.study_figures import read_evaluation, read_training
from benchmarks.parts.study_plan import (
    SMALL,
    STUDIES,
    WHOLE,
    Part,
    Plan,
    all_parts,
    hours_left,
    next_parts,
    weights_of,
)
from benchmarks.parts.study_report import write_page
from retool_env.errors import SettingsError
from retool_env.evaluation.identity import weights_hash


class PartFailed(RuntimeError):
    """A command of a part failed. The message names the file with its output."""


def listing(plan: Plan) -> str:
    """The parts as text: done or not, and hours on two cores.

    Args:
        plan: The plan.
    """
    lines = []
    for study, question in STUDIES.items():
        lines.append(f"{study}: {question} {hours_left(plan, study):.1f} hours of two cores left")
        for part in all_parts():
            if part.study == study:
                state = "done" if plan.done(part.name) else part.elsewhere or "not run"
                lines.append(f"  {part.name:<14}{part.hours:>5.2f} h  {state}")
    return "\n".join(lines)


def chosen_parts(plan: Plan, names: Sequence[str], hours: float) -> list[Part]:
    """The parts that a start runs.

    Args:
        plan: The plan.
        names: The names of the parts; empty: the next parts that fit into the time.
        hours: The time in hours.

    Raises:
        SettingsError: If a part is unknown, done, run by another benchmark, or needs a part that is
            not done.
    """
    if not names:
        return next_parts(plan, hours)
    known = {part.name: part for part in all_parts()}
    for name in names:
        if name not in known:
            raise SettingsError(f"unknown part {name!r}: --list names the parts")
        if known[name].elsewhere:
            raise SettingsError(f"another benchmark runs {name}: {known[name].elsewhere}")
        if plan.done(name):
            raise SettingsError(f"{name} is done; to run it again, delete {plan.file(name)}")
    return [known[name] for name in names]


def check_needs(plan: Plan, part: Part) -> None:
    """Check that the models that a part starts with are there.

    Raises:
        SettingsError: If a part that it needs is not done, its file is damaged, or its model is not
            in the runs.
    """
    for name in part.after:
        if not plan.done(name):
            raise SettingsError(f"{part.name} needs {name}: run --part {name} first")
        if not plan.checkpoint(name).exists():
            raise SettingsError(
                f"{part.name} needs the model of {name}, which is not in {plan.folder(name)}: "
                f"delete {plan.file(name)} and run --part {name}"
            )
        plan.read(name)  # its weights are needed at the end of the part


def run_part(plan: Plan, part: Part) -> None:
    """Run the commands of a part, and write its results.

    Args:
        plan: The plan.
        part: The part.

    Raises:
        PartFailed: If a command fails.
    """
    log = plan.runs / f"{part.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for command in plan.commands(part):
        text = shlex.join(command)
        print(f"$ {text}", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            with open(log, "a", encoding="utf-8") as output:
                status = run_command(command, output)
        finally:  # also if the start is stopped by Ctrl-C
            add_seconds(plan, part, text, time.monotonic() - started)
        if status:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
            raise PartFailed(f"{''.join(last)}\nthis failed, more of it in {log}: {text}")
    figures = {**figures_of(plan, part), "seconds": read_seconds(plan, part)}
    write_results(plan.file(part.name), figures, indent=0)


def _seconds_file(plan: Plan, part: Part) -> Path:
    return plan.runs / f"{part.name}.seconds.json"


def read_seconds(plan: Plan, part: Part) -> dict[str, float]:
    """The seconds of all starts of a part so far, by command.

    Args:
        plan: The plan.
        part: The part.
    """
    file = _seconds_file(plan, part)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def add_seconds(plan: Plan, part: Part, command: str, seconds: float) -> None:
    """Add the seconds of a command to the sum of the earlier starts.

    Args:
        plan: The plan.
        part: The part.
        command: The command as text.
        seconds: The seconds of this start.
    """
    spent = read_seconds(plan, part)
    spent[command] = round(spent.get(command, 0.0) + seconds, 1)
    write_atomically(_seconds_file(plan, part), json.dumps(spent, indent=1) + "\n")


def run_command(command: Sequence[str], output: Any) -> int:
    """Run a command, and return its exit status.

    Args:
        command: The command. `python` and `retool` run by the interpreter of this process.
        output: The open file of its output.
    """
    own = {"python": [], "retool": ["-m", "retool_env.cli"]}[command[0]]
    done = subprocess.run(
        [sys.executable, *own, *command[1:]],
        stdout=output,
        stderr=subprocess.STDOUT,
        env={"OMP_NUM_THREADS": "2", **os.environ},
        check=False,
    )
    return done.returncode


def figures_of(plan: Plan, part: Part) -> dict[str, Any]:
    """The figures of a part whose commands have run.

    Args:
        plan: The plan.
        part: The part.
    """
    made: dict[str, Any] = {"part": part.name, "study": part.study, "seed": part.seed}
    if part.study == "D":
        values = json.loads((plan.folder(part.name) / "values.json").read_text())
        models = {str(plan.checkpoint(name)): name for name in part.after}
        began = {name: weights_of(plan.read(name)) for name in part.after}
        named = {name: values[model] for model, name in models.items()}
        return {**made, "began_with": began, "values": named}
    if part.after:
        made["began_with"] = {name: weights_of(plan.read(name)) for name in part.after}
    if folders := plan.evaluations(part):
        made["evaluations"] = {name: read_evaluation(folder) for name, folder in folders.items()}
    else:
        made["weights"] = weights_hash(plan.checkpoint(part.name))
    if part.is_rl:
        made["training"] = read_training(plan.folder(part.name))
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run parts of the study, list them or write the page, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="list the parts: done or not, hours")
    parser.add_argument("--part", action="append", default=[], help="run this part; repeatable")
    parser.add_argument(
        "--hours", type=float, default=1.0, help="without --part: hours of this start (1)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/recovery"), help="folder of runs")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "recovery", help="the folder of the parts' figures"
    )
    parser.add_argument(
        "--page", type=Path, metavar="FILE.md", help="write the page of all parts that are done"
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes: a test of the code, without meaning"
    )
    options = parser.parse_args(arguments)
    if options.small and options.out == RESULTS / "recovery":
        parser.error("--small needs another --out, since its figures mean nothing")
    plan = Plan(options.runs, options.out, SMALL if options.small else WHOLE)
    if options.list:
        print(listing(plan))
        return 0
    if options.page:
        return _page(plan, options.page)
    try:
        parts = chosen_parts(plan, options.part, options.hours)
        for study in sorted({part.study for part in parts}):
            names = ", ".join(f"{p.name} ({p.hours:.2f} h)" for p in parts if p.study == study)
            left = hours_left(plan, study)
            print(f"study {study}, {left:.1f} hours of two cores left; now: {names}", flush=True)
        for part in parts:
            check_needs(plan, part)
            run_part(plan, part)
            print(f"done: {plan.file(part.name)}", flush=True)
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return 130
    except (PartFailed, SettingsError, OSError) as error:
        print(f"python -m benchmarks.recovery: {error}", file=sys.stderr)
        return 2
    return 0


def _page(plan: Plan, page: Path) -> int:
    try:
        write_page(plan, page)
    except (SettingsError, OSError) as error:
        print(f"python -m benchmarks.recovery: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
