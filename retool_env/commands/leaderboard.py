"""`retool leaderboard`: the runs of several models in tables, with ranks and their uncertainty."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retool_env.key_values import parse_value

if TYPE_CHECKING:
    from retool_env.evaluation.recover.records import RecoverRecord
    from retool_env.evaluation.recover.submission import Finding

BY = ("accuracy", "uplift", "faults")
"""The figures that rank, as `retool_env.evaluation.leaderboard.measures.RANKED` has them."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's options."""
    parser = commands.add_parser(
        "leaderboard", help="tables of the runs of several models, with ranks", allow_abbrev=False
    )
    parser.add_argument(
        "folder",
        type=Path,
        help="a folder that holds folders of `retool recover` or `retool eval`, one or two levels "
        "below it",
    )
    parser.add_argument(
        "--by",
        choices=BY,
        default=BY[0],
        help="the figure that ranks: accuracy: right answers without faults; uplift: accuracy with "
        "the tool minus text only; faults: accuracy after a fault (accuracy)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check each run of `retool recover`, as `retool recover --check` does",
    )
    parser.add_argument(
        "--sandbox",
        type=parse_value,
        default="nsjail",
        help="with --check: runs a sample of the programs again (nsjail)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="with --check: the seed of this sample (0)"
    )
    parser.add_argument(
        "--out", type=Path, help="the folder of leaderboard.html, .md and .json (FOLDER)"
    )


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool leaderboard`."""
    from retool_env.evaluation.leaderboard.entries import read_entries, tables_of
    from retool_env.evaluation.leaderboard.page import ranked, terminal, write

    def check(folder: Path, record: RecoverRecord) -> Sequence[Finding]:
        return _findings(arguments, folder, record)

    entries, left_out = read_entries(arguments.folder, check if arguments.check else None)
    tables = [ranked(table, arguments.by) for table in tables_of(entries)]
    try:
        paths = write(tables, left_out, arguments.out or arguments.folder)
    finally:  # a file that can't be written hides no table
        print(terminal(tables, left_out))
    print("\n" + "\n".join(f"written: {path}" for path in paths))
    return int(bool(left_out) or any(entry.distrusted for entry in entries))


def _findings(
    arguments: argparse.Namespace, folder: Path, record: RecoverRecord
) -> Sequence[Finding]:
    from retool_env.evaluation.recorded_rules import rules_of
    from retool_env.evaluation.recover.submission import check
    from retool_env.interpreter import open_sandbox

    with open_sandbox(arguments.sandbox, rules_of(record)) or contextlib.nullcontext() as sandbox:
        return check(folder, sandbox, seed=arguments.seed)
