"""`retool compare`: two or more runs on the same problems."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's options."""
    parser = commands.add_parser(
        "compare", help="the difference of runs on the same problems", allow_abbrev=False
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="the folder of an evaluation, a training run and step as runs/grpo@10, or a file of "
        "episodes; two or more",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="SETTING",
        help="compare runs that differ in this setting, such as interpreter; repeat the option for "
        "several",
    )
    parser.add_argument(
        "--force", action="store_true", help="compare runs that differ in any setting"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write compare.html, compare.json, and view.html with the flipped episodes (nothing)",
    )


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool compare`."""
    from retool_env.evaluation.compare.comparison import compare
    from retool_env.evaluation.compare.text import terminal

    report = compare(arguments.runs, arguments.allow, arguments.force)
    print(terminal(report))
    if arguments.out is not None:
        from retool_env.evaluation.compare.page import write_files

        files = write_files(report, arguments.out)
        print(f"\nwritten: {', '.join(map(str, files))}")
    return 0
