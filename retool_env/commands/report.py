"""`retool report`: one page on one or several recorded runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's options."""
    parser = commands.add_parser(
        "report",
        help="one page on one or several runs: figures, pictures and examples",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="the folder of an evaluation, of a benchmark of recovery or of a training, a file of "
        "episodes, or FOLDER@STEP: an evaluation of a training on held-out problems",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="the folder of report.html and its pictures (`report` in the folder of the first run)",
    )


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool report`."""
    from retool_env.evaluation.progress import on_stderr
    from retool_env.evaluation.report.page import write_report
    from retool_env.evaluation.runs import open_run

    first = open_run(arguments.runs[0]).path
    folder = arguments.out or (first if first.is_dir() else first.parent) / "report"
    page, table = write_report(arguments.runs, folder, on_stderr)
    print(f"{table}\n\nreport: {page}")
    return 0
