"""`retool export`: an evaluation in the formats of other tools."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from retool_env.errors import SettingsError

FORMATS = ("parquet", "csv", "datasets", "inspect", "hub")
"""The formats, as `retool_env.evaluation.export.FORMATS` has them."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's options."""
    parser = commands.add_parser(
        "export", help="an evaluation in the formats of other tools", allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="the folder of an evaluation (runs/eval/NAME)")
    parser.add_argument(
        "--to",
        required=True,
        choices=FORMATS,
        help="parquet, csv: a row for each episode and each call; datasets: a folder for "
        "load_from_disk; inspect: a log of Inspect AI; hub: a result for a model's repository",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the folder of the files (FOLDER/export/FORMAT); for inspect also a file that ends in "
        ".eval or .json; for hub the model's repository",
    )
    parser.add_argument(
        "--dataset",
        metavar="ORG/NAME",
        help="with --to hub: the benchmark's data set on the Hub (the environment's)",
    )
    parser.add_argument(
        "--task", help="with --to hub: the id of the benchmark's task on the Hub (default)"
    )


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool export`."""
    from retool_env.evaluation.export import export
    from retool_env.evaluation.progress import on_stderr

    for name in ("dataset", "task"):
        if getattr(arguments, name) is not None and arguments.to != "hub":
            raise SettingsError(f"--{name} goes with --to hub")
    path = export(
        arguments.folder,
        arguments.to,
        arguments.out,
        dataset=arguments.dataset,
        task=arguments.task,
        progress=on_stderr,
    )
    print(f"written: {path}")
    return 0
